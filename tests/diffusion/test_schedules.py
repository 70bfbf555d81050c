import numpy as np
import pytest

from jaxanom.diffusion import schedules


@pytest.fixture
def alphas():
    return schedules.alphas_cumprod()


def test_scaled_linear_is_linear_in_the_square_root():
    betas = schedules.betas(1000, 0.00085, 0.012, "scaled_linear")
    steps = np.diff(np.sqrt(betas))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)  # float64 rounding
    np.testing.assert_allclose(betas[[0, -1]], [0.00085, 0.012], rtol=1e-12)
    assert betas.dtype == np.float64


def test_published_end_points_of_the_latent_diffusion_schedule(alphas):
    # Values of the specification, given to four digits.
    assert alphas[0] == pytest.approx(0.99915, abs=5e-6)
    assert np.sqrt(alphas[999]) == pytest.approx(0.0683, abs=5e-5)
    assert np.sqrt(alphas[980]) == pytest.approx(0.0764, abs=5e-5)


def test_cosine_schedule_follows_its_formula_where_uncapped():
    alphas = schedules.alphas_cumprod(1000, beta_schedule="squaredcos_cap_v2")
    index = np.arange(1, 999)
    exact = np.cos((index / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    start = np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    # The products telescope; only float64 rounding of 1000 factors remains.
    np.testing.assert_allclose(alphas[index - 1], exact / start, rtol=1e-9)
    assert schedules.betas(1000, beta_schedule="squaredcos_cap_v2")[-1] == 0.999


@pytest.mark.parametrize(
    ("spacing", "offset", "grid"),
    [
        ("linspace", 0, [0, 333, 666, 999]),
        ("leading", 0, [-1, 0, 333, 666]),
        ("leading", 1, [-1, 1, 334, 667]),
        ("trailing", 0, [-1, 332, 666, 999]),
    ],
)
def test_levels_of_each_spacing(spacing, offset, grid):
    assert schedules.levels(1000, 3, spacing, offset).tolist() == grid


@pytest.mark.parametrize("spacing", schedules.SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 333, 999])
def test_levels_strictly_increase_and_stay_on_the_grid(spacing, num_steps):
    levels = schedules.levels(1000, num_steps, spacing)
    assert levels.shape == (num_steps + 1,)
    assert levels.dtype == np.int32
    assert np.all(np.diff(levels) > 0)
    assert levels[0] in (-1, 0) and levels[-1] <= 999
    if spacing != "leading":
        assert levels[-1] == 999


@pytest.mark.parametrize("spacing", schedules.SPACINGS)
@pytest.mark.parametrize("final_alpha", schedules.FINAL_ALPHAS)
def test_sampling_visits_the_levels_of_inversion_backwards(
    alphas, spacing, final_alpha
):
    levels = schedules.levels(1000, 10, spacing)
    up = schedules.inversion_table(alphas, levels, "target", final_alpha)
    down = schedules.sampling_table(alphas, levels, final_alpha)
    for ends in ("alpha", "sigma"):
        there = getattr(up, f"{ends}_from"), getattr(up, f"{ends}_to")
        back = getattr(down, f"{ends}_to")[::-1], getattr(down, f"{ends}_from")[::-1]
        np.testing.assert_array_equal(there, back)
    # Told of the target, inversion tells the network just what sampling will.
    np.testing.assert_array_equal(up.timesteps, down.timesteps[::-1])
    assert up.alpha_from[0] == np.float32(1 if final_alpha == "one" else alphas[0])


def test_source_time_lags_target_time_by_one_level(alphas):
    levels = schedules.levels(1000, 10, "trailing")
    source = schedules.inversion_table(alphas, levels, "source")
    target = schedules.inversion_table(alphas, levels, "target")
    np.testing.assert_array_equal(source.timesteps[1:], target.timesteps[:-1])
    assert source.timesteps[0] == 0  # tau_0 = -1 is clamped for the network
    np.testing.assert_array_equal(source.alpha_from, target.alpha_from)
    np.testing.assert_array_equal(source.timesteps_to, target.timesteps)


def test_sigma_is_taken_in_float64():
    alphas = np.array([1 - 1e-9, 0.5])
    table = schedules.sampling_table(alphas, np.array([0, 1]), "first")
    # In float32 this alpha is 1 and its sigma would be 0.
    assert table.alpha_to[0] == 1
    assert table.sigma_to[0] == pytest.approx(np.sqrt(1e-9), rel=1e-6)
    assert table.sigma_to.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: schedules.betas(beta_schedule="cosine"), "beta_schedule='cosine'"),
        (lambda a: schedules.betas(0), "num_train_timesteps=0"),
        (lambda a: schedules.betas(10, 0.5, 0.1), "beta_start=0.5"),
        (lambda a: schedules.levels(1000, 10, "log"), "spacing='log'"),
        (lambda a: schedules.levels(1000, 0), "num_steps=0"),
        (lambda a: schedules.levels(1000, 1000, "linspace"), "num_steps=1000"),
        (lambda a: schedules.levels(1000, 1000, "leading", 1), "steps_offset=1"),
        (lambda a: schedules.levels(1000, 10, "leading", -1), "steps_offset=-1"),
        (lambda a: schedules.levels(1000, 10, "trailing", 1), "steps_offset=1"),
        (
            lambda a: schedules.inversion_table(a, np.array([0, 9]), "middle"),
            "inversion_time='middle'",
        ),
        (
            lambda a: schedules.sampling_table(a, np.array([0, 9]), "zero"),
            "final_alpha='zero'",
        ),
        (lambda a: schedules.sampling_table(a, np.array([0, 9, 9])), "increasing"),
        (lambda a: schedules.sampling_table(a, np.array([0, 1000])), "0 to 999"),
        (lambda a: schedules.sampling_table(1 - a * 0, np.array([0])), "at least two"),
        (lambda a: schedules.sampling_table(a * 0, np.array([0, 9])), "within"),
        (lambda a: schedules.sampling_table(a[::-1], np.array([0, 5, 9])), "increase"),
    ],
)
def test_a_bad_schedule_is_refused_by_name(alphas, call, message):
    with pytest.raises(ValueError, match=message):
        call(alphas)


@pytest.mark.parametrize("beta_schedule", schedules.BETA_SCHEDULES)
def test_alphas_match_the_diffusers_scheduler(beta_schedule):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    ours = schedules.alphas_cumprod(1000, 0.00085, 0.012, beta_schedule)
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=beta_schedule
    ).alphas_cumprod.numpy()
    # Theirs is a float32 product of 1000 factors: 1000 * 6e-8 at worst.
    np.testing.assert_allclose(ours, theirs, rtol=6e-5)


@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0)]
)
@pytest.mark.parametrize("num_steps", [10, 50])
def test_tables_match_the_diffusers_schedulers(alphas, spacing, offset, num_steps):
    """Their "linspace" is left out: its moves do not end where the next one starts."""
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    options = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "timestep_spacing": spacing,
        "steps_offset": offset,
    }
    levels = schedules.levels(1000, num_steps, spacing, offset)
    pairs = [
        (diffusers.DDIMScheduler(**options), schedules.sampling_table(alphas, levels)),
        (
            diffusers.DDIMInverseScheduler(**options),
            schedules.inversion_table(alphas, levels, "target"),
        ),
    ]
    for scheduler, table in pairs:
        scheduler.set_timesteps(num_steps)
        np.testing.assert_array_equal(scheduler.timesteps.numpy(), table.timesteps)


def test_log_snr_levels_are_even_where_the_indices_allow_it(alphas):
    grid = schedules.log_snr_levels(alphas, 10)
    assert grid.dtype == np.int32 and grid.shape == (11,)
    assert (grid[0], grid[1], grid[-1]) == (0, 1, 999) and (np.diff(grid) > 0).all()
    gaps = np.diff(0.5 * np.log(1 / alphas[grid[1:]] - 1))
    # Neighbouring indices near the clean end are 0.1 apart: half of that either way.
    np.testing.assert_allclose(gaps, gaps.mean(), atol=0.1)
    # Negative control: even indices keep the clean end for one long move.
    even = np.append(1, schedules.levels(1000, 9)[1:])
    assert np.ptp(np.diff(0.5 * np.log(1 / alphas[even] - 1))) > 1


def test_log_snr_levels_of_an_even_schedule_are_even_indices():
    even = 1 / (1 + np.geomspace(0.05, 5, 1000) ** 2)
    grid = schedules.log_snr_levels(even, 999 // 2 + 1)
    np.testing.assert_array_equal(grid[1:], np.arange(1, 1000, 2))


@pytest.mark.parametrize("num_steps", [1, 2, 50, 600, 999])
@pytest.mark.parametrize("beta_schedule", schedules.BETA_SCHEDULES)
def test_log_snr_levels_never_repeat_and_make_tables(num_steps, beta_schedule):
    alphas = schedules.alphas_cumprod(beta_schedule=beta_schedule)
    grid = schedules.log_snr_levels(alphas, num_steps)
    assert (np.diff(grid) > 0).all() and grid[0] == 0 and grid[-1] == 999
    schedules.sampling_table(alphas, grid)
    schedules.inversion_table(alphas, grid)


@pytest.mark.parametrize("num_steps", [0, 1000])
def test_log_snr_levels_that_do_not_fit_are_refused(alphas, num_steps):
    with pytest.raises(ValueError, match=rf"num_steps={num_steps} .*log_snr"):
        schedules.log_snr_levels(alphas, num_steps)
