"""Rows are paired by set, K and draw, and pasted defects lie where their masks are."""

import numpy as np
import pytest

from benchmarks.quality.photographs import few_shot, memory_switches


def row(name, draw, value, place="a"):
    return {"row": name, "set": place, "K": 1, "draw": draw, "image_auroc": value}


def test_differences_are_paired_and_a_missing_metric_is_left_out():
    rows = [row("x", 0, 50.0), row("x", 1, 90.0), row("y", 0, 52.0), row("y", 1, 94.0)]
    ahead = few_shot.compare(rows, "x", "y", "image_auroc")
    assert ahead["mean"] == pytest.approx(3.0) and ahead["per_set"] == {"a": 3.0}
    assert few_shot.compare(rows, "y", "x", "image_auroc")["mean"] == -3.0
    assert few_shot.compare(rows, "x", "y", "pixel_auroc") == {}


@pytest.mark.parametrize(
    "changes", [*few_shot.ROWS.values(), *memory_switches.ROWS.values()]
)
def test_every_row_is_a_setting_of_the_method(changes):
    assert few_shot.settings(changes).tower == "efficientnet_lite0"


def test_a_pasted_defect_changes_its_mask_and_little_else():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (96, 128, 3)).astype(np.uint8)
    for _ in range(8):
        changed, mask = memory_switches.defect(rng, image, 255 - image)
        away = np.abs(changed.astype(int) - image).max(-1)
        inside, outside = away[mask > 0], away[mask == 0]
        assert 0 < mask.mean() < 0.5
        assert inside.mean() > 10 * outside.mean()  # the blend is a pixel wide
