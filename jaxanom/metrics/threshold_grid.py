"""Per-region overlap on whole arrays, as released zero-shot code defines it.

For comparison with tables that were made by it (arXiv 2503.10080 and its relatives). It
differs from `regions`, which is exact: overlap is read at fixed thresholds, cut at the
false-positive limit without interpolation, and the rate is stretched to [0, 1] between
the extremes that are left.
"""

import numpy as np
from scipy import ndimage


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
      num_steps: Thresholds, evenly from the least value on, the greatest left out.
      fpr_limit: Rates from here on are left out.

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


def _region_scores(anomaly_map: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Sorted scores of every connected region of every image."""
    ordered = []
    for scores, image_mask in zip(anomaly_map, mask, strict=True):
        numbers, count = ndimage.label(image_mask, structure=np.ones((3, 3)))
        ordered += [np.sort(scores[numbers == k]) for k in range(1, count + 1)]
    return ordered


def _share_above(ordered: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of ascending values that lie strictly above each threshold."""
    below = np.searchsorted(ordered, thresholds.astype(ordered.dtype), side="right")
    return 1 - below / len(ordered)
