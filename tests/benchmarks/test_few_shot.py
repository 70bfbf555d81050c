"""Few-shot tables: what needs no shots is measured once, and draws are averaged."""

import pytest

from benchmarks import few_shot


def entry(**image_auroc):
    return {
        "variants": {name: {"image_auroc": v} for name, v in image_auroc.items()},
        "tuning": {},
    }


def test_only_what_reads_no_shot_is_taken_over_and_from_its_own_set():
    results = {"pill-1-0": entry(adp=0.5, winclip=0.7)}
    found = few_shot.without_shots(results, "pill")
    assert found == {"winclip": {"image_auroc": 0.7}}
    assert few_shot.without_shots(results, "cork") == {}
    assert few_shot.BASELINES["winclip"] == "winclip"  # text alone, see `options`


def test_the_table_shows_mean_and_deviation_over_draws():
    results = {
        "pill-1-0": entry(adp=0.5, plain=0.4),
        "pill-1-1": entry(adp=0.7, plain=0.4),
        "pill-2-0": entry(adp=0.9, plain=0.4),
    }
    found = few_shot.table(results, "image_auroc")
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    assert [row["K"] for row in rows] == [1, 2]
    assert rows[0]["adp"] == "60.0 ± 10.0" and rows[0]["plain"] == "40.0 ± 0.0"


@pytest.mark.parametrize("name", few_shot.REAL)
def test_photographs_are_scored_by_the_features_they_are_given(name, tmp_path):
    cell = few_shot.Cell(name, 2, 3)
    config = few_shot.config_of(cell, tmp_path, tmp_path / "features", 1.0)
    assert config.adp.primary == "reference"
    assert config.adp.feature_tower == str(tmp_path / "features")
    assert (config.data.num_train, config.data.split_seed) == (2, 3)
