"""Arrays to numbers: how each property of defect generation is measured.

Fixed before any result was looked at:

- Colour correlation. Of every image, the generated colour is the mean RGB over the
  pixels of the refined mask, and the background colour the mean RGB of the normal image
  over a ring of 3 px around the requested mask. Each channel is centred over the
  images, and one Pearson correlation is taken over images and channels together: a
  generator that always paints the average defect colour gets 0, not the correlation
  that the channels' different means would give. Its error is the standard deviation
  over 1000 bootstrap resamples of the images. Real defects go through the same
  estimator and are the ceiling.
- Background error. Per image ||(1 - m)(z* - z)|| / ||(1 - m) z|| over latents,
  then the mean over images.
- Kept share. Per image |m*| / |m| over pixels, then the mean over images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

RING = 3
NUM_RESAMPLES = 1000


class Correlation(NamedTuple):
    """A colour correlation over images.

    Attributes:
      value: channel-centred Pearson correlation, in [-1, 1]; NaN below three images.
      error: its bootstrap standard deviation.
      per_channel: correlation of each channel on its own.
      num_images: images with a non-empty refined mask.
    """

    value: float
    error: float
    per_channel: list[float]
    num_images: int


def mean_colour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the mean of [N, H, W, C] under [N, H, W]: [N, C], NaN for no pixel."""
    weight = np.asarray(mask, bool)[..., None]
    area = weight.sum((1, 2))
    total = np.where(weight, image, 0.0).sum((1, 2), dtype=np.float64)
    return np.where(area > 0, total / np.maximum(area, 1), np.nan)


def ring(mask: np.ndarray, width: int = RING) -> np.ndarray:
    """Returns the pixels within `width` px around each mask of [N, H, W]."""
    square = np.ones((3, 3), bool)
    solid = np.asarray(mask, bool)
    grown = [ndimage.binary_dilation(row, square, iterations=width) for row in solid]
    return np.stack(grown) & ~solid


def colour_correlation(
    drawn: np.ndarray, drawn_mask: np.ndarray, normal: np.ndarray, mask: np.ndarray
) -> Correlation:
    """Correlates defect colours with background colours; see the top of this file.

    Args:
      drawn: [N, H, W, 3], images with defects.
      drawn_mask: [N, H, W], where they are.
      normal: [N, H, W, 3], the same images without.
      mask: [N, H, W], the requested masks.
    """
    defect = mean_colour(drawn, drawn_mask)
    background = mean_colour(normal, ring(mask))
    valid = np.isfinite(defect).all(1) & np.isfinite(background).all(1)
    return correlate(defect[valid], background[valid])


def correlate(first: np.ndarray, second: np.ndarray) -> Correlation:
    """Channel-centred Pearson correlation of [N, C] with [N, C], with its error."""
    count = len(first)
    if count < 3:
        return Correlation(float("nan"), float("nan"), [], count)
    rng = np.random.default_rng(0)
    resampled = [
        _pearson(first[rows], second[rows])
        for rows in rng.integers(count, size=(NUM_RESAMPLES, count))
    ]
    channels = [_pearson(first[:, [c]], second[:, [c]]) for c in range(first.shape[1])]
    error = float(np.nanstd(resampled))
    return Correlation(_pearson(first, second), error, channels, count)


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(0), second - second.mean(0)
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size > 0 else float("nan")


def background_error(
    latents: np.ndarray, normal: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Relative error outside [N, h, w] of latents [N, h, w, C]; one value an image."""
    outside = np.asarray(mask)[..., None] < 0.5
    gap = np.where(outside, latents - normal, 0.0).astype(np.float64)
    size = np.where(outside, normal, 0.0).astype(np.float64)
    axes = (1, 2, 3)
    return np.sqrt((gap**2).sum(axes) / (size**2).sum(axes))


def kept_share(refined: np.ndarray, requested: np.ndarray) -> np.ndarray:
    """Returns |m*| / |m| of each row of [N, H, W]."""
    asked = np.asarray(requested) > 0.5
    kept = (np.asarray(refined) > 0.5) & asked
    return kept.sum((1, 2)) / np.maximum(asked.sum((1, 2)), 1)


def spreads(
    scores: Sequence[Mapping[str, float]], metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns the `spread` of every metric over repeats."""
    return {name: spread([score[name] for score in scores]) for name in metrics}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns mean, sample standard deviation and the values themselves."""
    values = [float(value) for value in values]
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}
