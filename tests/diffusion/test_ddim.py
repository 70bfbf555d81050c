import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import ddim, schedules

ALPHAS = schedules.alphas_cumprod()
# sigma grows linearly from 0 to 5. With the usual schedules sigma starts like sqrt(t),
# where the error of S moves is log(S) / S, and halves only nearly.
SMOOTH = 1 / (1 + (np.arange(1, 1001) / 200) ** 2)
MEAN, STD = 0.3, 0.5  # of the Gaussian data; not centred, so that signs matter


def tables(num_steps, inversion_time="target", spacing="trailing", alphas=ALPHAS):
    levels = schedules.levels(1000, num_steps, spacing)
    return (
        schedules.inversion_table(alphas, levels, inversion_time),
        schedules.sampling_table(alphas, levels),
    )


def move(latents, noise_pred, alpha_from, alpha_to):
    """arXiv 2010.02502, eq. 12 with sigma = 0, as printed."""
    clean = (latents - jnp.sqrt(1 - alpha_from) * noise_pred) / jnp.sqrt(alpha_from)
    return jnp.sqrt(alpha_to) * clean + jnp.sqrt(1 - alpha_to) * noise_pred


def gaussian_noise_fn(latents, timesteps, alphas=ALPHAS):
    """The exact E[eps | z_t] for data N(MEAN, STD^2)."""
    alpha = jnp.asarray(alphas, jnp.float32)[timesteps][:, None, None, None]
    variance = alpha * STD**2 + 1 - alpha
    return jnp.sqrt(1 - alpha) * (latents - jnp.sqrt(alpha) * MEAN) / variance


def draw(seed=0, batch=2):
    noise = jax.random.normal(jax.random.key(seed), (batch, 4, 4, 3))
    return MEAN + STD * noise


def test_a_move_with_the_true_noise_lands_on_the_true_latents():
    clean, noise = draw(0), draw(1)
    for alpha_from, alpha_to in [(0.9, 0.2), (0.2, 0.9), (0.5, 1.0)]:
        start = np.sqrt(alpha_from) * clean + np.sqrt(1 - alpha_from) * noise
        wanted = np.sqrt(alpha_to) * clean + np.sqrt(1 - alpha_to) * noise
        reached = move(start, noise, alpha_from, alpha_to)
        # A handful of float32 operations on values near 1.
        np.testing.assert_allclose(reached, wanted, atol=2e-6)


def test_the_scaled_move_is_the_move_divided_by_root_alpha():
    latents, noise = draw(0), draw(1)
    up, down = tables(10)
    for table in (up, down):
        for i in range(10):
            row = jax.tree.map(lambda column, i=i: column[i], table)
            direct = move(latents, noise, row.alpha_from, row.alpha_to)
            scaled = ddim.scaled_move(
                ddim.scale(latents, row.alpha_from), noise, row.sigma_from, row.sigma_to
            )
            # 1 / sqrt(alpha) <= 14.7 magnifies float32 rounding of values near 1.
            np.testing.assert_allclose(
                ddim.unscale(scaled, row.alpha_to), direct, atol=1e-5
            )


def smooth_noise_fn(latents, timesteps):
    return gaussian_noise_fn(latents, timesteps, SMOOTH)


def test_walk_converges_to_the_exact_gaussian_path_at_first_order():
    clean = draw(batch=4)
    errors = []
    for num_steps in (50, 100, 200):
        up, _ = tables(num_steps, alphas=SMOOTH)
        grown = np.sqrt(STD**2 + up.sigma_to[-1] ** 2) / STD
        exact = np.sqrt(up.alpha_to[-1]) * (MEAN + (clean - MEAN) * grown)
        found = ddim.walk(smooth_noise_fn, clean, up)
        errors.append(float(jnp.sqrt(jnp.mean((found - exact) ** 2))))
    ratios = [errors[0] / errors[1], errors[1] / errors[2]]
    # First order: 2, up to terms of the next order in the step.
    assert all(1.8 < ratio < 2.2 for ratio in ratios), (errors, ratios)


def test_walk_misses_the_exact_path_when_told_the_wrong_time():
    """Negative control of the test above: the error then stays."""
    clean = draw(batch=4)
    errors = []
    for num_steps in (50, 200):
        up, _ = tables(num_steps, alphas=SMOOTH)
        grown = np.sqrt(STD**2 + up.sigma_to[-1] ** 2) / STD
        exact = np.sqrt(up.alpha_to[-1]) * (MEAN + (clean - MEAN) * grown)
        late = up._replace(timesteps=np.minimum(up.timesteps + 100, 999))
        found = ddim.walk(smooth_noise_fn, clean, late)
        errors.append(float(jnp.sqrt(jnp.mean((found - exact) ** 2))))
    assert errors[1] > 0.8 * errors[0]


@pytest.mark.parametrize("inversion_time", schedules.INVERSION_TIMES)
def test_round_trip_error_halves_when_moves_double(inversion_time):
    clean = draw(batch=4)
    errors = []
    for num_steps in (50, 100, 200):
        up, down = tables(num_steps, inversion_time, alphas=SMOOTH)
        noised = ddim.walk(smooth_noise_fn, clean, up)
        back = ddim.walk(smooth_noise_fn, noised, down)
        errors.append(float(jnp.sqrt(jnp.mean((back - clean) ** 2))))
    ratios = [errors[0] / errors[1], errors[1] / errors[2]]
    # First order: 2, up to terms of the next order in the step.
    assert all(1.8 < ratio < 2.2 for ratio in ratios), (errors, ratios)


def test_scanned_walk_equals_the_python_loop_of_moves():
    up, _ = tables(50)
    latents = draw()
    walked = jax.jit(lambda z: ddim.walk(gaussian_noise_fn, z, up))(latents)
    for i in range(50):
        timesteps = jnp.full((2,), up.timesteps[i])
        noise_pred = gaussian_noise_fn(latents, timesteps)
        latents = move(latents, noise_pred, up.alpha_from[i], up.alpha_to[i])
    # 50 float32 moves, in two algebraic forms.
    np.testing.assert_allclose(walked, latents, atol=1e-5)


def test_network_is_traced_once_whatever_the_number_of_steps():
    traces = []

    def counted(latents, timesteps):
        traces.append(1)
        return gaussian_noise_fn(latents, timesteps)

    walk = jax.jit(lambda z, table: ddim.walk(counted, z, table))
    seen = []
    for num_steps in (2, 50, 200):
        up, _ = tables(num_steps)
        traces.clear()
        walk(draw(), up)
        seen.append(len(traces))
    assert seen[0] == seen[1] == seen[2] <= 2
    traces.clear()
    walk(draw(3), tables(50, "source")[0])  # other values, same shapes
    assert not traces
    walk(draw(3, batch=3), tables(50)[0])  # negative control: another shape
    assert traces


def test_bfloat16_network_keeps_a_float32_state():
    up, _ = tables(200)
    noise = 0.375  # exact in bfloat16, so that only the recursion can round
    latents = draw()

    def noise_fn(latents, timesteps):
        return jnp.full_like(latents, noise, jnp.bfloat16)

    exact = np.sqrt(up.alpha_to[-1]) * (latents + noise * up.sigma_to[-1])
    found = ddim.walk(noise_fn, latents.astype(jnp.float32), up)
    assert found.dtype == jnp.float32
    # 200 float32 additions of numbers up to 6: 200 * 2^-22 at worst, far less seen.
    np.testing.assert_allclose(found, exact, atol=1e-5)
    # Negative control: the same recursion carried in bfloat16.
    scaled = latents.astype(jnp.bfloat16)
    for i in range(200):
        gap = up.sigma_to[i] - up.sigma_from[i]
        scaled = (scaled + (gap * noise).astype(jnp.bfloat16)).astype(jnp.bfloat16)
    spoiled = np.asarray(scaled, np.float32) * np.sqrt(up.alpha_to[-1])
    assert np.abs(spoiled - exact).max() > 1e-3


def test_sampler_pair_reports_the_noise_level():
    up, _ = tables(10)
    pair = ddim.sampler(lambda z, t: jnp.full_like(z, 2.0), up)
    _, info = jax.lax.scan(pair.step, pair.init(draw()), up)
    np.testing.assert_allclose(info["noise_rms"], np.full(10, 2.0), rtol=1e-6)


def test_split_noise_keeps_the_level_and_eta_one_is_the_ddpm_variance():
    alpha_from, alpha_to = 0.3, 0.6
    sigma_from, sigma_to = (np.sqrt(1 / a - 1) for a in (alpha_from, alpha_to))
    for eta in (0.0, 0.4, 1.0):
        carried, fresh = ddim.split_noise(
            jnp.float32(sigma_from), jnp.float32(sigma_to), eta
        )
        assert float(carried**2 + fresh**2) == pytest.approx(sigma_to**2, rel=1e-5)
        ratio = (1 - alpha_to) / (1 - alpha_from) * (1 - alpha_from / alpha_to)
        wanted = eta * np.sqrt(ratio / alpha_to)
        assert float(fresh) == pytest.approx(wanted, rel=1e-5)


def test_split_noise_at_the_clean_end_is_finite():
    carried, fresh = ddim.split_noise(jnp.float32(0.0), jnp.float32(0.0), 1.0)
    assert carried == 0 and fresh == 0


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_walks_match_the_diffusers_schedulers_step_by_step(spacing):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    options = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "timestep_spacing": spacing,
    }
    up, down = tables(50, "target", spacing)
    latents = np.asarray(draw())
    for scheduler, table in [
        (diffusers.DDIMInverseScheduler(**options), up),
        (diffusers.DDIMScheduler(**options), down),
    ]:
        scheduler.set_timesteps(50)
        theirs = torch.from_numpy(latents.copy())
        for timestep in scheduler.timesteps:
            noise_pred = 0.7 * torch.tanh(theirs) - 0.0003 * timestep
            theirs = scheduler.step(noise_pred, timestep, theirs).prev_sample
        ours = ddim.walk(
            lambda z, t: 0.7 * jnp.tanh(z) - 0.0003 * t[:, None, None, None],
            jnp.asarray(latents),
            table,
        )
        # Their schedule is a float32 product (6e-6 off) and they divide by 0.07 where
        # noise is high; 50 steps of it.
        scale = float(np.abs(theirs.numpy()).max())
        np.testing.assert_allclose(ours, theirs.numpy(), atol=5e-5 * scale)
