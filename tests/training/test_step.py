import jax
import jax.numpy as jnp
import linear
import numpy as np
import optax
import pytest

from configs import common
from jaxanom.training import optimizer, state, step


def config_of(**settings):
    return optimizer.read(
        {
            **common.PHASE,
            **(
                {"optimizer": "adam", "learning_rate": 0.1, "clip_norm": 0.0} | settings
            ),
        },
        "phase",
    )


def start(tx, averaged=False):
    params, frozen = linear.init(jax.random.key(0))
    return state.init(params, tx, jax.random.key(1), averaged), frozen


def host(tree):
    """A copy: the step is given the buffers of its input to reuse."""
    return jax.tree.map(np.array, tree)


def poisoned(batch):
    return batch | {"y": batch["y"].at[0].set(jnp.nan)}


def as_arrays(batch):
    return jax.tree.map(jnp.asarray, batch)


def test_a_step_is_the_textbook_gradient_step():
    tx = optimizer.make(config_of(optimizer="sgd", momentum=0.0))
    carried, frozen = start(tx)
    before, batch = host(carried.params["linear"]), linear.batch_at(0)
    apply = step.make_step(linear.loss_fn, tx).apply
    carried, metrics = apply(carried, {}, frozen, as_arrays(batch))

    error = batch["x"] @ before["kernel"] + before["bias"] - batch["y"]
    kernel_grad = 2 * batch["x"].T @ error / len(error)
    bias_grad = 2 * error.mean(0)
    after = carried.params["linear"]
    # The same sums in another order: a few float32 roundings of numbers of size 1.
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(
        after["kernel"], before["kernel"] - 0.1 * kernel_grad, **close
    )
    np.testing.assert_allclose(after["bias"], before["bias"] - 0.1 * bias_grad, **close)
    np.testing.assert_allclose(metrics["loss"], (error**2).mean(), rtol=1e-5)
    norm = np.sqrt((kernel_grad**2).sum() + (bias_grad**2).sum())
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert int(carried.step) == 1


def test_many_steps_trace_once_and_new_shapes_trace_again():
    tx = optimizer.make(config_of())
    carried, frozen = start(tx)
    train_step = step.make_step(linear.loss_fn, tx, ema_decay=0.0)
    for n in range(20):
        batch = as_arrays(linear.batch_at(n))
        carried, _ = train_step.apply(carried, {}, frozen, batch)
    assert train_step.num_traces() == 1
    batch = as_arrays(linear.batch_at(20, batch_size=4))
    train_step.apply(carried, {}, frozen, batch)
    assert train_step.num_traces() == 2


def test_the_state_gives_its_memory_to_the_next():
    tx = optimizer.make(config_of())
    carried, frozen = start(tx)
    apply = step.make_step(linear.loss_fn, tx).apply
    apply(carried, {}, frozen, as_arrays(linear.batch_at(0)))
    assert carried.params["linear"]["kernel"].is_deleted()
    assert not frozen["scale"].is_deleted()


def test_accumulated_microbatches_equal_one_big_batch():
    found = {}
    for accumulate in (1, 4):
        tx = optimizer.make(config_of())
        carried, frozen = start(tx)
        apply = step.make_step(linear.loss_fn, tx, accumulate=accumulate).apply
        for n in range(5):
            batch = as_arrays(linear.batch_at(n, batch_size=16))
            carried, metrics = apply(carried, {}, frozen, batch)
        found[accumulate] = host((carried.params, metrics))
    # Means of means instead of one mean: float32 rounding, which Adam's division by
    # the gradient's size carries into the parameters unshrunk.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found[1],
        found[4],
    )


def test_accumulation_sees_every_row_once():
    batch = {"x": jnp.arange(12), "y": jnp.arange(24).reshape(12, 2)}
    found = step.microbatches(batch, 3)
    assert found["x"].shape == (3, 4) and found["y"].shape == (3, 4, 2)
    assert sorted(np.ravel(found["x"])) == list(range(12))
    np.testing.assert_array_equal(found["y"][..., 0], 2 * found["x"])
    with pytest.raises(ValueError, match="not a multiple of accumulate=5"):
        step.microbatches(batch, 5)


def test_steps_and_microbatches_draw_different_numbers():
    def loss_fn(params, frozen, batch, key):
        return jnp.sum(params["w"] ** 2), {"draw": jax.random.uniform(key)}

    tx, draws = optax.sgd(0.1), []
    for accumulate in (1, 2):
        carried = state.init({"w": jnp.ones(2)}, tx, jax.random.key(0), False)
        apply = step.make_step(loss_fn, tx, accumulate=accumulate).apply
        for _ in range(3):
            carried, metrics = apply(carried, {}, {}, {"x": jnp.zeros(4)})
            draws.append(float(metrics["draw"]))
    assert len(set(draws)) == 6


def test_a_bad_batch_changes_nothing_but_the_counters():
    tx = optimizer.make(config_of())
    carried, frozen = start(tx, averaged=True)
    apply = step.make_step(linear.loss_fn, tx, ema_decay=0.9).apply
    carried, _ = apply(carried, {}, frozen, as_arrays(linear.batch_at(0)))
    before = host((carried.params, carried.opt_state, carried.ema))
    bad = poisoned(as_arrays(linear.batch_at(1)))
    for count in (1, 2):
        carried, metrics = apply(carried, {}, frozen, bad)
        assert not np.isfinite(metrics["loss"]) and float(metrics["finite"]) == 0
        assert int(carried.bad_in_a_row) == int(carried.skipped) == count
    jax.tree.map(
        np.testing.assert_array_equal,
        before,
        host((carried.params, carried.opt_state, carried.ema)),
    )
    assert int(carried.step) == 3  # so that the next batch and key are used
    carried, metrics = apply(carried, {}, frozen, as_arrays(linear.batch_at(2)))
    assert int(carried.bad_in_a_row) == 0 and int(carried.skipped) == 2
    # Negative control: a good batch does move the parameters.
    assert not np.array_equal(
        before[0]["linear"]["kernel"], carried.params["linear"]["kernel"]
    )


def test_without_the_guard_the_bad_batch_would_destroy_the_parameters():
    tx = optimizer.make(config_of())
    carried, frozen = start(tx)
    bad = poisoned(as_arrays(linear.batch_at(1)))
    grads = jax.grad(lambda p: linear.loss_fn(p, frozen, bad, None)[0])(carried.params)
    updates, _ = tx.update(grads, carried.opt_state, carried.params)
    after = optax.apply_updates(carried.params, updates)
    assert np.isnan(after["linear"]["kernel"]).all()


def test_a_finite_loss_with_an_infinite_gradient_is_skipped_too():
    tx = optax.sgd(0.1)
    carried = state.init({"w": jnp.zeros(())}, tx, jax.random.key(0), False)
    apply = step.make_step(lambda p, f, b, k: (jnp.sqrt(p["w"]), {}), tx).apply
    carried, metrics = apply(carried, {}, {}, {"x": jnp.zeros(1)})
    assert float(metrics["loss"]) == 0.0
    assert int(carried.skipped) == 1 and float(carried.params["w"]) == 0.0


def test_the_average_follows_its_recursion():
    tx = optax.sgd(1.0)
    carried = state.init({"w": jnp.zeros(())}, tx, jax.random.key(0), True)
    # A loss of slope -1: the parameter after step n is n.
    apply = step.make_step(lambda p, f, b, k: (-p["w"], {}), tx, ema_decay=0.5).apply
    wanted = 0.0
    for n in range(30):
        carried, _ = apply(carried, {}, {}, {"x": jnp.zeros(1)})
        decay = min(0.5, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * (n + 1)
    # Thirty float32 roundings.
    np.testing.assert_allclose(carried.ema["w"], wanted, rtol=1e-5)
    assert float(carried.ema["w"]) != float(carried.params["w"])


def test_fixed_parameters_reach_the_loss_and_stay():
    tx = optax.sgd(0.1)
    carried = state.init({"a": jnp.ones(())}, tx, jax.random.key(0), False)
    fixed = {"b": jnp.full((), 3.0)}
    apply = step.make_step(lambda p, f, b, k: (p["a"] * p["b"], {}), tx).apply
    carried, metrics = apply(carried, fixed, {}, {"x": jnp.zeros(1)})
    assert float(metrics["loss"]) == 3.0
    # The slope of a * b in a is b = 3; float32 holds 0.7 to 1e-7.
    assert float(carried.params["a"]) == pytest.approx(0.7, rel=1e-6)
    assert float(fixed["b"]) == 3.0 and set(carried.params) == {"a"}


def test_low_precision_losses_are_reported_in_float32():
    tx = optax.sgd(0.1)
    carried = state.init(
        {"w": jnp.ones((), jnp.bfloat16)}, tx, jax.random.key(0), False
    )
    apply = step.make_step(lambda p, f, b, k: (p["w"] ** 2, {"m": p["w"]}), tx).apply
    carried, metrics = apply(carried, {}, {}, {"x": jnp.zeros(1)})
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {jnp.dtype("float32")}
    assert carried.params["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("metrics", [{"loss": 0.0}, {"map": jnp.zeros(3)}])
def test_metrics_that_are_no_scalars_or_take_our_names_are_refused(metrics):
    tx = optax.sgd(0.1)
    carried = state.init({"w": jnp.ones(())}, tx, jax.random.key(0), False)
    apply = step.make_step(lambda p, f, b, k: (p["w"], metrics), tx).apply
    with pytest.raises(ValueError, match=f"metric '{next(iter(metrics))}'"):
        apply(carried, {}, {}, {"x": jnp.zeros(1)})


def test_a_transport_that_draws_noise_may_keep_a_typed_key():
    def update(grads, key, params):
        key, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, grads["w"].shape)
        return {"w": grads["w"] + noise}, key

    noisy = optax.GradientTransformation(lambda _: jax.random.key(7), update)
    tx = optimizer.make(config_of(optimizer="sgd"), noisy)
    carried = state.init({"w": jnp.zeros(())}, tx, jax.random.key(0), False)
    apply = step.make_step(lambda p, f, b, k: (0 * p["w"], {}), tx).apply
    values = [0.0]
    for _ in range(3):
        carried, _ = apply(carried, {}, {}, {"x": jnp.zeros(1)})
        values.append(float(carried.params["w"]))
    assert len(set(values)) == 4


def test_an_epoch_in_one_program_is_its_steps_one_by_one():
    tx = optimizer.make(config_of())
    rows = as_arrays(linear.batch_at(0, batch_size=12))
    order = np.random.default_rng(0).permutation(12).reshape(3, 4).astype(np.int32)
    carried, frozen = start(tx, averaged=True)
    apply = step.make_step(linear.noisy_loss_fn, tx, ema_decay=0.9).apply
    losses = []
    for places in order:
        batch = jax.tree.map(lambda leaf, places=places: leaf[places], rows)
        carried, metrics = apply(carried, {}, frozen, batch)
        losses.append(float(metrics["loss"]))
    again, frozen = start(tx, averaged=True)
    epoch = jax.jit(step.pure_epoch(linear.noisy_loss_fn, tx, ema_decay=0.9))
    again, metrics = epoch(again, {}, frozen, rows, jnp.asarray(order))
    # The same operations; a scan may fuse them otherwise.
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-6)
    for name in ("params", "ema", "opt_state", "step"):
        found, wanted = (jax.tree.leaves(getattr(s, name)) for s in (again, carried))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_a_transport_may_read_frozen_weights():
    def update(grads, state, params=None, *, frozen):
        return jax.tree.map(lambda grad: grad * frozen["factor"], grads), state

    scaling = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    results = []
    for transport, factor in ((scaling, 3.0), (None, 1.0)):
        tx = optimizer.make(config_of(optimizer="sgd", momentum=0.0), transport)
        carried, frozen = start(tx)
        before = host(carried.params["linear"])
        apply = step.make_step(linear.loss_fn, tx).apply
        frozen = frozen | {"factor": jnp.asarray(factor)}
        carried, _ = apply(carried, {}, frozen, as_arrays(linear.batch_at(0)))
        results.append(
            np.asarray(carried.params["linear"]["kernel"]) - before["kernel"]
        )
    np.testing.assert_allclose(results[0], 3 * results[1], rtol=1e-5)
