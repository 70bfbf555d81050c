"""The loss of arXiv 2411.16767, Eqs. 5-7, on a stand-in network and on a real UNet."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_defect_generation import training

from jaxanom.diffusion import schedules
from jaxanom.methods.defect_generation import model, objective
from jaxanom.models import backbones
from jaxanom.models.latent import unet

BATCH, SIDE, CHANNELS, TOKENS, WIDTH = 2, 4, 3, 2, 5
GRIDS = ((SIDE, SIDE),)
ALPHAS = schedules.alphas_cumprod()
PARAMS = {"gain": jnp.asarray(0.7)}


def stand_in(params, latents, timesteps, context, bias):
    """Reads the context as far as the bias lets each pixel, then mixes all pixels.

    In that order: what a pixel reads must reach the others, as in a UNet.
    """
    rows, height, width, channels = latents.shape
    allowed = jnp.ones((rows, height * width, context.shape[1]))
    if bias is not None:
        allowed = (bias[height * width] > -1).astype(jnp.float32)
    read = (allowed @ context).reshape(rows, height, width, -1)[..., :channels]
    hidden = latents + read
    mixed = hidden + 0.5 * hidden.mean((1, 2), keepdims=True)
    return params["gain"] * mixed + 1e-3 * timesteps[:, None, None, None]


def read_params(params, frozen):
    return params


def contexts(seed=3):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return model.Contexts(draw(3, TOKENS, WIDTH), draw(2, TOKENS, WIDTH))


def inputs(seed=0):
    """Row 0 is defective with an off-centre mask, row 1 is normal."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((BATCH, SIDE, SIDE), np.float32)
    mask[0, 1:3, 2:4] = 1
    batch = {
        "latents": jnp.asarray(rng.normal(size=(BATCH, SIDE, SIDE, CHANNELS))),
        "latent_mask": jnp.asarray(mask),
        "label": jnp.asarray([1, 0]),
        "defect_id": jnp.asarray([2, 0]),
        "category_id": jnp.asarray([1, 0]),
        "valid": jnp.ones(BATCH, bool),
    }
    bank = np.zeros((1, SIDE, SIDE), np.float32)
    bank[0, 0, 0] = 1
    frozen = {"contexts": contexts()._asdict(), "latent_bank": jnp.asarray(bank)}
    return batch, frozen


def loss_with(apply=stand_in, **options):
    return objective.loss_fn(apply, read_params, ALPHAS, training(**options), GRIDS)


def value(key=0, batch=None, **options):
    rows, frozen = inputs()
    loss, metrics = loss_with(**options)(
        PARAMS, frozen, rows if batch is None else batch, jax.random.key(key)
    )
    return float(loss), {name: float(part) for name, part in metrics.items()}


def defective():
    """Both rows are defects, which keep their own masks, empty or not."""
    rows, _ = inputs()
    return rows | {"label": jnp.ones(BATCH, int)}


def calls(batch=None, **options):
    """Returns what the network was given, as lists of arrays, one entry a call."""
    seen = []

    def spy(params, latents, timesteps, context, bias):
        seen.append((latents, timesteps, context, bias))
        return stand_in(params, latents, timesteps, context, bias)

    rows, frozen = inputs()
    loss_with(spy, **options)(PARAMS, frozen, batch or rows, jax.random.key(0))
    return seen


def test_the_loss_is_the_sum_of_its_two_parts():
    loss, parts = value()
    assert loss == pytest.approx(parts["matching"] + parts["background"], rel=1e-6)
    assert min(parts.values()) > 0


def test_a_velocity_network_is_trained_on_its_velocity():
    """With ALPHAS of one value, the loss is the noise loss divided by that alpha."""
    rows, frozen = inputs()
    flat = np.full(10, 0.04)
    key = jax.random.key(0)

    def total(is_velocity):
        options = training()
        loss = objective.loss_fn(
            stand_in, read_params, flat, options, GRIDS, is_velocity
        )
        return float(loss(PARAMS, frozen, rows, key)[0])

    assert total(True) == pytest.approx(total(False) / 0.04, rel=1e-5)


def test_one_network_call_sees_all_latents_and_the_same_ones_with_the_hole_cut_out():
    ((latents, timesteps, context, bias),) = calls(defective())
    first, second = np.split(np.asarray(latents), 2)
    mask = np.asarray(inputs()[0]["latent_mask"])[..., None] > 0.5
    np.testing.assert_array_equal(second, np.where(mask, 0, first))
    assert np.abs(first[0][mask[0, ..., 0]]).min() > 0
    np.testing.assert_array_equal(*np.split(np.asarray(timesteps), 2))
    for array in jax.tree.leaves(bias):
        np.testing.assert_array_equal(*np.split(np.asarray(array), 2))
    rows = contexts()
    c1, c2 = np.split(np.asarray(context), 2)
    np.testing.assert_array_equal(c1[0, :TOKENS], rows.defect[2])
    np.testing.assert_array_equal(c2[0, :TOKENS], rows.defect[0])
    np.testing.assert_array_equal(c1[0, TOKENS:], rows.background[1])
    np.testing.assert_array_equal(c2[:, TOKENS:], c1[:, TOKENS:])


def test_normal_rows_get_a_drawn_mask_and_defects_keep_their_own():
    def hole(batch):
        ((latents, *_),) = calls(batch)
        first, second = np.split(np.asarray(latents), 2)
        return (first != second).any(-1)

    own = np.asarray(inputs()[0]["latent_mask"]) > 0.5
    drawn, bare = hole(None), hole(defective())
    np.testing.assert_array_equal(drawn[0], own[0])
    assert drawn[1].sum() == 1  # the bank's only mask has one cell
    np.testing.assert_array_equal(bare, own)


def test_a_share_of_the_normal_rows_is_asked_for_a_defect_and_defects_keep_theirs():
    def prompts(**options):
        ((_, _, context, _),) = calls(**options)
        return np.split(np.asarray(context), 2)[0][:, :TOKENS]

    rows = contexts()
    plain, always = prompts(), prompts(refusal_share=1.0)
    np.testing.assert_array_equal(plain[1], rows.defect[0])  # the hole's prompt
    np.testing.assert_array_equal(always[0], rows.defect[2])
    assert any((always[1] == asked).all() for asked in np.asarray(rows.defect[1:]))
    # Half of many rows: 400 draws differ from 200 by 3 deviations of 10 at most.
    asked = objective.refused(
        rows,
        jnp.zeros(400, int),
        training(refusal_share=0.5),
        jax.random.key(0),
    )
    assert abs(int((asked > 0).sum()) - 200) <= 30
    assert set(np.asarray(asked)) == set(range(len(rows.defect)))


def test_a_share_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"config\.defect_generation\.refusal_share"):
        training(refusal_share=1.5)


def test_full_background_input_cuts_nothing_out():
    ((latents, *_),) = calls(background_input="full")
    np.testing.assert_array_equal(*np.split(np.asarray(latents), 2))


def test_a_hidden_background_leaves_the_defect_branch_its_mask_only():
    ((latents, *_),) = calls(defective(), hide_background=True)
    first = np.asarray(latents)[0]
    inside = np.asarray(inputs()[0]["latent_mask"])[0] > 0.5
    assert (first[~inside] == 0).all() and (first[inside] != 0).all()


def test_prompts_are_plain_and_unbiased_without_masked_attention():
    ((_, _, context, bias),) = calls(masked_attention=False)
    assert bias is None
    rows = contexts()
    c1, c2 = np.split(np.asarray(context), 2)
    np.testing.assert_array_equal(c1[0], rows.defect[2])
    np.testing.assert_array_equal(c2[0], rows.background[1])


def test_each_ablation_changes_the_loss_and_only_as_it_says():
    loss, parts = value()
    without, same = value(background_weight=0.0)
    assert same == parts and without == pytest.approx(parts["matching"], rel=1e-6)
    doubled, _ = value(background_weight=2.0)
    assert doubled == pytest.approx(parts["matching"] + 2 * parts["background"])
    for change in (
        {"background_input": "full"},
        {"masked_attention": False},
        {"hide_background": True},
        {"area_balanced": True},
    ):
        assert value(**change)[0] != pytest.approx(loss, rel=1e-4), change
    # Hiding the background from the defect branch leaves the other branch alone.
    hidden = value(hide_background=True)[1]
    assert hidden["background"] == pytest.approx(parts["background"], rel=1e-6)
    full = value(background_input="full")[1]
    assert full["matching"] == pytest.approx(parts["matching"], rel=1e-6)


def test_an_oracle_for_both_branches_has_no_loss():
    """The noise itself, recovered where each branch may see it."""
    rows, frozen = inputs()

    def oracle(params, latents, timesteps, context, bias):
        clean = jnp.concatenate([rows["latents"]] * 2)
        alpha = jnp.asarray(ALPHAS, jnp.float32)[timesteps][:, None, None, None]
        return (latents - jnp.sqrt(alpha) * clean) / jnp.sqrt(1 - alpha)

    loss, _ = loss_with(oracle)(PARAMS, frozen, rows, jax.random.key(1))
    # Squares of float32 rounding, divided by the least noise of the draw.
    assert float(loss) < 1e-6


def test_the_key_decides_every_draw():
    assert value(key=1) == value(key=1)
    assert value(key=1)[0] != value(key=2)[0]


def test_an_unknown_background_input_names_its_key():
    with pytest.raises(
        ValueError, match=r"config\.defect_generation\.background_input"
    ):
        loss_with(background_input="none")


def test_a_training_step_is_traced_once():
    traces = []

    def counting(*args):
        traces.append(1)
        return stand_in(*args)

    step = jax.jit(jax.value_and_grad(loss_with(counting), has_aux=True))
    rows, frozen = inputs()
    for number in range(3):
        rows = inputs(number)[0]
        step(PARAMS, frozen, rows, jax.random.key(number))
    assert len(traces) == 1


@pytest.fixture(scope="module")
def real(tiny_backbone):
    """A random UNet with two grids, and prompts of its width."""
    tower = backbones.load_unet(tiny_backbone)
    config = tower.module.config
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    width = config.cross_attention_dim
    prompts = model.Contexts(draw(3, 4, width), draw(2, 4, width))

    def apply(params, latents, timesteps, context, bias):
        return tower.module.apply({"params": params}, latents, timesteps, context, bias)

    return types.SimpleNamespace(
        apply=apply,
        params=tower.params,
        contexts=prompts,
        grids=unet.attention_resolutions(config, SIDE, SIDE),
        latents=draw(BATCH, SIDE, SIDE, config.in_channels),
    )


def prompted(real, mask, defect_id=(2, 1), prompts=None):
    return model.prompted(
        real.contexts if prompts is None else prompts,
        jnp.asarray(mask),
        jnp.asarray(defect_id),
        jnp.asarray([1, 0]),
        training(),
        real.grids,
    )


def test_two_branches_in_one_call_are_the_two_branches_called_apart(real):
    mask = inputs()[0]["latent_mask"].at[1, 0, 0].set(1)
    prompt = prompted(real, mask)
    timesteps = jnp.asarray([900, 30])
    hidden = jnp.where(prompt.mask > 0.5, 0.0, real.latents)

    @jax.jit
    def both(params):
        network = real.apply, params, prompt
        pair = objective.pair_noise(*network, False)(real.latents, hidden, timesteps)
        apart = (
            objective.defect_noise(*network, False)(real.latents, timesteps),
            objective.background_noise(*network)(hidden, timesteps),
        )
        return pair, apart

    pair, apart = both(real.params)
    for one, other in zip(pair, apart, strict=True):
        # The same sums over another batch size: float32 rounding, no more.
        np.testing.assert_allclose(one, other, atol=1e-5)
    # Negative control: the branches are not the same function.
    assert float(jnp.abs(pair[0] - pair[1]).max()) > 1e-2


def test_a_full_mask_makes_the_unet_deaf_to_the_background_text_and_none_to_the_defect(
    real,
):
    timesteps = jnp.asarray([500, 500])
    changed = real.contexts._replace(background=real.contexts.background + 2.0)

    @jax.jit
    def noise(prompt, params):
        return objective.defect_noise(real.apply, params, prompt, False)(
            real.latents, timesteps
        )

    shape = (BATCH, SIDE, SIDE)
    full, empty = jnp.ones(shape), jnp.zeros(shape)
    for mask, other in (
        (full, {"prompts": changed}),
        (empty, {"defect_id": (1, 2)}),
    ):
        before = noise(prompted(real, mask), real.params)
        np.testing.assert_array_equal(
            before, noise(prompted(real, mask, **other), real.params)
        )
    for mask, other in (
        (empty, {"prompts": changed}),
        (full, {"defect_id": (1, 2)}),
    ):
        before = noise(prompted(real, mask), real.params)
        after = noise(prompted(real, mask, **other), real.params)
        assert float(jnp.abs(before - after).max()) > 1e-4
