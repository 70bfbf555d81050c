"""Four steps of stage 1 and one of stage 2 against the released training loop."""

import functools

import jax
import numpy as np
import optax
import pytest

from configs import common
from jaxanom import trees
from jaxanom.methods import bayes_pfl
from jaxanom.methods.bayes_pfl import objective
from jaxanom.training import optimizer

# The authors' rates over that of the encoders; the recipes have the same.
RATES = (
    ("prompts/.*", 10.0),
    ("temperatures/.*", 100.0),
    ("(context|normal|abnormal)_flow/.*", 10.0),
)
COLUMNS = {
    "ce": "ce",
    "focal_sum_layers": "focal",
    "dice_sum_layers": "dice",
    "kl_isd_x0.01": "kl_isd",
    "kl_iad_normal_x0.01": "kl_normal",
    "kl_iad_abnormal_x0.01": "kl_abnormal",
    "orth": "orthogonality",
}


def adam_config(golden, **settings):
    notes = golden.json("train_steps")
    return optimizer.read(
        {
            **common.PHASE,
            **dict(
                optimizer="adam",
                learning_rate=1e-4,
                clip_norm=0.0,
                **notes["adam"],
                **settings,
            ),
        },
        "phase",
    )


def stage_1_config(golden):
    notes = golden.json("train_steps")
    return adam_config(
        golden,
        num_steps=notes["total_steps"],
        warmup_steps=notes["warmup_steps"],
        warmup_from_zero=True,
        schedule="cosine",
        rate_factors=RATES,
    )


def batch_of(golden, arrays, step):
    label = arrays["labels"][step]
    num_images = label.shape[0]
    return {
        "image": golden.images(arrays["images"][step]).astype(np.float32),
        "mask": arrays["masks"][step].astype(np.float32),
        "label": label,
        "category_id": np.arange(num_images),
        "valid": np.ones(num_images, bool),
    }


def after_stage_1(golden):
    """All released tensors after the four steps; those not listed never moved."""
    moved = {
        name.removeprefix("after4/"): value
        for name, value in golden.arrays("params_after_4_steps").items()
    }
    return golden.trainable | moved


@functools.cache
def stage_1(golden, shortcuts):
    """Losses, terms and first gradient, and the parameters after the last step."""
    arrays = golden.arrays("train_steps")
    token_ids = golden.arrays("text_train")["token_ids"]
    length = None if shortcuts else token_ids.shape[1]
    frozen = golden.frozen(token_ids, length)
    network = golden.network(shortcuts=shortcuts)
    size = (golden.sizes.image,) * 2
    patterns = bayes_pfl.trainable_1(golden.options)
    trained, fixed = trees.split(golden.params(), patterns)
    tx = optimizer.make(stage_1_config(golden))

    def loss(trained, batch, noise, entry):
        params = trees.merge(trained, fixed)
        return objective.loss_of(
            network, golden.towers, 1, size, params, frozen, batch, noise, entry
        )

    @jax.jit
    def take(trained, state, batch, noise, entry):
        (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(
            trained, batch, noise, entry
        )
        updates, state = tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, value, terms, grads

    state, log, first = tx.init(trained), [], None
    for step, entry in enumerate(arrays["index_prompt"]):
        noise = golden.noise(arrays, step=step)
        batch = batch_of(golden, arrays, step)
        if shortcuts:  # features ahead of the step, as a cache would have them
            batch |= golden.features(batch.pop("image"))._asdict()
        trained, state, value, terms, grads = take(trained, state, batch, noise, entry)
        log.append((value, terms))
        first = grads if first is None else first
    return log, first, trees.merge(trained, fixed)


@pytest.mark.parametrize("shortcuts", [False, True])
def test_losses_of_every_step(golden, shortcuts):
    log, _, _ = stage_1(golden, shortcuts)
    table = golden.arrays("train_steps")["loss_table"]
    columns = golden.json("train_steps")["loss_columns"]
    for (value, terms), row in zip(log, table, strict=True):
        for name, wanted in zip(columns, row, strict=True):
            if name == "rec_unused":
                continue
            found = value if name == "total" else terms[COLUMNS[name]]
            found = found * (0.01 if name.endswith("x0.01") else 1.0)
            # Losses to 1e-4, the set's own tolerance; later steps carry four updates.
            np.testing.assert_allclose(found, wanted, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("shortcuts", [False, True])
def test_gradients_before_the_first_update(golden, shortcuts):
    arrays = golden.arrays("train_steps")
    wanted = {
        name.removeprefix("grad/"): value
        for name, value in arrays.items()
        if name.startswith("grad/")
    }
    grads = stage_1(golden, shortcuts)[1]
    found = golden.by_name(grads)
    assert sorted(found) == sorted(wanted)
    for name, value in found.items():
        golden.close(value, wanted[name], golden.gradient, name)
    unreached = set(golden.json("train_steps")["no_grad_params"])
    assert unreached.isdisjoint(found)


@pytest.mark.parametrize("shortcuts", [False, True])
def test_parameters_after_all_steps(golden, shortcuts):
    before, after = golden.trainable, after_stage_1(golden)
    found = golden.by_name(stage_1(golden, shortcuts)[2])
    moved = 0
    for name, value in found.items():
        change = after[name] - before[name]
        if np.any(change):
            golden.close(value - before[name], change, golden.change, name)
            moved += 1
        else:
            np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert moved == len(golden.by_name(stage_1(golden, shortcuts)[1]))


def test_learning_rates_of_every_group(golden):
    arrays, notes = golden.arrays("train_steps"), golden.json("train_steps")
    schedule = optimizer.schedule(stage_1_config(golden))
    factor = {"prompt": 10.0, "temperature": 100.0, "flow": 10.0, "linear": 1.0}
    for step, row in enumerate(arrays["lrs"]):
        for group, wanted in zip(notes["lr_columns"], row, strict=True):
            found = factor[group] * float(schedule(step))
            assert found == pytest.approx(float(wanted), rel=1e-5), (step, group)
    # Every leaf falls into the group that the released code puts it in.
    ones = jax.tree.map(np.ones_like, golden.params())
    tx = optimizer.scale_by_path(RATES)
    scaled = golden.by_name(tx.update(ones, tx.init(ones))[0])
    for name, value in scaled.items():
        assert value.ravel()[0] == factor[notes["groups"][name]], name


def test_the_schedule_of_a_longer_run(golden):
    arrays = golden.arrays("misc")
    total, warmup = int(arrays["lr_total"]), int(arrays["lr_warmup"])
    config = optimizer.read(
        {
            **common.PHASE,
            **dict(
                num_steps=total,
                warmup_steps=warmup,
                warmup_from_zero=True,
                schedule="cosine",
                learning_rate=1.0,
            ),
        },
        "phase",
    )
    schedule = optimizer.schedule(config)
    found = [float(schedule(step)) for step in range(total + 1)]
    golden.close(found, arrays["lr_factor"])


def test_one_step_of_stage_2(golden):
    arrays, steps = golden.arrays("train_stage2"), golden.arrays("train_steps")
    after = after_stage_1(golden)
    before = golden.params(after)
    frozen = golden.frozen(golden.arrays("text_train")["token_ids"])
    network, size = golden.network(), (golden.sizes.image,) * 2
    trained, fixed = trees.split(before, objective.STAGE_2)
    tx = optimizer.make(adam_config(golden))
    batch, noise = batch_of(golden, steps, 1), golden.noise(arrays)

    @jax.jit
    def take(trained):
        def loss(trained):
            params = trees.merge(trained, fixed)
            entry = steps["index_prompt"][1]
            return objective.loss_of(
                network, golden.towers, 2, size, params, frozen, batch, noise, entry
            )

        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, _ = tx.update(grads, tx.init(trained), trained)
        return value, grads, optax.apply_updates(trained, updates)

    value, grads, moved = take(trained)
    golden.close(value, arrays["loss_ce"])
    grads, moved = golden.by_name(grads), golden.by_name(moved)
    for name, grad in grads.items():
        if name == "fuse.compress.bias":  # exactly zero: a shift of a softmax
            assert np.abs(grad).max() < 1e-6
            continue
        golden.close(grad, arrays[f"grad/{name}"], golden.gradient, name)
        change = arrays[f"after1/{name}"] - after[name]
        golden.close(moved[name] - after[name], change, golden.change, name)
