import numpy as np
import pytest
from scipy import ndimage

from jaxanom.metrics import ranking, regions
from jaxanom.types import Predictions


def run(maps, masks, valid=None, splits=1, **options):
    maps, masks = np.asarray(maps, np.float32), np.asarray(masks, np.float32)
    valid = np.ones(len(maps), bool) if valid is None else np.asarray(valid)
    metric = regions.per_region_overlap(**options)
    state = metric.init()
    for rows in np.array_split(np.arange(len(maps)), splits):
        predictions = Predictions(maps[rows], maps[rows].max((1, 2)))
        batch = {"mask": masks[rows], "valid": valid[rows]}
        state = metric.update(state, predictions, batch)
    return metric.finalize(state)["pixel_aupro"]


def by_definition(maps, masks, limit=0.3):
    """Loops over every threshold, image and region; nothing is accumulated."""
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        flagged = maps >= threshold
        rates.append(np.mean(flagged[~masks]))
        shares = []
        for image, mask in zip(flagged, masks, strict=True):
            ids, number = ndimage.label(mask, structure=np.ones((3, 3)))
            shares += [np.mean(image[ids == k]) for k in range(1, number + 1)]
        overlaps.append(np.mean(shares))
    grid = np.unique(np.concatenate([np.linspace(0, limit, 2), rates]))
    grid = grid[grid <= limit]
    # np.interp takes the last value at repeated rates; sums go from knot to knot, so
    # the value left of a vertical step is looked up a hair before it.
    right = np.interp(grid[:-1], rates, overlaps)
    first = {}
    for rate, overlap in zip(rates, overlaps, strict=True):
        first.setdefault(rate, overlap)
    left = [first.get(rate, np.interp(rate, rates, overlaps)) for rate in grid[1:]]
    return np.sum(np.diff(grid) * (right + np.array(left)) / 2) / limit


def example(seed, num=3, side=12, shift=1.0):
    rng = np.random.default_rng(seed)
    masks = ndimage.binary_dilation(rng.random((num, side, side)) < 0.03)
    masks[0] = False  # a normal image contributes false positives only
    maps = np.round((rng.normal(size=masks.shape) + shift * masks) * 8) / 8
    return maps.astype(np.float32), masks


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_one_pass_equals_the_definition(limit):
    for seed in range(3):
        maps, masks = example(seed)
        # Scores are multiples of 1/8 below 8 and have bins of their own, so only
        # float64 rounding of some hundred terms differs.
        assert run(maps, masks, fpr_limit=limit) == pytest.approx(
            by_definition(maps, masks, limit), abs=1e-12
        )


def test_hand_example_cuts_the_curve_exactly_at_the_limit():
    masks = np.zeros((1, 2, 6), bool)
    masks[0, 0, 0] = True
    masks[0, 0, 4:6] = True
    maps = np.zeros((1, 2, 6), np.float32)
    maps[0, 0, 0] = 3  # the one-pixel region: overlap 1/2 at no false positives
    maps[0, 0, 4] = maps[0, 1, 1:4] = 2  # half of the other, with 3 of 9 normal pixels
    # Points (0, 0), (0, 1/2), (1/3, 3/4), (1, 1): a line of slope 3/4 from 1/2.
    assert run(maps, masks, fpr_limit=0.2) == pytest.approx(0.5 + 0.75 * 0.1, abs=1e-12)
    # Its mean is 5/8 over [0, 1/3] and 7/8 over [1/3, 1].
    assert run(maps, masks, fpr_limit=1.0) == pytest.approx(
        5 / 8 / 3 + 7 / 8 * 2 / 3, abs=1e-12
    )


def test_every_region_weighs_the_same():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = True
    masks[0, 15, 15] = True
    maps = np.zeros((1, 20, 20), np.float32)
    maps[0, :10, :10] = 1  # finds 100 of 101 defect pixels but one of two regions
    # Overlap rises linearly from 1/2 at rate 0 to 1 at rate 1.
    assert run(maps, masks, fpr_limit=1.0) == pytest.approx(0.75, abs=1e-12)
    pixel = ranking.pixels()
    state = pixel.update(
        pixel.init(),
        Predictions(maps, maps.max((1, 2))),
        {"mask": masks, "valid": np.ones(1, bool)},
    )
    assert pixel.finalize(state)["pixel_auroc"] > 0.99


def test_corner_contact_joins_regions():
    weights, number = regions.region_weights(np.eye(3, dtype=bool))
    assert number == 1 and weights[0, 0] == pytest.approx(1 / 3)
    weights, number = regions.region_weights(np.zeros((3, 3), bool))
    assert number == 0 and weights.sum() == 0


def test_perfect_maps_score_one_and_reversed_maps_zero():
    _, masks = example(0)
    # Overlap is a sum of 1 / area over hundreds of pixels, in float64.
    assert run(masks, masks) == pytest.approx(1, abs=1e-12)
    assert run(~masks, masks) == 0


def test_constant_maps_score_as_the_diagonal():
    _, masks = example(0)
    # PRO = rate, so the area up to 0.3 over 0.3 is 0.15.
    assert run(np.zeros(masks.shape), masks) == pytest.approx(0.15, abs=1e-12)


def test_shuffled_maps_fall_to_chance():
    maps, masks = example(1, num=16, side=48, shift=3.0)
    shuffled = np.random.default_rng(0).permutation(maps.ravel()).reshape(maps.shape)
    assert run(maps, masks) > 0.8
    # Chance is 0.15; the mean over some 800 regions has a spread near 0.01.
    assert run(shuffled, masks) == pytest.approx(0.15, abs=0.04)


def test_padding_changes_nothing():
    maps, masks = example(2)
    padded = np.concatenate([maps, np.full_like(maps[:1], np.nan)])
    more = np.concatenate([masks, np.ones_like(masks[:1])])
    result = run(padded, more, valid=[True] * 3 + [False])
    assert result == run(maps, masks)
    assert result != run(np.nan_to_num(padded), more)  # negative control


def test_splitting_batches_changes_nothing():
    maps, masks = example(3, num=4)
    # Regions are added in the same order; only float64 rounding could differ.
    assert run(maps, masks, splits=4) == pytest.approx(run(maps, masks), abs=1e-12)


def test_random_maps_stay_in_bounds():
    for seed in range(5):
        maps, masks = example(seed, side=6, shift=20.0)
        for limit in (1e-3, 0.3, 1.0):
            value = run(maps, masks, fpr_limit=limit)
            assert np.isnan(value) if not masks.any() else 0 <= value <= 1


def test_an_all_normal_split_is_undefined():
    maps, masks = example(0)
    assert np.isnan(run(maps, np.zeros_like(masks)))
    assert np.isnan(run(maps, np.ones_like(masks)))  # no normal pixel either


def test_one_image_is_enough():
    maps, masks = example(0)
    assert 0 < run(maps[1:2], masks[1:2]) <= 1


def test_without_masks_the_result_is_undefined_and_no_curve_is_drawn():
    maps, _ = example(0)
    metric = regions.per_region_overlap()
    predictions = Predictions(maps, maps.max((1, 2)))
    state = metric.update(metric.init(), predictions, {"valid": np.ones(3, bool)})
    assert np.isnan(metric.finalize(state)["pixel_aupro"])
    assert regions.curves(state) == {}


def test_curve_is_short_monotone_and_ends_at_one():
    maps, masks = example(1, num=8, side=48)
    metric = regions.per_region_overlap()
    predictions = Predictions(maps, maps.max((1, 2)))
    batch = {"mask": masks, "valid": np.ones(8, bool)}
    curve = regions.curves(metric.update(metric.init(), predictions, batch))["pro"]
    assert len(curve.x) <= ranking.CURVE_POINTS
    assert np.all(np.diff(curve.x) >= 0) and np.all(np.diff(curve.y) >= 0)
    assert curve.y[-1] == pytest.approx(1, abs=1e-12) and curve.x[-1] == 1


def test_nan_wrong_sizes_and_impossible_limits_are_refused():
    maps, masks = example(0)
    with pytest.raises(ValueError, match="fpr_limit=0"):
        regions.per_region_overlap(fpr_limit=0)
    with pytest.raises(ValueError, match="predict at the size of the mask"):
        run(maps[:, ::2], masks)
    maps[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 scores are NaN"):
        run(maps, masks)
