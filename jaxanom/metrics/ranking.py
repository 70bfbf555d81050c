"""AUROC, average precision and F1-max, exact or from one pass of integer counts.

All three depend on the scores only through their order, so they are functions of
`Counts`: how many positives and negatives share each score, highest score first.
`images` keeps every score on the host, `pixels` too while they fit; `histogram` counts
scores in fixed bins on the device, where scores that share a bin count as tied, in
every metric alike.

NaN is an answer: it says that a quantity is undefined. Without positives all three are
NaN, without negatives AUROC is. A NaN *score* is an error.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.contracts import Metric
from jaxanom.errors import UserError
from jaxanom.metrics import bins
from jaxanom.types import Array, Batch, Predictions

Rescale = Callable[[np.ndarray], np.ndarray]
"""Score parts [N, K] of all images of a category -> scores [N]."""

PIXEL_LIMIT = 2**26
"""Pixels of a category that `pixels` keeps, 256 MiB; of 518 x 518 images 250."""
CURVE_POINTS = 200
_DIGIT_BITS = 30
_PIECE = 2**20


class Counts(NamedTuple):
    """Samples that share a score, one entry per distinct score, highest first.

    Attributes:
      positives, negatives: [K] int64; every entry has at least one sample.
    """

    positives: np.ndarray
    negatives: np.ndarray


class Curve(NamedTuple):
    """Points of a curve, at most `CURVE_POINTS`, as lists that JSON can hold."""

    x: list[float]
    y: list[float]


class Scores(NamedTuple):
    """State of `images`: [N] float32 scores and [N] bool, True = positive.

    With `rescale`, [N, K] parts of scores instead.
    """

    scores: np.ndarray
    positive: np.ndarray


class Pixels(NamedTuple):
    """State of `pixels` while all are kept: scores in float32, a chunk a batch."""

    positives: tuple[np.ndarray, ...]
    negatives: tuple[np.ndarray, ...]


class Histogram(NamedTuple):
    """State of `histogram`: counts as two int32 digits, `low + 2**30 * high`.

    Device integers have 32 bits; one digit would overflow after 2**31 pixels in a bin
    (some 32,000 images of 256 x 256), two hold 2**61. Rows: negatives, positives.
    """

    low: Array  # [2, num_bins]
    high: Array  # [2, num_bins]


def auroc(counts: Counts) -> float:
    """Area under the ROC curve: P(positive above negative) + P(tied) / 2.

    Trapezoids between distinct scores, which is the Mann-Whitney statistic. Sums are of
    integers, exact in float64 up to 2**53; the clip is for rounding beyond that.
    """
    num_positives, num_negatives = counts.positives.sum(), counts.negatives.sum()
    if num_positives == 0 or num_negatives == 0:
        return float("nan")
    below = num_negatives - np.cumsum(counts.negatives)
    won = counts.positives * (below + counts.negatives / 2)
    area = float(won.sum()) / (float(num_positives) * float(num_negatives))
    return float(np.clip(area, 0, 1))


def average_precision(counts: Counts) -> float:
    """Sum over thresholds of precision times the recall gained there.

    The step definition, sum_n (R_n - R_{n-1}) P_n; not the trapezoid, which is
    optimistic.
    """
    num_positives = counts.positives.sum()
    if num_positives == 0:
        return float("nan")
    precision, _ = _precision_recall(counts)
    return float(np.clip(np.sum(counts.positives * precision) / num_positives, 0, 1))


def f1_max(counts: Counts) -> float:
    """The largest F1 over all thresholds."""
    hits = np.cumsum(counts.positives)
    if not counts.positives.any():
        return float("nan")
    flagged = hits + np.cumsum(counts.negatives)
    return float(np.max(2 * hits / (flagged + hits[-1])))


def curves(counts: Counts) -> dict[str, Curve]:
    """ROC and precision-recall curves for plots; a curve that is undefined is absent.

    Returns:
      `roc`: false-positive rate against recall, from (0, 0) to (1, 1).
      `precision_recall`: recall against precision; height is constant to the left of a
        point, so that the steps enclose the average precision.
    """
    num_positives, num_negatives = counts.positives.sum(), counts.negatives.sum()
    by_name = {}
    if num_positives and num_negatives:
        x = np.append(0, np.cumsum(counts.negatives)) / num_negatives
        y = np.append(0, np.cumsum(counts.positives)) / num_positives
        by_name["roc"] = thin(x, y)
    if num_positives:
        precision, recall = _precision_recall(counts)
        steps = np.append(0, recall), np.append(precision[:1], precision)
        by_name["precision_recall"] = thin(*steps)
    return by_name


def thin(x: np.ndarray, y: np.ndarray, limit: int = CURVE_POINTS) -> Curve:
    """Picks at most `limit` points, evenly along the curve, both ends among them."""
    if len(x) > limit:
        moves = np.abs(np.diff(x)) + np.abs(np.diff(y))
        length = np.append(0, np.cumsum(moves))
        picked = np.searchsorted(length, np.linspace(0, length[-1], limit))
        picked = np.unique(picked)
        x, y = x[picked], y[picked]
    return Curve(x=np.asarray(x).tolist(), y=np.asarray(y).tolist())


def count_scores(state: Scores) -> Counts:
    """Groups equal scores."""
    distinct, group = np.unique(state.scores, return_inverse=True)
    positives = np.bincount(group[state.positive], minlength=len(distinct))
    negatives = np.bincount(group[~state.positive], minlength=len(distinct))
    return Counts(positives[::-1].astype(np.int64), negatives[::-1].astype(np.int64))


def count_pixels(state: Pixels | Histogram) -> Counts:
    """Ranks negatives against positives; those that no positive parts share an entry.

    No metric and no curve tells such negatives from tied ones. All negatives are sorted
    once, and looked up at the positives' scores.
    """
    if isinstance(state, Histogram):
        return count_histogram(state)
    positives, negatives = (_joined(chunks) for chunks in state)
    negatives.sort()
    distinct, share = np.unique(positives, return_counts=True)
    below = np.searchsorted(negatives, distinct, "left")
    through = np.searchsorted(negatives, distinct, "right")
    # Upwards: negatives below the first positive score, tied with it, and so on.
    edges = np.empty(2 * len(distinct) + 2, np.int64)
    edges[0], edges[-1] = 0, len(negatives)
    edges[1:-1:2], edges[2:-1:2] = below, through
    of_negatives = np.diff(edges)
    of_positives = np.zeros_like(of_negatives)
    of_positives[1::2] = share
    occupied = np.flatnonzero(of_positives + of_negatives)[::-1]
    return Counts(of_positives[occupied], of_negatives[occupied])


def count_histogram(state: Histogram) -> Counts:
    """Reads the occupied bins; a NaN among the scores is a UserError."""
    low, high = (np.asarray(digit, dtype=np.int64) for digit in state)
    total = low + (high << _DIGIT_BITS)
    infinity = int(bins.bin_index(jnp.inf))  # NaN has larger bit patterns
    refuse_nan(int(total[:, infinity + 1 :].sum()))
    occupied = np.flatnonzero(total.sum(axis=0))[::-1]
    return Counts(positives=total[1, occupied], negatives=total[0, occupied])


def images(rescale: Rescale | None = None) -> Metric:
    """AUROC, AP and F1-max of `image_score` by `label`; keeps all scores on the host.

    Args:
      rescale: `Method.rescale`; what is ranked is its result on the `score_parts` of
        all images, a transductive protocol.
    """

    def init() -> Scores:
        return Scores(np.zeros(0, np.float32), np.zeros(0, bool))

    def update(state: Scores, predictions: Predictions, batch: Batch) -> Scores:
        positive = _positives("image", predictions.image_score, batch["label"])
        parts = predictions.image_score if rescale is None else predictions.score_parts
        scores, positive = _valid_rows(parts, positive, batch)
        before = state.scores.reshape(-1, *scores.shape[1:])
        positive = np.append(state.positive, positive)
        return Scores(np.concatenate([before, scores]), positive)

    def finalize(state: Scores) -> dict[str, float]:
        return _summary("image", count_scores(rescaled(state, rescale)))

    return Metric(init, update, finalize)


def rescaled(state: Scores, rescale: Rescale | None) -> Scores:
    """Turns parts of scores into scores; without `rescale` they are that already."""
    if rescale is None or len(state.positive) == 0:
        return state
    return Scores(rescale(state.scores), state.positive)


def pixels(limit: int = PIXEL_LIMIT) -> Metric:
    """AUROC, AP and F1-max of pixels: exact up to `limit` of them, then from counts.

    Batches without a mask are skipped. On a CPU it takes about twice the time of
    `histogram`. A category of more pixels is counted by `histogram`, all of them, so
    memory stays bounded.

    Args:
      limit: Pixels that are kept on the host, 4 bytes each.
    """
    counted = histogram()

    def init() -> Pixels:
        return Pixels((), ())

    def update(
        state: Pixels | Histogram, predictions: Predictions, batch: Batch
    ) -> Pixels | Histogram:
        if isinstance(state, Histogram):
            return counted.update(state, predictions, batch)
        if batch.get("mask") is None:
            return state
        values = predictions.anomaly_map
        positive = _positives("pixel", values, batch["mask"])
        scores, positive = _valid_rows(values, positive, batch)
        state = Pixels(
            (*state.positives, scores[positive]), (*state.negatives, scores[~positive])
        )
        kept = sum(len(chunk) for chunks in state for chunk in chunks)
        return state if kept <= limit else _in_bins(state)

    return Metric(init, update, lambda state: _summary("pixel", count_pixels(state)))


def histogram() -> Metric:
    """AUROC, AP and F1-max of pixels from integer counts in `bins.num_bins` bins.

    One pass, jittable, 4.4 MB, no range to set: see `bins.bin_index`. Scores of a bin
    count as tied. Batches without a mask are skipped. A batch must hold fewer than
    2**30 pixels, all of them together fewer than 2**61 a bin.
    """
    shape = (2, bins.num_bins())

    def init() -> Histogram:
        return Histogram(np.zeros(shape, np.int32), np.zeros(shape, np.int32))

    def update(state: Histogram, predictions: Predictions, batch: Batch) -> Histogram:
        if batch.get("mask") is None:
            return state
        values = predictions.anomaly_map
        positive = _positives("pixel", values, batch["mask"])
        return _add(state, values, positive, batch["valid"])

    return Metric(init, update, lambda state: _summary("pixel", count_histogram(state)))


def refuse_nan(number: int) -> None:
    """Raises UserError if any score is NaN; a NaN has no rank."""
    if number:
        raise UserError(
            f"{number} scores are NaN and cannot be ranked; look for them in `predict`"
        )


@jax.jit
def _add(state: Histogram, values: Array, positive: Array, valid: Array) -> Histogram:
    """Adds one batch; values [B, ...], positive [B, ...] bool, valid [B]."""
    if values.size >= 2**_DIGIT_BITS:
        raise UserError(f"{values.size} samples in one batch; use fewer than 2**30")
    count = bins.num_bins()
    valid = jnp.asarray(valid, bool).reshape((-1,) + (1,) * (values.ndim - 1))
    index = bins.bin_index(values) + count * positive.astype(jnp.int32)
    ones = jnp.broadcast_to(valid, values.shape).astype(jnp.int32)
    counts = jnp.zeros(2 * count, jnp.int32).at[index.ravel()].add(ones.ravel())
    low = state.low + counts.reshape(2, count)  # < 2**31: both terms are < 2**30
    carry = low >> _DIGIT_BITS
    return Histogram(low - (carry << _DIGIT_BITS), state.high + carry)


def _in_bins(state: Pixels) -> Histogram:
    """Counts what was kept, in pieces of one size, as counting compiles for a size."""
    counted = histogram().init()
    for target, chunks in enumerate(state):
        scores = _joined(chunks)
        for start in range(0, len(scores), _PIECE):
            piece = scores[start : start + _PIECE]
            valid = np.arange(_PIECE) < len(piece)
            piece = np.pad(piece, (0, _PIECE - len(piece)))
            positive = np.full(_PIECE, target == 0)
            counted = _add(counted, piece, positive, valid)
    return counted


def _joined(chunks: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)


def _positives(what: str, values: Any, targets: Any) -> Any:
    """Says which of the scores, of the same shape as their targets, are positives."""
    if values.shape != targets.shape:
        raise UserError(
            f"{what} scores have shape {values.shape}, targets {targets.shape}; "
            "predict at the size of the mask"
        )
    return targets >= 0.5


def _valid_rows(
    values: Any, positive: Any, batch: Batch
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores and positives of valid rows on the host."""
    valid = np.asarray(batch["valid"], bool)
    scores = np.asarray(values, np.float32)[valid]
    refuse_nan(int(np.isnan(scores).sum()))
    return scores, np.asarray(positive)[valid]


def _precision_recall(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    hits = np.cumsum(counts.positives)
    return hits / (hits + np.cumsum(counts.negatives)), hits / hits[-1]


def _summary(level: str, counts: Counts) -> dict[str, float]:
    return {
        f"{level}_auroc": auroc(counts),
        f"{level}_ap": average_precision(counts),
        f"{level}_f1_max": f1_max(counts),
    }
