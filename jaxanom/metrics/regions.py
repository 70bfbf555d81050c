"""Area under the per-region-overlap curve (AU-PRO), in one pass.

Pixel AUROC lets one large defect outweigh many small ones; here each connected defect
region weighs the same. PRO(t) is the mean over regions of the share of their pixels
above t. It is integrated over the false-positive rate of all defect-free pixels, from
0 to a limit (0.3 by custom), and divided by the limit, so that it lies in [0, 1].

Pixels are counted in the bins of `bins.bin_index`, region pixels with weight
1 / area: PRO is then a cumulative sum, and no anomaly map is kept.
"""

from typing import NamedTuple

import jax
import numpy as np
from scipy import ndimage

from jaxanom.contracts import Metric
from jaxanom.errors import UserError
from jaxanom.metrics import bins, ranking
from jaxanom.types import Batch, Predictions

FPR_LIMIT = 0.3
_bin_index = jax.jit(bins.bin_index)


class Regions(NamedTuple):
    """State, on the host.

    Attributes:
      negatives: [num_bins] int64, pixels outside every defect.
      overlap: [num_bins] float64, region pixels, each with weight 1 / area.
      num_regions: Connected defect regions seen so far.
    """

    negatives: np.ndarray
    overlap: np.ndarray
    num_regions: int


def region_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Finds connected regions and weighs each of their pixels by 1 / area.

    Pixels that touch at a corner belong together (8-connectivity).

    Args:
      mask: [H, W] bool.

    Returns:
      [H, W] float64 weights, 0 outside, which sum to the number of regions; and that.
    """
    region_ids, num_regions = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(region_ids.ravel(), minlength=num_regions + 1)
    weights = 1 / np.maximum(areas, 1)
    weights[0] = 0
    return weights[region_ids], num_regions


def per_region_overlap(fpr_limit: float = FPR_LIMIT) -> Metric:
    """`pixel_aupro` as a streamed metric; runs on the host, image by image.

    NaN without a region or without a defect-free pixel: it is undefined. Batches
    without a mask are skipped; mask pixels are defects from 0.5 on.

    Args:
      fpr_limit: Rate up to which the curve is integrated, in (0, 1].
    """
    if not 0 < fpr_limit <= 1:
        raise UserError(f"fpr_limit={fpr_limit}; choose a rate in (0, 1]")
    num_bins = bins.num_bins()

    def init() -> Regions:
        return Regions(np.zeros(num_bins, np.int64), np.zeros(num_bins), 0)

    def update(state: Regions, predictions: Predictions, batch: Batch) -> Regions:
        if batch.get("mask") is None:
            return state
        masks = np.asarray(batch["mask"]) >= 0.5  # [B, H, W]
        if predictions.anomaly_map.shape != masks.shape:
            raise UserError(
                f"anomaly_map has shape {predictions.anomaly_map.shape}, mask "
                f"{masks.shape}; predict at the size of the mask"
            )
        valid = np.asarray(batch["valid"], bool)
        anomaly_map = np.asarray(predictions.anomaly_map, np.float32)
        ranking.refuse_nan(int(np.isnan(anomaly_map[valid]).sum()))
        places = np.asarray(_bin_index(anomaly_map))
        negatives, overlap = state.negatives.copy(), state.overlap.copy()
        num_regions = state.num_regions
        for mask, place in zip(masks[valid], places[valid], strict=True):
            if mask.any():
                weights, count = region_weights(mask)
                num_regions += count
                np.add.at(overlap, place[mask], weights[mask])
            np.add.at(negatives, place[~mask], 1)
        return Regions(negatives, overlap, num_regions)

    def finalize(state: Regions) -> dict[str, float]:
        return {"pixel_aupro": area(*_curve(state), fpr_limit)}

    return Metric(init, update, finalize)


def area(rate: np.ndarray, overlap: np.ndarray, limit: float) -> float:
    """Integrates a piecewise linear curve from 0 to `limit`, divided by `limit`.

    The curve is cut at the limit by linear interpolation, so the result is exact.

    Args:
      rate: [K] non-decreasing from 0 to 1; empty if undefined, then the area is NaN.
      overlap: [K] in [0, 1].
      limit: End of the integral, in (0, 1].
    """
    if len(rate) == 0:
        return float("nan")
    inside = int(np.searchsorted(rate, limit, side="right"))
    x, y = rate[:inside], overlap[:inside]
    if inside < len(rate):
        cut = np.interp(limit, rate[inside - 1 : inside + 1], overlap[inside - 1 :][:2])
        x, y = np.append(x, limit), np.append(y, cut)
    return float(np.clip(np.trapezoid(y, x) / limit, 0, 1))


def curves(state: Regions) -> dict[str, ranking.Curve]:
    """The curve `pro`, false-positive rate against overlap; absent if undefined."""
    rate, overlap = _curve(state)
    return {"pro": ranking.thin(rate, overlap)} if len(rate) else {}


def _curve(state: Regions) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rate and overlap from the highest threshold down; or empty."""
    num_negatives = state.negatives.sum()
    if num_negatives == 0 or state.num_regions == 0:
        return np.zeros(0), np.zeros(0)
    occupied = np.flatnonzero((state.negatives > 0) | (state.overlap > 0))[::-1]
    rate = np.cumsum(state.negatives[occupied]) / num_negatives
    overlap = np.cumsum(state.overlap[occupied]) / state.num_regions
    return np.append(0, rate), np.append(0, np.minimum(overlap, 1))
