"""Structure of masked inversion and composed sampling, on an untrained network.

The network is two circular 3x3 convolutions and the mean over the image, so that every
pixel of its output depends on every pixel of its input: nothing here can pass because
information did not travel. A skip makes it a rough denoiser, which keeps latents near
unit size; without it they grow past 100 and rounding grows with them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import inversion, schedules

ALPHAS = schedules.alphas_cumprod()
BATCH, SIZE, CHANNELS, WIDTH = 2, 8, 4, 8


def make_weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "into": 0.3 * rng.standard_normal((9 * CHANNELS, WIDTH)),
        "out": 0.1 * rng.standard_normal((9 * WIDTH, CHANNELS)),
        "mean": rng.standard_normal((CHANNELS, WIDTH)),
        "time": rng.standard_normal(WIDTH),
        "context": rng.standard_normal((3, WIDTH)),
    }


def network(xp, weights, latents, timesteps, context):
    """[B, h, w, C], [B], [B] int -> noise_pred; `xp` is numpy or jax.numpy."""

    def convolve(x, kernel):
        wide = xp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        shifts = [wide[:, i : i + SIZE, j : j + SIZE] for i, j in np.ndindex(3, 3)]
        return xp.concatenate(shifts, -1) @ kernel

    hidden = convolve(latents, weights["into"])
    hidden = hidden + (latents.mean((1, 2)) @ weights["mean"])[:, None, None]
    told = timesteps[:, None] / 1000 * weights["time"] + weights["context"][context]
    bent = convolve(xp.tanh(hidden + told[:, None, None]), weights["out"])
    return 0.9 * latents + bent


WEIGHTS64 = make_weights()
WEIGHTS = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), WEIGHTS64)


def predict(latents, timesteps, context):
    rows = jnp.broadcast_to(jnp.asarray(context), latents.shape[:1])
    return network(jnp, WEIGHTS, latents, timesteps, rows)


def background_fn(latents, timesteps):
    return predict(latents, timesteps, 0)


def pair_fn(latents, background_latents, timesteps, context=1):
    """One call on 2B rows, as a method makes it; B rows in a replay."""
    if background_latents is None:
        return predict(latents, timesteps, context), None
    rows = jnp.repeat(jnp.stack([jnp.asarray(context), jnp.asarray(0)]), len(latents))
    stacked = jnp.concatenate([latents, background_latents])
    both = predict(stacked, jnp.concatenate([timesteps, timesteps]), rows)
    return tuple(jnp.split(both, 2))


def tables(num_steps=50, inversion_time="source", final_alpha="one"):
    levels = schedules.levels(1000, num_steps, "trailing")
    return (
        schedules.inversion_table(ALPHAS, levels, inversion_time, final_alpha),
        schedules.sampling_table(ALPHAS, levels, final_alpha),
    )


@pytest.fixture(scope="module")
def normal():
    noise = np.random.default_rng(5).standard_normal((BATCH, SIZE, SIZE, CHANNELS))
    return jnp.asarray(noise + 0.5, jnp.float32)


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros((BATCH, SIZE, SIZE, 1), np.float32)
    mask[0, 2:5, 3:7] = 1
    mask[1, 0:2, 0:5] = 1
    return jnp.asarray(mask)


@functools.partial(jax.jit, static_argnames=("fixed_point_iterations",))
def invert(normal, mask, table, fixed_point_iterations=0):
    return inversion.masked_invert(
        background_fn, normal, mask, table, fixed_point_iterations, keep_trajectory=True
    )


@functools.partial(jax.jit, static_argnames="eta")
def sample(start, mask, table, trajectory=None, **noise):
    return inversion.compose_sample(pair_fn, start, mask, table, trajectory, **noise)


@functools.partial(jax.jit, static_argnames=("leak",))
def compose(start, mask, table, context, leak):
    def leaking(latents, background_latents, timesteps):
        if leak == "background sees defect":
            return pair_fn(latents, latents, timesteps, context)
        if leak == "whole image by defect branch":
            defect, _ = pair_fn(latents, background_latents, timesteps, context)
            return defect, defect
        return pair_fn(latents, background_latents, timesteps, context)

    return inversion.compose_sample(leaking, start, mask, table)


def generate(normal, mask, key, context, leak=None):
    """The whole of Algorithm 1; `leak` breaks it in one of two ways."""
    up, down = tables()
    inverted, _ = invert(normal, mask, up)
    start = inversion.start_latents(
        inverted, mask, jax.random.normal(key, inverted.shape)
    )
    return compose(start, mask, down, context, leak)


def outside(mask, array):
    return np.abs(np.where(np.asarray(mask) > 0.5, 0, array)).max()


def inside(mask, array):
    return np.abs(np.where(np.asarray(mask) > 0.5, array, 0)).max()


@pytest.mark.parametrize("inversion_time", schedules.INVERSION_TIMES)
@pytest.mark.parametrize("iterations", [0, 3])
def test_hole_stays_zero_at_every_level(normal, mask, inversion_time, iterations):
    up, _ = tables(50, inversion_time)
    noised, trajectory = invert(normal, mask, up, iterations)
    assert trajectory.shape == (51, *normal.shape)
    assert inside(mask[None], trajectory) == 0
    assert inside(mask, noised) == 0
    assert outside(mask, noised) > 0.1  # the background did move
    np.testing.assert_array_equal(trajectory[-1], noised)
    np.testing.assert_array_equal(trajectory[0], inversion.hide_defect(normal, mask))


def test_nan_in_the_hole_does_not_leak(normal, mask):
    up, _ = tables(10)
    spoiled = jnp.where(mask > 0.5, jnp.nan, normal)

    def overflowing(latents, timesteps):
        noise_pred = background_fn(latents, timesteps)
        return jnp.where(mask > 0.5, jnp.inf, noise_pred)

    clean, _ = inversion.masked_invert(background_fn, normal, mask, up)
    noised, _ = inversion.masked_invert(overflowing, spoiled, mask, up)
    np.testing.assert_allclose(noised, clean, atol=1e-6)  # other fusion, same sums
    # Negative control: multiplying by {0, 1} would have let it through.
    assert np.isnan((1 - mask) * spoiled).any()


def test_background_is_bitwise_independent_of_seed_and_prompt(normal, mask):
    first = generate(normal, mask, jax.random.key(1), 1)
    second = generate(normal, mask, jax.random.key(2), 2)
    assert outside(mask, first - second) == 0
    assert inside(mask, first - second) > 0.5
    assert np.isfinite(first).all()


@pytest.mark.parametrize(
    "leak", ["background sees defect", "whole image by defect branch"]
)
def test_background_depends_on_the_defect_when_the_structure_is_broken(
    normal, mask, leak
):
    first = generate(normal, mask, jax.random.key(1), 1, leak)
    second = generate(normal, mask, jax.random.key(2), 2, leak)
    assert outside(mask, first - second) > 0.1


def test_nan_of_the_defect_branch_outside_the_mask_is_never_read(normal, mask):
    _, down = tables(10)

    def noisy(latents, background_latents, timesteps):
        defect, background = pair_fn(latents, background_latents, timesteps)
        return (
            jnp.where(mask > 0.5, defect, jnp.nan),
            jnp.where(mask > 0.5, jnp.nan, background),
        )

    assert np.isfinite(inversion.compose_sample(noisy, normal, mask, down)).all()


def test_replay_returns_the_background_bit_for_bit(normal, mask):
    # "first" makes alpha(tau_0) < 1, so that scaling back and forth would round.
    up, down = tables(50, final_alpha="first")
    inverted, trajectory = invert(normal, mask, up)
    start = inversion.start_latents(
        inverted, mask, jax.random.normal(jax.random.key(0), inverted.shape)
    )
    replayed = sample(start, mask, down, trajectory)
    assert outside(mask, replayed - normal) == 0
    recomputed = sample(start, mask, down)
    assert outside(mask, recomputed - normal) > 1e-3  # negative control
    assert inside(mask, replayed - normal) > 0.1


def test_replay_and_recompute_agree_when_the_inversion_is_exact(normal, mask):
    """A noise that depends on nothing but time inverts exactly."""

    def noise_fn(latents, timesteps):
        wave = jnp.sin(timesteps / 100)[:, None, None, None]
        return jnp.broadcast_to(wave, latents.shape)

    def both(latents, background_latents, timesteps):
        return predict(latents, timesteps, 1), noise_fn(latents, timesteps)

    up, down = tables(20, "target")
    inverted, trajectory = inversion.masked_invert(
        noise_fn, normal, mask, up, keep_trajectory=True
    )
    start = inversion.start_latents(
        inverted, mask, jax.random.normal(jax.random.key(0), inverted.shape)
    )
    recomputed = inversion.compose_sample(both, start, mask, down)
    replayed = inversion.compose_sample(both, start, mask, down, trajectory)
    # Equal but for the order of float32 sums of numbers up to sigma_S = 14.6.
    np.testing.assert_allclose(recomputed, replayed, atol=1e-4)


def test_start_latents_are_unit_noise_in_the_hole_only(normal):
    mask = jnp.zeros((BATCH, SIZE, SIZE, 1)).at[:, :4].set(1.0)
    wide = jnp.tile(normal, (32, 1, 1, 1))  # [64, 8, 8, 4]
    masks = jnp.tile(mask, (32, 1, 1, 1))
    start = inversion.start_latents(
        wide, masks, jax.random.normal(jax.random.key(0), wide.shape)
    )
    np.testing.assert_array_equal(start[:, 4:], wide[:, 4:])
    # 8192 draws: the mean scatters by 0.011, the deviation by 0.008; 4 sigma.
    assert abs(float(start[:, :4].mean())) < 0.044
    assert abs(float(start[:, :4].std()) - 1) < 0.031


def transcription(normal, mask, noise, num_steps):
    """Eqs. 8-9 as printed, in float64 numpy, on latents (not divided by root alpha)."""

    def e(z, t, context):
        rows = np.full(len(z), context)
        return network(np, WEIGHTS64, z, np.full(len(z), float(t)), rows)

    grid = np.round(np.linspace(0, 1000, num_steps + 1)).astype(int) - 1
    alpha = np.append(1.0, ALPHAS[grid[1:]])
    sigma = np.sqrt(1 / alpha - 1)
    t = np.maximum(grid, 0)
    z = (1 - mask) * normal
    for i in range(1, num_steps + 1):
        step = (1 - mask) * (sigma[i] - sigma[i - 1]) * e(z, t[i - 1], 0)
        z = np.sqrt(alpha[i]) * (z / np.sqrt(alpha[i - 1]) + step)
    inverted, z = z, z + mask * noise
    for i in range(num_steps, 0, -1):
        composed = (1 - mask) * e((1 - mask) * z, t[i], 0) + mask * e(z, t[i], 1)
        step = (sigma[i - 1] - sigma[i]) * composed
        z = np.sqrt(alpha[i - 1]) * (z / np.sqrt(alpha[i]) + step)
    return inverted, z


def test_both_loops_match_a_transcription_of_the_equations(normal, mask):
    key = jax.random.key(3)
    up, down = tables(50)
    inverted, _ = invert(normal, mask, up)
    start = inversion.start_latents(
        inverted, mask, jax.random.normal(key, inverted.shape)
    )
    found = jax.jit(lambda start: inversion.compose_sample(pair_fn, start, mask, down))(
        start
    )
    noise = np.asarray(jax.random.normal(key, normal.shape), np.float64)
    wanted_inverted, wanted = transcription(
        np.asarray(normal, np.float64), np.asarray(mask, np.float64), noise, 50
    )
    # float32 rounding of 50 steps on latents that reach 10; 4e-6 seen.
    np.testing.assert_allclose(inverted, wanted_inverted, atol=1e-5)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_transcription_is_missed_when_the_inversion_is_told_another_time(normal, mask):
    up, _ = tables(50, "target")
    inverted, _ = invert(normal, mask, up)
    wanted, _ = transcription(
        np.asarray(normal, np.float64), np.asarray(mask, np.float64), 0.0, 50
    )
    assert np.abs(inverted - wanted).max() > 1e-3


def test_scanned_sampling_equals_a_python_loop(normal, mask):
    _, down = tables(50)
    scanned = sample(normal, mask, down)
    latents = normal
    for i in range(50):
        row = jax.tree.map(lambda column, i=i: column[i : i + 1], down)
        latents = sample(latents, mask, row)
    # The loop scales by root alpha at each step: 100 more roundings.
    np.testing.assert_allclose(scanned, latents, atol=1e-5)


def test_one_trace_per_shape_and_number_of_steps(normal, mask):
    traces = []

    def counted_pair(latents, background_latents, timesteps):
        traces.append("sample")
        return pair_fn(latents, background_latents, timesteps)

    def counted(latents, timesteps):
        traces.append("invert")
        return background_fn(latents, timesteps)

    @jax.jit
    def run(normal, mask, key, up, down):
        inverted, _ = inversion.masked_invert(counted, normal, mask, up, 2)
        start = inversion.start_latents(
            inverted, mask, jax.random.normal(key, inverted.shape)
        )
        return inversion.compose_sample(counted_pair, start, mask, down)

    def count(*inputs):
        traces.clear()
        size = str(jax.make_jaxpr(run)(*inputs)).count(" = ")
        return traces.count("invert"), traces.count("sample"), size

    key = jax.random.key(0)
    short, long = (count(normal, mask, key, *tables(steps)) for steps in (2, 50))
    # The program does not grow with the number of steps.
    assert short == long and max(long[:2]) <= 2
    run(normal, mask, key, *tables(50))
    traces.clear()
    run(normal + 1, 1 - mask, jax.random.key(9), *tables(50, "target", "first"))
    assert not traces
    assert max(count(normal[:1], mask[:1], key, *tables(50))[:2]) > 0  # control


def test_fixed_point_makes_both_inversion_times_agree(normal, mask):
    """Iterated to the fixed point, the first guess no longer matters."""
    gaps = []
    for iterations in (0, 3, 12):
        source, _ = invert(normal, mask, tables(50, "source")[0], iterations)
        target, _ = invert(normal, mask, tables(50, "target")[0], iterations)
        gaps.append(float(jnp.abs(source - target).max()))
    assert gaps[0] > 1e-2
    assert gaps[1] < 0.5 * gaps[0]
    assert gaps[2] < 1e-4  # float32 rounding of 50 steps


def test_eta_adds_noise_inside_the_mask_only(normal, mask):
    _, down = tables(50)
    plain = sample(normal, mask, down)
    noisy = [
        sample(normal, mask, down, eta=0.5, key=jax.random.key(seed)) for seed in (0, 1)
    ]
    assert outside(mask, noisy[0] - noisy[1]) == 0
    assert inside(mask, noisy[0] - noisy[1]) > 0.1
    # Two programs, so not bitwise: the fusion may differ.
    assert outside(mask, noisy[0] - plain) < 1e-5


def test_empty_full_and_single_masks(normal, mask):
    up, down = tables(50)
    for masks, batch in [(mask * 0, 2), (mask * 0 + 1, 2), (mask[:1], 1)]:
        inverted, trajectory = invert(normal[:batch], masks, up)
        start = inversion.start_latents(
            inverted, masks, jax.random.normal(jax.random.key(0), inverted.shape)
        )
        found = sample(start, masks, down)
        replayed = sample(start, masks, down, trajectory)
        assert np.isfinite(found).all() and found.shape == normal[:batch].shape
        assert outside(masks, replayed - normal[:batch]) == 0
    empty, _ = invert(normal, mask * 0, up)
    kept = inversion.start_latents(
        empty, mask * 0, jax.random.normal(jax.random.key(0), empty.shape)
    )
    np.testing.assert_array_equal(kept, empty)
    full, _ = invert(normal, mask * 0 + 1, up)
    assert np.all(np.asarray(full) == 0)


def test_one_image_gives_what_it_gives_in_a_batch(normal, mask):
    both = generate(normal, mask, jax.random.key(1), 1)
    up, down = tables()
    inverted, _ = invert(normal[:1], mask[:1], up)
    noise = jax.random.normal(jax.random.key(1), normal.shape)[:1]
    start = jnp.where(mask[:1] > 0.5, noise, inverted)
    alone = sample(start, mask[:1], down)
    # Other shapes sum in another order.
    np.testing.assert_allclose(alone, both[:1], atol=1e-5)
