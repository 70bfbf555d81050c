"""One array size for images of any aspect ratio, none of them squeezed.

A canvas has the median ratio of a dataset's images. An image of another ratio is fitted
in, and the rest of the canvas shows its mirrored content, mask alike: what a network
sees there is as ordinary as the image, and every pixel of it carries its true label.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxanom.data import images

MULTIPLE = 32
"""The coarsest stride of the feature towers."""
LONGEST = 4
"""A canvas is at most this many times as long as wide."""
STRETCH = 1 / 16
"""Ratios this close to the canvas's are stretched to fill it."""
VARIED = 1.5
"""Where ratios differ by more than this factor, images are stretched after all."""


class Region(NamedTuple):
    """Where an image lies in its canvas, in pixels."""

    top: int
    left: int
    height: int
    width: int


def size_for(shapes: Sequence[tuple[int, int]], side: int) -> tuple[int, int]:
    """Returns the (height, width) of the canvas for images of these shapes.

    Args:
      shapes: (height, width) of images, at least one.
      side: The canvas's shorter side. The longer one is a multiple of all powers of
        two up to 32 that divide it, so that networks can halve both as often.
    """
    multiple = math.gcd(side, MULTIPLE)
    ratio = float(np.median([height / width for height, width in shapes]))
    longer = side * min(max(ratio, 1 / ratio), LONGEST)
    longer = multiple * max(round(longer / multiple), 1)
    return (longer, side) if ratio > 1 else (side, longer)


def varies(shapes: Sequence[tuple[int, int]]) -> bool:
    """Whether the ratios of images (height, width) differ too much for one canvas.

    Fitted in, a long image would show its surface at a fraction of the scale of the
    others, which harms a detector more than stretching does. The outer tenths of the
    ratios do not count.
    """
    ratios = [height / width for height, width in shapes]
    low, high = np.quantile(ratios, [0.1, 0.9])
    return bool(high > VARIED * low)


def region(shape: tuple[int, int], size: tuple[int, int]) -> Region:
    """Returns where an image of `shape` lies in a canvas of `size`, both (H, W)."""
    scales = [inner / own for inner, own in zip(size, shape, strict=True)]
    if max(scales) <= (1 + STRETCH) * min(scales):
        return Region(0, 0, *size)
    height, width = (max(1, round(min(scales) * own)) for own in shape)
    return Region((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fits uint8 [H, W, 3] into a canvas without squeezing it."""
    place = region(image.shape[:2], size)
    return _bordered(images.resize_image(image, place[2:]), place, size)


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fits a uint8 {0, 1} mask [H, W] into a canvas as its image is fitted."""
    place = region(mask.shape, size)
    return _bordered(images.resize_mask(mask, place[2:]), place, size)


def resized(
    image: np.ndarray, mask: np.ndarray, size: tuple[int, int], keeps_aspect: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Brings image and mask to `size`, fitted in or stretched."""
    if keeps_aspect:
        return fit_image(image, size), fit_mask(mask, size)
    return images.resize_image(image, size), images.resize_mask(mask, size)


def content(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Crops a map [h, w] of a canvas to what shows an image of `shape` (H, W)."""
    top, left, height, width = region(shape, values.shape)
    return values[top : top + height, left : left + width]


def _bordered(values: np.ndarray, place: Region, size: tuple[int, int]) -> np.ndarray:
    top, left, height, width = place
    margins = [
        (top, size[0] - height - top),
        (left, size[1] - width - left),
        *[(0, 0)] * (values.ndim - 2),
    ]
    return np.pad(values, margins, mode="symmetric")
