import itertools

import jax
import numpy as np
import pytest

from jaxanom.metrics import bins as binning
from jaxanom.metrics import ranking
from jaxanom.types import Predictions

KEYS = ("auroc", "ap", "f1_max")


PIXEL_FORMS = [ranking.histogram, ranking.pixels]


def batch_of(maps, masks, valid=None):
    """Pixel batch whose image-level fields agree with its masks."""
    maps, masks = np.asarray(maps, np.float32), np.asarray(masks, np.float32)
    predictions = Predictions(maps, maps.reshape(len(maps), -1).max(1))
    batch = {
        "mask": masks,
        "label": masks.reshape(len(masks), -1).max(1).astype(np.int32),
        "valid": np.ones(len(maps), bool) if valid is None else np.asarray(valid),
    }
    return predictions, batch


def run(metric, *batches):
    state = metric.init()
    for predictions, batch in batches:
        state = metric.update(state, predictions, batch)
    return metric.finalize(state)


def truth(*batches):
    """What is measured of all pixels at once, each by its own score."""
    scores = np.concatenate([predictions.anomaly_map for predictions, _ in batches])
    positive = np.concatenate([batch["mask"] for _, batch in batches]) > 0
    counts = ranking.count_scores(ranking.Scores(scores.ravel(), positive.ravel()))
    return {
        "pixel_auroc": ranking.auroc(counts),
        "pixel_ap": ranking.average_precision(counts),
        "pixel_f1_max": ranking.f1_max(counts),
    }


def random_maps(seed, num=4, side=16, shift=1.0):
    rng = np.random.default_rng(seed)
    masks = rng.random((num, side, side)) < 0.1
    return (rng.normal(size=masks.shape) + shift * masks).astype(np.float32), masks


def scores_and_labels(kind):
    rng = np.random.default_rng(7)
    labels = rng.random(500) < 0.2
    scores = rng.normal(size=500).astype(np.float32) + labels
    if kind == "tied":
        scores = np.round(scores)
    if kind == "constant":
        scores = np.zeros_like(scores)
    if kind == "inverted":
        scores = -labels.astype(np.float32)
    return scores, labels


def f1_by_trying_every_threshold(scores, labels):
    best = 0.0
    for threshold in np.unique(scores):
        flagged = scores >= threshold
        hits = np.sum(flagged & labels)
        best = max(best, 2 * hits / (flagged.sum() + labels.sum()))
    return best


def test_small_example_has_the_values_counted_by_hand():
    counts = ranking.count_scores(
        ranking.Scores(
            np.array([0.9, 0.8, 0.8, 0.1], np.float32), np.array([1, 1, 0, 0], bool)
        )
    )
    # Of 4 pairs three are right and one is tied: 3.5 / 4.
    assert ranking.auroc(counts) == 0.875
    # Recall 1/2 at precision 1, then 1/2 more at precision 2/3.
    assert ranking.average_precision(counts) == pytest.approx(5 / 6, abs=1e-15)
    assert ranking.f1_max(counts) == 0.8  # threshold 0.8: 2 * 2 / (3 + 2)


def test_perfect_and_reversed_rankings_reach_the_ends_of_the_scale():
    labels = np.array([1] * 3 + [0] * 7, bool)
    scores = labels.astype(np.float32)
    perfect = ranking.count_scores(ranking.Scores(scores, labels))
    assert ranking.auroc(perfect) == 1 == ranking.average_precision(perfect)
    assert ranking.f1_max(perfect) == 1
    assert ranking.auroc(ranking.count_scores(ranking.Scores(-scores, labels))) == 0


def test_constant_scores_give_half_the_auroc_and_the_base_rate_as_precision():
    scores, labels = scores_and_labels("constant")
    counts = ranking.count_scores(ranking.Scores(scores, labels))
    assert ranking.auroc(counts) == 0.5
    assert ranking.average_precision(counts) == pytest.approx(labels.mean(), abs=1e-15)


@pytest.mark.parametrize("kind", ["random", "tied", "constant", "inverted"])
def test_exact_form_agrees_with_scikit_learn(kind):
    reference = pytest.importorskip("sklearn.metrics")
    scores, labels = scores_and_labels(kind)
    counts = ranking.count_scores(ranking.Scores(scores, labels))
    # Both sum 500 float64 terms below 1: rounding is far below 1e-12.
    assert ranking.auroc(counts) == pytest.approx(
        reference.roc_auc_score(labels, scores), abs=1e-12
    )
    assert ranking.average_precision(counts) == pytest.approx(
        reference.average_precision_score(labels, scores), abs=1e-12
    )
    assert ranking.f1_max(counts) == pytest.approx(
        f1_by_trying_every_threshold(scores, labels), abs=1e-12
    )


@pytest.mark.parametrize("form", PIXEL_FORMS)
def test_random_scores_stay_in_bounds(form):
    metric = form()
    for seed, shift in itertools.product(range(4), (-3.0, 0.0, 30.0)):
        maps, masks = random_maps(seed, num=1, side=8, shift=shift)
        for value in run(metric, batch_of(maps, masks)).values():
            assert 0 <= value <= 1


@pytest.mark.parametrize("squash", [False, True])
def test_histogram_differs_from_exact_by_no_more_than_its_ties_allow(squash):
    maps, masks = random_maps(0, num=8, side=64)
    if squash:
        maps = (1 / (1 + np.exp(-6 * maps))).astype(np.float32)
    batch = batch_of(maps, masks)
    metric = ranking.histogram()
    counts = ranking.count_histogram(metric.update(metric.init(), *batch))
    exact = truth(batch)
    # A pair that shares a bin counts 1/2 instead of 0 or 1: wrong by 1/2 at most.
    shared = np.sum(counts.positives * counts.negatives, dtype=np.float64)
    bound = shared / 2 / counts.positives.sum() / counts.negatives.sum()
    assert bound < 2e-3  # 512 bins an octave, densities spread over a few octaves
    assert abs(ranking.auroc(counts) - exact["pixel_auroc"]) <= bound
    # Thresholds between bins are the only ones lost.
    assert ranking.f1_max(counts) <= exact["pixel_f1_max"] + 1e-12
    assert ranking.f1_max(counts) == pytest.approx(exact["pixel_f1_max"], abs=2e-3)
    assert ranking.average_precision(counts) == pytest.approx(
        exact["pixel_ap"], abs=2e-3
    )


def test_histogram_is_exact_on_scores_that_have_bins_of_their_own():
    maps, masks = random_maps(1)
    maps = np.round(maps * 4) / 4  # at most 5 mantissa bits are used below 8
    batch = batch_of(maps, masks)
    assert run(ranking.histogram(), batch) == truth(batch)


def test_coarse_bins_lose_the_ranking_that_fine_bins_keep():
    """Negative control of the comparison above."""
    maps, masks = random_maps(2)
    maps = 0.3 + 1e-2 * maps / np.abs(maps).max()
    batch = batch_of(maps, masks)

    def in_bins(bits):
        scores = np.asarray(binning.bin_index(maps, bits), np.float32)
        return truth(batch_of(scores, masks))["pixel_auroc"]

    exact = truth(batch)["pixel_auroc"]
    counted = run(ranking.histogram(), batch)["pixel_auroc"]
    assert counted == in_bins(binning.MANTISSA_BITS)
    coarse, fine = in_bins(1), in_bins(12)
    assert coarse == 0.5
    assert abs(fine - exact) < 5e-3 < abs(coarse - exact)


def test_bins_never_reverse_an_order():
    special = [-np.inf, -3e38, -1.0, -1e-45, -0.0, 0.0, 1e-38, 0.5, 1.0, 3e38, np.inf]
    rng = np.random.default_rng(3)
    near_one = 1 - 10.0 ** -rng.uniform(0, 8, 2000)
    spread = rng.choice([-1, 1], 4000) * 10.0 ** rng.uniform(-35, 35, 4000)
    values = np.concatenate([special, near_one, spread, rng.random(4000)])
    values = np.sort(values.astype(np.float32))
    values = np.concatenate([values, np.nextafter(values, np.float32(np.inf))])
    values = np.sort(values)
    for bits in (1, 9, 12):
        bins = np.asarray(binning.bin_index(values, bits))
        assert np.all(np.diff(bins) >= 0)
        assert bins.min() >= 0
        assert np.asarray(binning.bin_index(np.nan, bits)) < binning.num_bins(bits)
        assert np.asarray(binning.bin_index(np.nan, bits)) > bins.max()


def test_bins_tell_apart_probabilities_close_to_one_as_well_as_close_to_zero():
    small = np.float32(2.0) ** -np.arange(2, 25, dtype=np.float32)
    for values in (small, 1 - small):
        bins = np.asarray(binning.bin_index(values))
        assert len(np.unique(bins)) == len(small)
    zeros = np.asarray(binning.bin_index(np.array([-0.0, 0.0])))
    assert zeros[0] == zeros[1]


@pytest.mark.parametrize("form", [ranking.images, *PIXEL_FORMS])
def test_padding_changes_nothing(form):
    maps, masks = random_maps(4)
    masks[0] = False
    padded = batch_of(
        np.concatenate([maps, np.full_like(maps[:2], np.nan)]),
        np.concatenate([masks, np.ones_like(masks[:2])]),
        valid=[True] * len(maps) + [False] * 2,
    )
    metric = form()
    assert run(metric, padded) == run(metric, batch_of(maps, masks))
    wrong = padded[0]._replace(
        anomaly_map=np.nan_to_num(padded[0].anomaly_map, nan=-9.0),
        image_score=np.nan_to_num(padded[0].image_score, nan=-9.0),
    )
    counted = {**padded[1], "valid": np.ones(len(maps) + 2, bool)}
    assert run(metric, (wrong, counted)) != run(metric, padded)  # negative control


@pytest.mark.parametrize("form", PIXEL_FORMS)
def test_splitting_or_reordering_batches_changes_nothing(form):
    maps, masks = random_maps(5, num=6)
    whole = run(form(), batch_of(maps, masks))
    parts = [batch_of(maps[i : i + 2], masks[i : i + 2]) for i in (4, 0, 2)]
    assert run(form(), *parts) == whole


@pytest.mark.parametrize("kind", ["plain", "tied", "constant", "inverted"])
def test_pixels_that_are_kept_are_ranked_exactly(kind):
    scores, labels = (part.reshape(5, 10, 10) for part in scores_and_labels(kind))
    scores[1, 2, :2] = 0.0, -0.0
    scores[2, 3, :2] = np.inf, -np.inf
    parts = [batch_of(scores[i : i + 2], labels[i : i + 2]) for i in (2, 0, 4)]
    wanted = truth(*parts)
    found = run(ranking.pixels(), *parts)
    assert found == pytest.approx(wanted, abs=1e-14)  # sums in another order
    moved = scores + 1e-3 * labels
    other = run(ranking.pixels(), batch_of(moved, labels))
    assert kind == "inverted" or other != found  # negative control


def test_curves_of_kept_pixels_enclose_their_average_precision():
    metric = ranking.pixels()
    maps, masks = random_maps(3, num=1, side=10)
    state = metric.update(metric.init(), *batch_of(maps, masks))
    found = ranking.curves(ranking.count_pixels(state))["precision_recall"]
    area = np.sum(np.diff(found.x) * np.asarray(found.y[1:]))
    assert area == pytest.approx(metric.finalize(state)["pixel_ap"], abs=1e-12)


@pytest.mark.parametrize("piece", [7, 2**20])
def test_pixels_past_the_limit_are_counted_in_bins(piece, monkeypatch):
    monkeypatch.setattr(ranking, "_PIECE", piece)
    maps, masks = random_maps(9, num=6)
    parts = [batch_of(maps[i : i + 2], masks[i : i + 2]) for i in (0, 2, 4)]
    size = maps[:2].size
    metric = ranking.pixels(limit=size)
    first = metric.update(metric.init(), *parts[0])
    second = metric.update(first, *parts[1])
    assert isinstance(first, ranking.Pixels)
    assert isinstance(second, ranking.Histogram)
    binned = run(ranking.histogram(), *parts)
    assert run(metric, *parts) == binned
    assert run(ranking.pixels(limit=3 * size), *parts) != binned  # negative control


def test_histogram_update_compiles_as_part_of_a_larger_function():
    maps, masks = random_maps(6)
    predictions, batch = batch_of(maps, masks)
    metric = ranking.histogram()
    state = jax.jit(metric.update)(metric.init(), predictions, batch)
    assert metric.finalize(state) == run(metric, (predictions, batch))


def test_histogram_counts_past_thirty_two_bits():
    metric = ranking.histogram()
    bins = binning.num_bins()
    start = ranking.Histogram(
        np.full((2, bins), 2**30 - 1, np.int32), np.full((2, bins), 7, np.int32)
    )
    predictions, batch = batch_of(np.ones((1, 4, 4)), np.zeros((1, 4, 4)))
    state = metric.update(start, predictions, batch)
    total = np.asarray(state.low, np.int64) + (np.asarray(state.high, np.int64) << 30)
    before = 2**30 - 1 + 7 * 2**30
    assert total.sum() == 2 * bins * before + 16
    assert total.max() == before + 16 > 2**32


@pytest.mark.parametrize("form", [ranking.images, *PIXEL_FORMS])
def test_without_positives_everything_is_undefined(form):
    maps, _ = random_maps(0)
    result = run(form(), batch_of(maps, np.zeros_like(maps)))
    assert len(result) == len(KEYS) and all(map(np.isnan, result.values()))


@pytest.mark.parametrize("form", [ranking.images, *PIXEL_FORMS])
def test_without_negatives_only_auroc_is_undefined(form):
    maps, _ = random_maps(0)
    found, *others = run(form(), batch_of(maps, np.ones_like(maps))).values()
    assert np.isnan(found) and others == [1, 1]


@pytest.mark.parametrize("form", PIXEL_FORMS)
def test_one_image_has_pixel_metrics_but_no_image_auroc(form):
    maps, masks = random_maps(0, num=1)
    batch = batch_of(maps, masks)
    assert 0.5 < run(form(), batch)["pixel_auroc"] < 1
    assert np.isnan(run(ranking.images(), batch)["image_auroc"])


@pytest.mark.parametrize("form", PIXEL_FORMS)
@pytest.mark.parametrize("missing", ["absent", "none"])
def test_without_masks_pixel_metrics_are_undefined(form, missing):
    predictions, batch = batch_of(*random_maps(0))
    del batch["mask"]
    if missing == "none":
        batch["mask"] = None
    assert all(np.isnan(v) for v in run(form(), (predictions, batch)).values())


def test_shuffled_scores_rank_at_chance_level():
    maps, masks = random_maps(8, num=8, side=64)
    shuffled = np.random.default_rng(0).permutation(maps.ravel()).reshape(maps.shape)
    result = run(ranking.histogram(), batch_of(shuffled, masks))
    # Standard error sqrt((P + N + 1) / (12 P N)) is 0.005 for 3,300 positives.
    assert abs(result["pixel_auroc"] - 0.5) < 0.02
    assert abs(result["pixel_ap"] - masks.mean()) < 0.02
    assert run(ranking.histogram(), batch_of(maps, masks))["pixel_auroc"] > 0.7


@pytest.mark.parametrize("form", PIXEL_FORMS)
def test_nan_scores_are_refused(form):
    maps, masks = random_maps(0)
    maps[1, 2, 3] = np.nan
    maps[2, 3, 4] = -np.nan
    with pytest.raises(ValueError, match="2 scores are NaN"):
        run(form(), batch_of(maps, masks))


def test_infinite_scores_are_ranked():
    maps, masks = random_maps(0)
    maps[masks] = np.inf
    maps[0, 0, 0] = -np.inf
    assert run(ranking.histogram(), batch_of(maps, masks))["pixel_auroc"] == 1


@pytest.mark.parametrize("form", PIXEL_FORMS)
def test_maps_of_another_size_than_the_mask_are_refused(form):
    maps, masks = random_maps(0)
    with pytest.raises(ValueError, match="predict at the size of the mask"):
        run(form(), batch_of(maps[:, ::2, ::2], masks))


def test_curves_are_short_and_keep_their_ends_and_area():
    maps, masks = random_maps(9, num=8, side=64)
    counts = ranking.count_scores(ranking.Scores(maps.ravel(), masks.ravel()))
    curves = ranking.curves(counts)
    roc = curves["roc"]
    assert len(roc.x) <= ranking.CURVE_POINTS
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    # Points lie at most 2/199 of path apart; a chord cuts off less than 1e-3 of area.
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(ranking.auroc(counts), abs=1e-3)
    points = curves["precision_recall"]
    assert len(points.x) <= ranking.CURVE_POINTS
    assert np.all(np.diff(points.x) >= 0)
    steps = np.sum(np.diff(points.x) * points.y[1:])
    # The jagged start is undersampled: few positives, large steps in precision.
    assert steps == pytest.approx(ranking.average_precision(counts), abs=1e-2)


def test_undefined_curves_are_absent():
    only_negatives = ranking.Counts(np.array([0, 0]), np.array([1, 2]))
    assert ranking.curves(only_negatives) == {}
    only_positives = ranking.Counts(np.array([1, 2]), np.array([0, 0]))
    assert set(ranking.curves(only_positives)) == {"precision_recall"}


def test_rescaled_scores_are_ranked_over_all_batches_of_a_category():
    """Min-max over the whole category: the second batch changes the first's ranks."""

    def rescale(parts):
        low, high = parts.min(0), parts.max(0)
        return ((parts - low) / (high - low)).sum(1)

    parts = np.array([[0.0, 5.0], [0.2, 4.0], [0.9, 0.0], [1.0, 1.0]], np.float32)
    labels = np.array([1, 0, 0, 1])

    def batches():
        for rows in (slice(0, 2), slice(2, 4)):
            image_score = np.zeros(2, np.float32)
            predictions = Predictions(None, image_score, score_parts=parts[rows])
            yield predictions, {"label": labels[rows], "valid": np.ones(2, bool)}

    found = run(ranking.images(rescale), *batches())
    # Rescaled: 1.0, 1.0, 0.9, 1.2; the positives win 3 of 4 pairs and tie in one.
    assert found["image_auroc"] == pytest.approx(3.5 / 4)
    # Negative control: without it the scores, all zero, are ranked.
    assert run(ranking.images(), *batches())["image_auroc"] == 0.5
