"""DPM-Solver++(2M): its order, the paper's own form of it, and the background."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import inversion, multistep, schedules

MEAN, STD = 0.3, 0.5  # of the Gaussian data; not centred, so that signs matter
# sigma grows evenly in its logarithm, from 0.05 to 5: every move is of one length, and
# no level that has to be rounded to an index hides the order.
EVEN = 1 / (1 + np.geomspace(0.05, 5, 1000) ** 2)
USUAL = schedules.alphas_cumprod()
BATCH, SIZE, CHANNELS = 2, 6, 3


def down(alphas, levels, final_alpha="first"):
    return schedules.sampling_table(alphas, levels, final_alpha)


def gaussian_pair(latents, background_latents, timesteps):
    """The exact E[eps | z_t] for data N(MEAN, STD^2), in both branches."""
    alpha = jnp.asarray(EVEN, jnp.float32)[timesteps][:, None, None, None]
    variance = alpha * STD**2 + 1 - alpha
    exact = jnp.sqrt(1 - alpha) * (latents - jnp.sqrt(alpha) * MEAN) / variance
    return exact, exact


def gaussian_error(num_steps, solver):
    """RMS distance of a walk over the whole image from the exact path's end."""
    table = down(EVEN, schedules.levels(1000, num_steps))
    start = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    found = inversion.compose_sample(
        gaussian_pair, start, np.ones((2, 8, 8, 1)), table, solver=solver
    )
    # (u - MEAN) / sqrt(STD^2 + sigma^2) stays what it was along the path.
    sigma = float(table.sigma_from[0]), float(table.sigma_to[-1])
    shrunk = np.sqrt((STD**2 + sigma[1] ** 2) / (STD**2 + sigma[0] ** 2))
    exact = MEAN + (start / np.sqrt(table.alpha_from[0]) - MEAN) * shrunk
    gap = np.asarray(found) - exact * np.sqrt(table.alpha_to[-1])
    return float(np.sqrt(np.mean(gap**2)))


def slope(solver):
    """The power of S that the error falls with, fitted over S = 20 to 160."""
    steps = 20, 40, 80, 160
    errors = [gaussian_error(number, solver) for number in steps]
    return np.polyfit(np.log(steps), np.log(errors), 1)[0], errors


def test_the_error_falls_with_the_square_of_the_moves_and_with_ddim_by_one_power():
    second, errors = slope("dpmpp_2m")
    first, ddim_errors = slope("ddim")
    # At S = 20 terms of the next order still take a tenth. Float32 rounding of u, 5 at
    # the start, stays below 2e-6.
    assert -2.2 < second < -1.8, (second, errors)
    assert -1.15 < first < -0.85, (first, ddim_errors)
    assert all(a < b / 4 for a, b in zip(errors, ddim_errors, strict=True))
    assert min(errors) > 1e-5


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_another_share_of_the_change_is_of_first_order(factor, monkeypatch):
    """Negative control of the test above."""
    weights = multistep.change_weights
    monkeypatch.setattr(multistep, "change_weights", lambda t: factor * weights(t))
    assert slope("dpmpp_2m")[0] > -1.3


WEIGHTS = 0.4 * np.random.default_rng(1).standard_normal((2, CHANNELS, CHANNELS))


def network(xp, latents, timesteps, context):
    """Every output depends on every pixel; [B, h, w, C], [B] -> noise_pred."""
    mixed = latents.mean((1, 2), keepdims=True) @ WEIGHTS[0] + latents @ WEIGHTS[1]
    return 0.7 * latents + xp.tanh(
        mixed + timesteps[:, None, None, None] / 500 + context
    )


def pair_fn(latents, background_latents, timesteps, context=1.0):
    defect = network(jnp, latents, timesteps, context)
    if background_latents is None:
        return defect, None
    return defect, network(jnp, background_latents, timesteps, 0.0)


def background_fn(latents, timesteps):
    return network(jnp, latents, timesteps, 0.0)


def published_form(start, alphas, levels, final):
    """Algorithm 2 of arXiv 2211.01095 on latents x, in float64; first order at last."""
    alpha_bar = np.append(final, alphas[levels[1:]])[::-1]
    times = np.maximum(levels, 0)[::-1]
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha / sigma)

    def data(x, i):
        told = np.full(len(x), float(times[i]))
        return (x - sigma[i] * network(np, x, told, 1.0)) / alpha[i]

    x, buffer = start, []
    for i in range(1, len(times)):
        buffer.append(data(x, i - 1))
        guess, h = buffer[-1], lam[i] - lam[i - 1]
        if 1 < i < len(times) - 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            guess = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h) - 1) * guess
    return x


@pytest.mark.parametrize("final_alpha", schedules.FINAL_ALPHAS)
@pytest.mark.parametrize("spacing", ["trailing", "log_snr"])
def test_walks_are_those_of_the_published_algorithm(spacing, final_alpha):
    levels = schedules.log_snr_levels(USUAL, 12)
    if spacing == "trailing":
        levels = schedules.levels(1000, 12, spacing)
    start = np.random.default_rng(2).standard_normal((BATCH, SIZE, SIZE, CHANNELS))
    final = 1.0 if final_alpha == "one" else USUAL[0]
    wanted = published_form(start, USUAL, levels, final)
    hole = np.ones((BATCH, SIZE, SIZE, 1))
    table = down(USUAL, levels, final_alpha)
    start = jnp.asarray(start, jnp.float32)
    found, ddim = (
        inversion.compose_sample(pair_fn, start, hole, table, solver=solver)
        for solver in ("dpmpp_2m", "ddim")
    )
    # 12 float32 moves on u, which begins near 15 times the latents.
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert np.abs(ddim - wanted).max() > 1e-2


def test_first_and_last_moves_are_ddims_and_so_are_walks_of_two():
    for num_steps, final_alpha in ((1, "one"), (2, "one"), (2, "first"), (9, "one")):
        table = down(USUAL, schedules.levels(1000, num_steps), final_alpha)
        weights = np.asarray(multistep.change_weights(table))
        assert weights.shape == (num_steps,) and weights.dtype == np.float32
        assert weights[0] == 0 and weights[-1] == 0
        assert (weights[1:-1] > 0).all()


def test_levels_of_one_alpha_do_not_divide_by_zero():
    flat = np.sort(np.repeat(USUAL[::100], 2))[::-1]  # every level twice
    table = down(flat, np.arange(len(flat)))
    assert np.isfinite(multistep.change_weights(table)).all()


@pytest.fixture(scope="module")
def normal():
    noise = np.random.default_rng(5).standard_normal((BATCH, SIZE, SIZE, CHANNELS))
    return jnp.asarray(noise + 0.5, jnp.float32)


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros((BATCH, SIZE, SIZE, 1), np.float32)
    mask[0, 2:5, 1:5] = 1
    mask[1, 0:2, 0:3] = 1
    return jnp.asarray(mask)


def composed(normal, mask, replay, leaking=False):
    """Two seeds with two prompts, in one program; the background's latents of both."""
    levels = schedules.log_snr_levels(USUAL, 8)
    upward = schedules.inversion_table(USUAL, levels)
    table = down(USUAL, levels, "one")

    @jax.jit
    def sample(key, context):
        inverted, trajectory = inversion.masked_invert(
            background_fn, normal, mask, upward, keep_trajectory=True
        )
        return inversion.compose_sample(
            lambda z, seen, t: pair_fn(z, z if leaking else seen, t, context),
            inversion.start_latents(
                inverted, mask, jax.random.normal(key, inverted.shape)
            ),
            mask,
            table,
            trajectory if replay else None,
            solver="dpmpp_2m",
        )

    first, second = (
        np.asarray(sample(jax.random.key(seed), context))
        for seed, context in ((1, 1.0), (2, 0.3))
    )
    hole = np.broadcast_to(np.asarray(mask) > 0.5, first.shape)
    assert np.isfinite(first).all() and np.abs(first - second)[hole].max() > 0.1
    return first, np.abs(first - second)[~hole].max(), ~hole


@pytest.mark.parametrize("replay", [False, True])
def test_the_background_is_the_same_bits_for_every_seed_and_prompt(
    normal, mask, replay
):
    found, apart, outside = composed(normal, mask, replay)
    assert apart == 0
    if replay:
        np.testing.assert_array_equal(found[outside], np.asarray(normal)[outside])


def test_a_background_that_sees_the_defect_is_not_the_same(normal, mask):
    """Negative control of the test above."""
    assert composed(normal, mask, False, leaking=True)[1] > 1e-3


def test_the_background_moves_by_ddim_whatever_moves_the_defect(normal, mask):
    table = down(USUAL, schedules.levels(1000, 8), "one")
    one, other = (
        np.asarray(inversion.compose_sample(pair_fn, normal, mask, table, solver=name))
        for name in inversion.SOLVERS
    )
    hole = np.broadcast_to(np.asarray(mask) > 0.5, one.shape)
    # Two programs for the same sums: their fusion may differ.
    np.testing.assert_allclose(one[~hole], other[~hole], atol=1e-5)
    assert np.abs(one - other)[hole].max() > 1e-2


def test_nothing_outside_the_mask_reaches_the_remembered_guess(normal, mask):
    """NaN of the defect's branch outside the mask, at every level."""

    def noisy(latents, background_latents, timesteps):
        defect, background = pair_fn(latents, background_latents, timesteps)
        return jnp.where(mask > 0.5, defect, jnp.nan), background

    table = down(USUAL, schedules.levels(1000, 6))
    found = inversion.compose_sample(noisy, normal, mask, table, solver="dpmpp_2m")
    assert np.isfinite(found).all()


def test_the_network_is_traced_once_and_the_program_does_not_grow(normal, mask):
    def program(num_steps, solver):
        traces = []

        def counting(*inputs):
            traces.append(1)
            return pair_fn(*inputs)

        table = down(USUAL, schedules.levels(1000, num_steps))
        text = jax.make_jaxpr(
            lambda z: inversion.compose_sample(counting, z, mask, table, solver=solver)
        )(normal)
        return len(traces), str(text).count(" = ")

    short, long = program(3, "dpmpp_2m"), program(50, "dpmpp_2m")
    assert short == long and long[0] == program(50, "ddim")[0] <= 2


def test_wrong_options_are_named(normal, mask):
    table = down(USUAL, schedules.levels(1000, 4))

    def sample(**options):
        inversion.compose_sample(pair_fn, normal, mask, table, **options)

    with pytest.raises(
        ValueError, match="solver='heun'; choose one of \('ddim', 'dpmpp_2m'\)"
    ):
        sample(solver="heun")
    with pytest.raises(ValueError, match=r"eta=0\.5 with solver='dpmpp_2m'"):
        sample(solver="dpmpp_2m", eta=0.5, key=jax.random.key(0))
