"""Rows say what they cost, and an interrupted measurement goes on."""

import types

import numpy as np
import pytest

from benchmarks.quality.defects import trade_off, walks
from jaxanom.diffusion import inversion


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(trade_off, "FINE", 24)
    monkeypatch.setattr(trade_off, "WALKS", (3, 6))
    monkeypatch.setattr(trade_off, "ROUND_TRIPS", (6,))
    monkeypatch.setattr(trade_off, "ITERATIONS", (0, 2))


def test_rows_count_the_calls_they_cost_and_replay_keeps_the_background(
    subject, small, tmp_path, calls
):
    trade_off.reference(subject, tmp_path)
    assert len(calls) == 2 * trade_off.FINE
    rows = {r["case"]: r for r in trade_off.solver_rows(subject, set(), tmp_path)}
    assert len(rows) == 1 + 2 * 2 * 2
    assert all(row["background"] == 0 for row in rows.values())
    for spacing, steps in (("linspace", 3), ("log_snr", 6)):
        calls.clear()
        case = f"defect S={steps}, dpmpp_2m, {spacing}"
        (row,) = trade_off.solver_rows(subject, set(rows) - {case}, tmp_path)
        assert row == rows[case] and row["calls"] == len(calls) == 2 * steps
    calls.clear()
    trips = list(trade_off.round_trip_rows(subject, {"round trip k=2, S = 6"}))
    assert trips[0]["case"] == "round trip k=0, S = 6" and len(trips) == 3
    assert sum(row["calls"] for row in trips) == len(calls)
    assert all(row["error"] > 1e-4 for row in trips)


def test_more_moves_come_nearer_and_the_reference_is_nearest(subject, small, tmp_path):
    rows = {r["case"]: r for r in trade_off.solver_rows(subject, set(), tmp_path)}
    for solver in inversion.SOLVERS:
        few, more = (rows[f"defect S={s}, {solver}, linspace"] for s in (3, 6))
        assert rows["fine S=24, dpmpp_2m"]["error"] < more["error"] < few["error"]


def test_the_distance_looks_inside_the_mask_alone(subject):
    latents, mask = np.asarray(subject.latents), np.asarray(subject.mask)
    outside = np.where(mask > 0.5, latents, 7.0)
    np.testing.assert_array_equal(trade_off.distance(subject, outside, latents), 0)
    twice = np.where(mask > 0.5, 2 * latents, latents)
    np.testing.assert_allclose(trade_off.distance(subject, twice, latents), 1)


def stand_in_run():
    config = types.SimpleNamespace(to_json=lambda sort_keys: "{}")
    return types.SimpleNamespace(prepared=types.SimpleNamespace(config=config))


def test_an_interrupted_measurement_goes_on_and_belongs_to_its_seed(
    subject, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(walks, "subject", lambda run, num_images, seed: subject)
    whole = trade_off.measure(stand_in_run(), tmp_path / "a", 0, 2)
    cut = tmp_path / "b"
    trade_off.measure(stand_in_run(), cut, 0, 2)
    lines = (cut / "rows.jsonl").read_text().splitlines()
    # What a kill leaves behind: the last line is cut short.
    (cut / "rows.jsonl").write_text("\n".join(lines[:4]) + "\n" + lines[4][:40])
    found = trade_off.measure(stand_in_run(), cut, 0, 2)
    assert {r["case"]: r["error"] for r in found} == {
        r["case"]: r["error"] for r in whole
    }
    with pytest.raises(ValueError, match="choose another --out"):
        trade_off.measure(stand_in_run(), cut, 1, 2)


@pytest.mark.slow
def test_it_runs_on_an_untrained_backbone(tmp_path, backbone, small):
    arguments = ["--out", str(tmp_path), "--model", str(backbone), "--scale", "0.01"]
    rows = trade_off.main([*arguments, "--num-images", "2"])
    assert len(rows) == 9 + 4
    assert all(row.get("background", 0) == 0 for row in rows)
