"""The benchmark of the detector on photographs: sums, table, absent sets."""

import json

import pytest

from benchmarks.quality.photographs import supervised


def run(**changes):
    values = {key: 50.0 for key in supervised.COLUMNS}
    return {**values, "train_seconds": 10.0, **changes}


def test_runs_are_summed_up_by_mean_and_deviation_of_a_sample():
    summed = supervised.summary([run(pixel_ap=30.0), run(pixel_ap=34.0)])
    assert summed["pixel_ap"] == pytest.approx([32.0, 8**0.5])
    assert supervised.summary([run()])["pixel_ap"] == [50.0, 0.0]


def test_the_floor_stands_below_the_rows_of_its_set():
    results = {"kolektor_sdd": {"tower": supervised.summary([run()])}}
    rows = supervised.table(results).rows
    assert [row[1] for row in rows] == ["tower", "floor, PyTorch"]
    assert "19.3" in rows[1] and "50.0 ± 0.0" in rows[0]


def test_absent_sets_are_left_out_and_results_are_kept(tmp_path, monkeypatch):
    (tmp_path / "data" / "hazelnut_toy").mkdir(parents=True)
    seen = []

    def measure(folder, row, seed, directory):
        seen.append((folder.name, row, seed, directory.name))
        return run(pixel_ap=float(seed))

    monkeypatch.setattr(supervised, "measure", measure)
    record = tmp_path / "record.json"
    places = {"data": tmp_path / "data", "out": tmp_path / "out", "record": record}
    words = [f"--{name}={place}" for name, place in places.items()]
    supervised.main([*words, "--rows=tower", "--seeds=2"])
    assert seen == [
        ("hazelnut_toy", "tower", seed, f"hazelnut_toy_tower_{seed}")
        for seed in range(2)
    ]
    kept = json.loads(record.read_text())
    assert kept["runs"]["hazelnut_toy"]["tower"][1]["pixel_ap"] == 1.0
    assert kept["results"]["hazelnut_toy"]["tower"]["pixel_ap"][0] == 0.5
