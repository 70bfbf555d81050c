"""Few-shot tables: what needs no shots is measured once, and draws are averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quality.few_shot import comparison, published, summary, variants
from jaxanom.jobs import config_file
from jaxanom.methods.adp import options
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.tuning import choose
from jaxanom.report import tables


def entry(**image_auroc):
    return {
        "variants": {name: {"image_auroc": v} for name, v in image_auroc.items()},
        "tuning": {},
    }


def test_what_is_missing_is_run_textures_and_objects_apart():
    known = {"pill-1-0": {}, "marble-1-0": {}, "cork-1-0": {}, "bottle-1-1": {}}
    sets = ("bottle", "marble", "pill", "cork", "gear")
    found = list(comparison.cells(sets, (1,), 2, known))
    assert found == [
        comparison.Cell(("bottle",), 1, 0),
        comparison.Cell(("gear",), 1, 0),
        comparison.Cell(("marble", "cork"), 1, 1),
        comparison.Cell(("pill", "gear"), 1, 1),
    ]
    assert found[2].keys == {"marble": "marble-1-1", "cork": "cork-1-1"}


def test_text_alone_needs_no_shots():
    """Calibration, which is of the shots, moves and scales scores of a kind alike."""
    recipe = config_file.load("configs/adp/foundry.py").adp
    chosen = options.read({**recipe, "baseline": comparison.BASELINES["winclip"]})
    settings = fusion.default(options.default_weights(chosen), has_language=True)
    assert chosen.channels == ("language",) and settings.image_weight == 1
    plus = options.read({**recipe, "baseline": comparison.BASELINES["winclip+"]})
    assert fusion.default(options.default_weights(plus), True).image_weight < 1


def test_one_standard_error_chooses_from_the_grid_that_was_kept():
    first = fusion.default((1.0, 1.0), has_language=True)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), first)
    per_fold = np.array([[0.1, 0.2, 0.3, 0.2, 0.2], [0.25, 0.2, 0.3, 0.2, 0.4]])
    found = variants.of_one_error({"pill": (both, per_fold)})
    assert found["pill"].sigma == first.sigma + 1
    assert choose.choose(both, per_fold, 0, 2.0).kept_default


def test_the_table_shows_mean_and_deviation_over_draws():
    results = {
        "pill-1-0": entry(adp=0.5, plain=0.4),
        "pill-1-1": entry(adp=0.7, plain=0.4),
        "pill-2-0": entry(adp=0.9, plain=0.4),
    }
    found = summary.table(results, "image_auroc")
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    assert [row["K"] for row in rows] == [1, 2]
    assert rows[0]["adp"] == "60.0 ± 10.0" and rows[0]["plain"] == "40.0 ± 0.0"


def test_gains_of_the_tuning_are_paired_by_draw():
    def tuned(adp, default, agreement):
        found = entry(**{"adp": adp, "adp, default": default})
        rates = {"normal: kept": 1.0, "normal: redrawn": 0.5, "anomaly: pasted": 0.8}
        return found | {"tuning": {"x": {"accepted": rates}}, "agreement": agreement}

    results = {"pill-2-0": tuned(0.6, 0.5, 0.4), "pill-2-1": tuned(0.9, 0.8, None)}
    found = summary.tuning_table(results)
    row = dict(zip(found.columns, found.rows[0], strict=True))
    assert row["Image AUROC"].startswith("10.0") and row["agreement"] == "0.40"
    assert row["normal accepted"] == "75 %" and row["anomaly accepted"] == "80 %"


def test_published_lines_are_whole_and_say_where_they_are_from():
    """A range of draws, or a star, at every figure of a method that reads shots."""
    rows = published.ROWS
    of = {(row.dataset, row.shots): set() for row in rows}
    for row in rows:
        of[row.dataset, row.shots].add(row.method)
        if row.shots:
            assert all("±" in part or "*" in part for part in row[3:])
    assert len(of) == 8 and sum(map(len, of.values())) == len(rows)
    assert of["MVTec-AD", 1] == of["MVTec-AD", 4] == of["VisA", 2]
    text = tables.to_markdown(published.table())
    assert "2303.14814" in text and "93.1 ± 2.0" in text


def test_the_grid_is_kept_and_chosen_from_all_the_same():
    settings = fusion.default((1.0, 1.0), has_language=True)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), settings)
    per_fold = np.array([[0.1, 0.2], [0.8, 0.9]])
    grids = []
    kept = variants.keeping(grids)(both, per_fold, 64, standard_errors=1.0)
    assert not kept.kept_default and len(grids) == 1
    np.testing.assert_array_equal(grids[0][1], per_fold)
    choose.choose(both, per_fold, 64)
    assert len(grids) == 1  # the rule itself keeps none


@pytest.mark.parametrize("name", comparison.REAL)
def test_photographs_are_scored_by_the_features_they_are_given(name, tmp_path):
    cell = comparison.Cell((name,), 2, 3)
    config = comparison.config_of(cell, tmp_path, tmp_path / "features", 1.0)
    assert config.adp.primary == "reference"
    assert config.adp.feature_tower == f"mobilenet_v2:{tmp_path / 'features'}"
    assert (config.data.num_train, config.data.split_seed) == (2, 3)
