"""What the benchmarks of particles compare, count and draw."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quality import posterior_few_shot, posterior_variance
from benchmarks.speed import posterior, posterior_step
from jaxanom.jobs.sweep import grid, runner
from jaxanom.report import sweeps


@pytest.mark.parametrize("make", ["ours", "theirs", "torch_loop", "torch_batched"])
def test_implementations_of_svgd_that_are_timed_agree_with_float64(make):
    particles, grads = posterior.draw(12, 64)
    h = posterior.bandwidth_of(particles)
    wanted = posterior.exact(particles, grads, h)
    given = (jnp.asarray(particles), jnp.asarray(grads))
    if make == "theirs":
        pytest.importorskip("blackjax")
    if make.startswith("torch"):
        torch = pytest.importorskip("torch")
        given = (torch.from_numpy(particles), torch.from_numpy(grads))
    found = np.asarray(getattr(posterior, make)(h)(*given), np.float64)
    # Float32 sums over 64 values and 12 particles; the largest entry is about 0.4.
    assert np.abs(found - wanted).max() < 1e-6
    # Negative control: another bandwidth is another velocity.
    assert np.abs(posterior.exact(particles, grads, 2 * h) - wanted).max() > 1e-2


def test_the_step_is_that_of_the_plain_loop_at_a_tenth_of_the_operations(monkeypatch):
    pytest.importorskip("torch")
    # Float32 through two layers; gradients are of order 1e-2.
    assert posterior_step.check(posterior_step.SMALL) < 1e-5
    settings = posterior_step.parse(["--count"])
    found = posterior_step.measure(posterior_step.SMALL, (2, 30), settings)[0]
    assert found["share"] < 0.1
    # The loop in PyTorch and our plain form are counted by different counters.
    assert found["plain_gflop"] == pytest.approx(found["torch_gflop"], rel=0.02)
    # Negative control: a prior of another weight is noticed.
    energy = posterior_step.objective.energy
    monkeypatch.setattr(
        posterior_step.objective, "energy", lambda *given: 100 * energy(*given)
    )
    assert posterior_step.check(posterior_step.SMALL) > 1e-4


def test_svgd_collapses_with_the_dimension_and_noise_repairs_it():
    """Stationary variance of 8 particles: 0.2403 at D = 8, 0.0601 at D = 32."""
    assert posterior_variance.variance("SVGD", 8, 1500) == pytest.approx(
        0.2403, rel=0.01
    )
    assert posterior_variance.variance("SVGD", 32, 1500) == pytest.approx(
        0.0601, rel=0.01
    )
    # 8 x 32 values over 750 correlated steps: a few percent.
    noisy = posterior_variance.variance(posterior_variance.NOISY, 32, 1500)
    assert noisy == pytest.approx(1.0, abs=0.1)


def rows_of(update, sizes):
    return [
        {"update": update, "step_size": size, "ksd": value}
        for size, value in sizes.items()
    ]


def test_the_smallest_step_near_the_least_discrepancy_is_chosen(monkeypatch, tmp_path):
    asked = {}

    def run(config, directory, on_row):
        asked["seeds"] = tuple(config.sweep.seed)
        rows = rows_of("map", {0.3: 40.0, 1.0: 10.5, 3.0: 10.0})
        for update in posterior_few_shot.UPDATES[1:]:
            rows += rows_of(update, {0.3: None, 1.0: 12.0, 3.0: 10.0})
        return rows

    monkeypatch.setattr(runner, "run", run)
    config = posterior_few_shot.config_of("defect", tmp_path, 120)
    found = posterior_few_shot.step_sizes(config, tmp_path)
    assert found["map"] == 1.0 and found["svgd"] == 3.0
    assert asked["seeds"] == (posterior_few_shot.DEVELOPMENT_SEED,)
    assert posterior_few_shot.DEVELOPMENT_SEED not in posterior_few_shot.REPORTED_SEEDS


@pytest.mark.parametrize("task", posterior_few_shot.TASKS)
def test_every_task_is_a_sweep_with_sixteen_shots(task, tmp_path):
    config = posterior_few_shot.config_of(task, tmp_path, 120)
    points = grid.points(config.sweep)
    assert len(points) == 4 * 5 * 5
    shots = (config.data.num_train, config.data.shots)
    assert shots == ((16, 0) if task == "caltech" else (16, 16))


def test_a_task_that_is_left_out_says_its_zero_shot_number():
    plain = {"accuracy": 0.0725, "chance": 0.05, "num_test": 400}
    point = dict.fromkeys(grid.AXES, 1) | {"update": "svgd", "rkhs": "rbf"}
    row = point | dict.fromkeys(sweeps.MEASURES, 0.5)
    found = posterior_few_shot.text(
        {
            "caltech": {"zero_shot": plain, "left_out": "it knows no photographs"},
            "state": {
                "zero_shot": plain,
                "rows": [{**row, "update": "map", "rkhs": "-"}, row],
            },
        }
    )
    assert "7.2 %" in found and "Left out" in found and "| svgd" in found


def test_what_a_transport_buys_is_free_of_the_differences_between_seeds():
    rows = [
        {"update": update, "num_particles": 4, "seed": seed, "nll": seed + gain}
        for seed in (1, 2, 3)
        for update, gain in (("map", 0.0), ("svgd", -0.25))
    ]
    assert posterior_few_shot.paired(rows).rows == (("svgd", "-0.2500 ± 0.0000"),)
    rows[-1]["nll"] += 0.3
    assert posterior_few_shot.paired(rows).rows == (("svgd", "-0.1500 ± 0.1000"),)
