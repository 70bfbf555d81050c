"""Mean and spread of every channel on normal material that is not in the memory.

A shot compared with itself has distance 0 and would spoil the statistics. With two
shots or more each is scored as if it had not been seen (`bank.distances`, `left_out`);
one shot has no other, and slightly shifted and enlarged views of it stand in, which no
entry of the memory matches exactly.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxanom.methods.adp import bank, crops

LEAST_VIEWS = 8
AMOUNT = 0.12
"""Largest zoom of a view, as a fraction of the side."""
SMALLEST_SPREAD = 1e-4


class Calibration(NamedTuple):
    """Statistics of one category.

    Attributes:
      centre, spread: [N] of the maps of each of N cells of all channels.
      image_centre, image_spread: [Y] of a_0 at each temperature.
    """

    centre: np.ndarray
    spread: np.ndarray
    image_centre: np.ndarray
    image_spread: np.ndarray


def material(
    shots: np.ndarray, least: int = LEAST_VIEWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns normal images to calibrate on, and the shot each must not be told of.

    Args:
      shots: [K, H, W, 3] float in [0, 1], square.
      least: images wanted.
      seed: of the views.

    Returns:
      (images [M, H, W, 3], left_out [M] int32). K >= 2: the shots and views of them,
      each without its own shot. K = 1: views alone, nobody left out.
    """
    count = len(shots)
    per_shot = max(1, math.ceil(least / count))
    parts, left_out = [], []
    for number, shot in enumerate(shots):
        own = bank.NOBODY if count == 1 else number
        num_views = per_shot if count == 1 else per_shot - 1
        if count > 1:
            parts.append(shot[None])
        if num_views:
            boxes = crops.views(num_views, AMOUNT, seed + number)
            parts.append(crops.crop(shot, boxes, shot.shape[0]))
        left_out += [own] * per_shot
    return np.concatenate(parts), np.array(left_out, np.int32)


def fit(maps: np.ndarray, image_values: np.ndarray) -> Calibration:
    """Takes mean and standard deviation over images and places.

    Args:
      maps: [N, M, m, m], each cell's maps of M normal images.
      image_values: [Y, M], a_0 of the same images at each temperature.
    """
    maps = np.asarray(maps, np.float64)
    values = np.asarray(image_values, np.float64)

    def spread(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.maximum(array.std(axes), SMALLEST_SPREAD).astype(np.float32)

    return Calibration(
        centre=maps.mean((1, 2, 3)).astype(np.float32),
        spread=spread(maps, (1, 2, 3)),
        image_centre=values.mean(1).astype(np.float32),
        image_spread=spread(values, (1,)),
    )


def apply(maps: np.ndarray, found: Calibration) -> np.ndarray:
    """Standardises [N, M, m, m] cell by cell."""
    centre, spread = (x[:, None, None, None] for x in (found.centre, found.spread))
    return (maps - centre) / spread
