"""Known curves, and how far the grid is from the exact definitions."""

import numpy as np
import pytest

from jaxanom.metrics import regions, threshold_grid


def maps(seed=0, shift=2.0):
    rng = np.random.default_rng(seed)
    mask = np.zeros((3, 24, 24), bool)
    mask[0, 2:8, 3:7] = mask[0, 15:17, 15:22] = mask[2, 5:20, 9:12] = True
    return (rng.normal(size=mask.shape) + shift * mask).astype(np.float32), mask


def test_a_perfect_map_has_full_overlap():
    mask = maps()[1]
    scores = mask + 0.5 * np.arange(mask.size).reshape(mask.shape) / mask.size
    assert threshold_grid.per_region_overlap(scores, mask) == pytest.approx(1)


def test_a_fine_grid_up_to_rate_one_comes_near_the_exact_area():
    scores, mask = maps()
    found = threshold_grid.per_region_overlap(scores, mask, 5000, fpr_limit=1.1)
    order = np.unique(scores)[::-1]
    weights = np.stack([regions.region_weights(one)[0] for one in mask])
    overlap = [weights[scores >= t].sum() / weights.sum() for t in order]
    rate = [np.mean(scores[~mask] >= t) for t in order]
    exact = regions.area(np.append(0, rate), np.append(0, overlap), 1.0)
    # 5000 steps over 2000 scores.
    assert found == pytest.approx(exact, abs=2e-3)
    # Negative control: a coarse grid is off.
    coarse = threshold_grid.per_region_overlap(scores, mask, 5, fpr_limit=1.1)
    assert abs(coarse - exact) > 2e-3


def test_without_regions_or_calm_pixels_the_area_is_undefined():
    scores, mask = maps()
    assert np.isnan(threshold_grid.per_region_overlap(scores, mask * 0))
    assert np.isnan(threshold_grid.per_region_overlap(scores, mask * 0 + 1))
