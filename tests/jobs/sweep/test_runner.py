"""A sweep is the trainer's runs side by side, goes on after a kill, and says so."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxanom
from jaxanom.jobs import prepare
from jaxanom.jobs.sweep import grid, inputs, measures, program, runner, seeds
from jaxanom.posterior import transport
from jaxanom.report import sweeps

MEASURED = ("accuracy", "nll", "ece", "spread", "ksd", "train_ce")


@pytest.fixture(scope="module")
def finished(sweep_config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep") / "whole"
    config = sweep_config()
    return config, directory, runner.run(config, directory)


def test_every_key_of_the_section_is_read(finished, sweep_config, keys_read):
    _, directory, _ = finished
    config = sweep_config()
    keys_read.register(config)
    rows = runner.run(config, directory)
    sweeps.chosen(rows, config.sweep.development_seed)
    unread = [key for key in keys_read.unread(config) if key.startswith("sweep.")]
    assert unread == []


def scores(rows):
    return [{name: row[name] for name in MEASURED} for row in rows]


def final_particles(config, number, update, seed):
    """The particles that the sweep's program ends with, [P, D]."""
    base = prepare.without(config, "sweep")
    rkhs = "rbf" if update == "svgd" else "-"
    point = grid.Point(number, update, rkhs, 1.0, seed)
    made = inputs.make(base, [point])
    variants = (("svgd", "rbf"), ("sgld", "-"))
    phase = inputs.phase(base, "particles")
    found = program.particle_program(made.method, phase, variants, 2)(
        inputs.places(made, grid.Group((point,), variants), 1),
        *inputs.arguments(made, number),
    )
    return np.asarray(found.path[0, -1])


@pytest.mark.parametrize("update", ["svgd", "sgld"])
def test_a_point_ends_where_the_trainer_ends(sweep_config, tmp_path, update):
    """Same shots, views, batches, prior network, noise: the same particles."""
    config = sweep_config()
    found = final_particles(config, 2, update, seed=1)
    alone = seeds.config_of(prepare.without(config, "sweep"), 1)
    alone.app.num_particles = 2
    alone.app.particles["update"] = update
    if update == "sgld":
        for name, value in transport.WHOLE_MOVES.items():
            alone.phases.particles[name] = value
    run = jaxanom.train(alone, tmp_path / "run")
    wanted = np.asarray(run.params["particles"]["context"]).reshape(2, -1)
    start = np.asarray(
        run.prepared.method.init(jax.random.key(1))[0]["particles"]["context"]
    ).reshape(2, -1)
    assert np.abs(wanted - start).max() > 1e-5, "it did move"
    # Float32 sums in another order, two steps of two phases.
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    other = final_particles(config, 2, update, seed=0)
    assert np.abs(other - wanted).max() > 1e-3, "negative control: another seed"


def test_every_point_has_a_row_of_measures(finished):
    config, directory, rows = finished
    assert len(rows) == len(grid.points(config.sweep.to_dict())) == 8
    assert all(np.isfinite([row[name] for name in MEASURED]).all() for row in rows)
    assert {row["spread"] for row in rows if row["num_particles"] == 1} == {0.0}
    assert min(row["spread"] for row in rows if row["num_particles"] == 2) > 0
    lines = (directory / runner.TABLE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    path = np.array(next(row["path"] for row in rows if row["num_particles"] == 2))
    assert path.shape == (3, 2, 2) and rows[0]["seed"] == 0
    assert all(("path" in row) == (row["seed"] == 0) for row in rows)


def test_without_a_neighbour_svgd_and_gradient_ascent_are_one(sweep_config, tmp_path):
    """N = 1: nothing to be repelled by; N = 2: something."""
    config = sweep_config(sweep__seed=(0,))
    config.sweep["update"] = ("map", "svgd")
    rows = runner.run(config, tmp_path)
    by = {(row["num_particles"], row["update"]): row for row in rows}
    assert by[1, "map"]["ksd"] == pytest.approx(by[1, "svgd"]["ksd"], rel=1e-5)
    assert by[2, "svgd"]["spread"] > by[2, "map"]["spread"] * (1 + 1e-6)


def test_a_killed_sweep_goes_on_where_it_stopped(finished, sweep_config, tmp_path):
    _, directory, rows = finished
    for name in ("config.json", "record.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    lines = (directory / runner.TABLE).read_text().splitlines(keepends=True)
    # Killed within a line: that row is run again, the others are not.
    (tmp_path / runner.TABLE).write_text("".join(lines[:5]) + lines[5][:20])
    seen = []
    again = runner.run(sweep_config(), tmp_path, seen.append)
    assert len(seen) == 3
    assert [runner._key(row) for row in again] == [runner._key(row) for row in rows]
    for one, other in zip(scores(again), scores(rows), strict=True):
        # Other neighbours in the vmapped program, other sums.
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert runner.run(sweep_config(), tmp_path, seen.append) == again
    assert len(seen) == 3, "nothing was left to run"


def test_an_axis_may_grow_but_nothing_else_may_change(finished, sweep_config):
    _, directory, rows = finished
    before = (directory / runner.TABLE).read_text()
    with pytest.raises(ValueError, match=r"app\.prior\.sigma2"):
        runner.run(sweep_config(app__prior__sigma2=0.5), directory)
    assert (directory / runner.TABLE).read_text() == before
    fewer = runner.run(sweep_config(sweep__seed=(1,)), directory)
    assert fewer == [row for row in rows if row["seed"] == 1]


def test_the_division_into_programs_changes_nothing(finished, sweep_config, tmp_path):
    _, _, rows = finished
    config = sweep_config(sweep__prompts_together=1)
    found = runner.run(config, tmp_path)
    assert {row["runs_together"] for row in found} == {1}
    for one, other in zip(scores(found), scores(rows), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_a_run_that_diverges_is_a_row_without_scores(sweep_config, tmp_path):
    config = sweep_config(sweep__seed=(0,), sweep__num_particles=(2,))
    config.sweep["update"], config.sweep.step_size = ("svgd",), (1.0, 1e37)
    rows = runner.run(config, tmp_path)
    assert rows[0]["nll"] is not None
    assert rows[1]["nll"] is None or rows[1]["skipped"] > 0
    assert "NaN" not in (tmp_path / runner.TABLE).read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sweep__num_snapshots": 3}, "num_snapshots=3"),
        ({"app__particles__backend": "ring"}, "backend='ring'"),
        ({"method": "adp"}, "sweep_foundry"),
    ],
)
def test_what_cannot_be_swept_is_refused_at_once(
    sweep_config, tmp_path, changes, named
):
    with pytest.raises(ValueError, match=named):
        runner.run(sweep_config(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_principal_components_keep_distances_in_two_dimensions():
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(7, 2)))
    plane = rng.normal(size=(3, 4, 2))
    found = measures.principal_path(plane @ turn.T)
    assert found["path_share"] == pytest.approx(1.0)
    shown = np.array(found["path"]).reshape(-1, 2)
    flat = plane.reshape(-1, 2)

    def distances(x):
        return np.linalg.norm(x[:, None] - x[None], axis=-1)

    np.testing.assert_allclose(distances(shown), distances(flat), atol=1e-3)
    more = measures.principal_path(rng.normal(size=(3, 4, 7)))
    assert more["path_share"] < 0.95, "negative control: seven dimensions are not two"


def test_discrepancy_prefers_particles_of_the_target():
    """KSD to N(1, I) with the width that the sweep uses."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1.0, 1.0, (64, 3)), jnp.float32)

    def measured(x):
        return float(program.discrepancy(x, -(x - 1.0), init_std=1.0))

    assert measured(x) < 0.5 * measured(x + 1.0)
    assert measured(x) < 0.5 * measured(1.0 + 0.05 * (x - 1.0))
