"""Random defect regions: ellipses, blobs and strokes on the product."""

from collections.abc import Callable

import numpy as np
import scipy.ndimage

AREAS = 0.002, 0.15
"""Least and greatest share of the image."""
_TRIES = 20


def saliency(image: np.ndarray, border: float = 0.06) -> np.ndarray:
    """Guesses where the product is, [H, W] bool; everywhere for a texture.

    What differs from the border's median colour by more than the border itself does. A
    border that varies, or a product that fills less than a twentieth, gives everything.

    Args:
      image: [H, W, 3] in [0, 1].
      border: width of the border as a share of the side.
    """
    height, width = image.shape[:2]
    edge = np.ones((height, width), bool)
    inset = max(1, round(border * min(height, width)))
    edge[inset:-inset, inset:-inset] = False
    colour = np.median(image[edge], axis=0)
    distance = np.abs(image - colour).mean(-1)
    limit = max(2 * np.percentile(distance[edge], 90), 0.06)
    product = scipy.ndimage.binary_closing(distance > limit, iterations=2)
    if np.percentile(distance[edge], 75) > 0.1 or product.mean() < 0.05:
        return np.ones((height, width), bool)
    return product


def draw(where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws one region, [H, W] uint8, of 0.2 % to 15 % of the image.

    Args:
      where: [H, W] bool, of `saliency`; the region is cut to it and never empty.
      rng: Decides the draw.
    """
    shapes: tuple[Callable, ...] = (_ellipse, _blob, _stroke)
    for _ in range(_TRIES):
        shape = shapes[rng.integers(len(shapes))]
        area = np.exp(rng.uniform(*np.log(AREAS)))
        rows, columns = np.nonzero(where)
        place = rng.integers(len(rows))
        mask = shape(where.shape, (rows[place], columns[place]), area, rng) & where
        if AREAS[0] <= mask.mean() <= 1.5 * AREAS[1]:
            return mask.astype(np.uint8)
    side = max(2, round((AREAS[0] * where.size) ** 0.5))
    mask = np.zeros(where.shape, np.uint8)
    mask[rows[place] : rows[place] + side, columns[place] : columns[place] + side] = 1
    return mask


def _places(shape: tuple[int, int], centre: tuple[int, int], angle: float):
    """Coordinates of every pixel about a centre, turned."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    down, right = rows - centre[0], columns - centre[1]
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * right + sine * down, cosine * down - sine * right


def _ellipse(shape, centre, area, rng):
    along, across = _places(shape, centre, rng.uniform(0, np.pi))
    ratio = rng.uniform(1, 3)
    minor = max(1.0, np.sqrt(area * shape[0] * shape[1] / (np.pi * ratio)))
    return (along / (ratio * minor)) ** 2 + (across / minor) ** 2 <= 1


def _blob(shape, centre, area, rng):
    smooth = scipy.ndimage.gaussian_filter(
        rng.standard_normal(shape), max(1.5, 0.05 * min(shape)), mode="reflect"
    )
    along, across = _places(shape, centre, 0.0)
    radius = max(2.0, np.sqrt(2 * area * shape[0] * shape[1] / np.pi))
    inside = along**2 + across**2 <= radius**2
    level = np.median(smooth[inside]) if inside.any() else 0.0
    return inside & (smooth > level)


def _stroke(shape, centre, area, rng):
    """A thin line with a slight bend."""
    along, across = _places(shape, centre, rng.uniform(0, np.pi))
    thickness = max(1.0, rng.uniform(0.006, 0.02) * min(shape))
    length = min(area * shape[0] * shape[1] / (2 * thickness), 0.4 * min(shape))
    length = max(length, 3 * thickness)
    bend = rng.uniform(-0.3, 0.3) / length
    return (np.abs(along) <= length) & (np.abs(across - bend * along**2) <= thickness)
