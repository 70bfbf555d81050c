"""Localisation metrics on whole arrays, as released zero-shot code defines them.

For comparison with tables that were made by it (arXiv 2503.10080 and its relatives).
They differ from `regions` and `ranking`, which are exact: per-region overlap is read at
fixed thresholds, cut at the false-positive limit without interpolation, and the rate is
stretched to [0, 1] between the extremes that are left.
"""

import numpy as np
from scipy import ndimage

from jaxanom.metrics import ranking


def per_region_overlap(
    anomaly_map: np.ndarray,
    mask: np.ndarray,
    num_steps: int = 200,
    fpr_limit: float = 0.3,
) -> float:
    """Area under per-region overlap against false-positive rate.

    Args:
      anomaly_map: [N, H, W], all images of a category.
      mask: [N, H, W], binary; regions touch at corners too.
      num_steps: thresholds, evenly from the least value on, the greatest left out.
      fpr_limit: rates from here on are left out.

    Returns:
      In [0, 1]; NaN without a region, a defect-free pixel, or two points below the
      limit.
    """
    mask = np.asarray(mask) > 0.5
    regions = _region_scores(anomaly_map, mask)
    calm = np.sort(anomaly_map[~mask])
    if not regions or not len(calm):
        return float("nan")
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    thresholds = low + (high - low) / num_steps * np.arange(num_steps)
    overlap = np.mean([_share_above(scores, thresholds) for scores in regions], axis=0)
    rate = _share_above(calm, thresholds)
    kept = rate < fpr_limit
    rate, overlap = rate[kept][::-1], overlap[kept][::-1]  # rates ascend
    if len(rate) < 2 or rate[-1] == rate[0]:
        return float("nan")
    stretched = (rate - rate[0]) / (rate[-1] - rate[0])
    return float(np.trapezoid(overlap, stretched))


def iou_at_f1_max(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Intersection over union at the threshold of the largest F1.

    The threshold itself counts as negative here, though F1 counts it as positive.

    Args:
      scores: any shape.
      positive: the same shape, bool.

    Returns:
      (IoU, threshold); NaN without positives.
    """
    scores, positive = np.ravel(scores), np.ravel(positive).astype(bool)
    if not positive.any():
        return float("nan"), float("nan")
    counts = ranking.count_scores(ranking.Scores(scores, positive))
    hits = np.cumsum(counts.positives)
    flagged = hits + np.cumsum(counts.negatives)
    best = np.argmax(2 * hits / (flagged + hits[-1]))
    threshold = np.unique(scores)[::-1][best]
    guess = scores > threshold
    both, either = np.sum(guess & positive), np.sum(guess | positive)
    return float(both / either), float(threshold)


def _region_scores(anomaly_map: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Sorted scores of every connected region of every image."""
    found = []
    for scores, one in zip(anomaly_map, mask, strict=True):
        numbered, count = ndimage.label(one, structure=np.ones((3, 3)))
        found += [np.sort(scores[numbered == i]) for i in range(1, count + 1)]
    return found


def _share_above(ordered: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of ascending values that lie strictly above each threshold."""
    below = np.searchsorted(ordered, thresholds.astype(ordered.dtype), side="right")
    return 1 - below / len(ordered)
