"""Rows of a sweep -> what is chosen, the table, the plots."""

import numpy as np
import pytest

from jaxanom.report import sweeps, tables

pytest.importorskip("matplotlib")


def row(number, update, step_size, seed, nll, **more):
    values = {"accuracy": 0.5, "ece": 0.1, "spread": 1.0, "ksd": 2.0}
    point = {"num_particles": number, "update": update, "rkhs": "rbf"}
    point |= {"step_size": step_size, "seed": seed, "nll": nll, "steps_per_s": 10.0}
    return {**point, **values, **more}


ROWS = [
    row(number, update, size, seed, nll=size * (1 + seed) + number)
    for number in (1, 4)
    for update in ("map", "svgd")
    for size in (2.0, 1.0)
    for seed in (0, 1, 2)
]


def test_the_step_size_is_chosen_on_the_development_seed_alone():
    found = sweeps.chosen(ROWS, development_seed=0)
    assert {r["step_size"] for r in found} == {1.0}
    assert {r["seed"] for r in found} == {1, 2}, "and that seed is not reported"
    # Others' results say nothing: the worse they are, the same choice.
    spoilt = [r if r["seed"] == 0 else {**r, "nll": -r["nll"]} for r in ROWS]
    assert {r["step_size"] for r in sweeps.chosen(spoilt, 0)} == {1.0}
    # Negative control: the development seed decides.
    turned = [{**r, "nll": -r["nll"]} if r["seed"] == 0 else r for r in ROWS]
    assert {r["step_size"] for r in sweeps.chosen(turned, 0)} == {2.0}


def test_one_step_size_needs_no_choice_and_keeps_all_seeds():
    rows = [r for r in ROWS if r["step_size"] == 1.0]
    assert sweeps.chosen(rows, development_seed=7) == rows
    with pytest.raises(ValueError, match="development_seed=7"):
        sweeps.chosen(ROWS, development_seed=7)


def test_a_diverged_run_is_never_chosen_and_shows_as_a_dash():
    rows = [{**r, "nll": None} if r["step_size"] == 1.0 else r for r in ROWS]
    assert {r["step_size"] for r in sweeps.chosen(rows, 0)} == {2.0}
    text = tables.to_text(sweeps.table([{**ROWS[0], "nll": None}]))
    assert tables.UNDEFINED in text


def test_the_table_and_every_plot_are_on_the_page(tmp_path):
    path = np.random.default_rng(0).normal(size=(3, 4, 2)).round(3).tolist()
    rows = [
        r | ({"path": path, "path_share": 0.4} if r["seed"] == 0 else {}) for r in ROWS
    ]
    page = sweeps.write(tmp_path / "a.html", rows, {"config": {"seed": 0}})
    text = page.read_text(encoding="utf-8")
    for measure in sweeps.MEASURES.values():
        assert f"{measure}" in text
    assert text.count("1st component") == 2, "one a transport with several particles"
    assert "no statement about calibration" in text
    assert "calibrated" not in text
    panels = sweeps.panels(sweeps.chosen(rows, 0))
    nll = next(panel for panel in panels if panel.title.startswith("NLL"))
    assert nll.log_x and list(nll.series[0].x) == [1, 4]
    np.testing.assert_allclose(nll.series[0].y, [1 + 2.5, 4 + 2.5])
