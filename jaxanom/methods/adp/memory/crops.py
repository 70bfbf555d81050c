"""Images of the shots: loaded, turned, and cut at several scales.

Crops let small structure fill a tower's input. Boxes are (top, left, height, width) as
fractions of the image. Orientation is kept: it is sometimes the defect.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxanom.data import catalog
from jaxanom.errors import UserError
from jaxanom.types import Array


class Pyramid(NamedTuple):
    """A fixed set of crops.

    Attributes:
      boxes: [N, 4] float32.
      level_starts, level_sizes: [M] int32; the crops of level m are the rows from
        `level_starts[m]` on; level 0 is the whole image.
    """

    boxes: np.ndarray
    level_starts: np.ndarray
    level_sizes: np.ndarray


def pyramid(
    divisions: Sequence[int] = (1, 2, 4), jitter: float = 0.05, seed: int = 0
) -> Pyramid:
    """Cuts an image into grids whose cells overlap by half.

    Args:
      divisions: cells along a side, per level; d gives (2 d - 1)^2 crops.
      jitter: largest shift of a crop, as a fraction of its side; crops stay inside.
      seed: Decides the shifts.

    Raises:
      UserError: the first level is not the whole image.
    """
    if not divisions or divisions[0] != 1 or any(d < 1 for d in divisions):
        raise UserError(
            f"config.adp.pyramid={tuple(divisions)}; wanted positive numbers, the "
            "first of them 1: the whole image"
        )
    rng = np.random.default_rng(seed)
    boxes, sizes = [], []
    for division in divisions:
        starts = np.arange(2 * division - 1) / (2 * division)
        grid = np.stack(np.meshgrid(starts, starts, indexing="ij"), -1).reshape(-1, 2)
        side = 1 / division
        shift = rng.uniform(-jitter * side, jitter * side, grid.shape)
        corners = np.clip(grid + shift, 0, 1 - side)
        boxes.append(np.concatenate([corners, np.full(grid.shape, side)], 1))
        sizes.append(len(grid))
    ends = np.cumsum(sizes)
    return Pyramid(
        np.concatenate(boxes).astype(np.float32),
        np.array([0, *ends[:-1]], np.int32),
        np.array(sizes, np.int32),
    )


def views(num_views: int, amount: float, seed: int) -> np.ndarray:
    """Draws boxes of an almost whole image, [V, 4]: shifts and zooms up to `amount`."""
    rng = np.random.default_rng(seed)
    side = 1 - rng.uniform(0.25 * amount, amount, (num_views, 1))
    corners = rng.uniform(0, 1, (num_views, 2)) * (1 - side)
    return np.concatenate([corners, side, side], 1).astype(np.float32)


def crop(image: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Cuts boxes out of one image on the host, bilinear with antialiasing.

    Args:
      image: [H, W, 3] float in [0, 1].
      boxes: [N, 4].
      size: side of the results.

    Returns:
      [N, size, size, 3] float32.
    """
    height, width = image.shape[:2]
    planes = np.moveaxis(np.asarray(image, np.float32), -1, 0)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes]
    parts = np.empty((len(boxes), size, size, len(planes)), np.float32)
    for row, (top, left, tall, wide) in zip(parts, boxes, strict=True):
        box = (left * width, top * height, (left + wide) * width, (top + tall) * height)
        # Rounding may put an edge a hair outside, which Pillow refuses.
        box = tuple(np.clip(box, 0, (width, height, width, height)).tolist())
        for channel, plane in enumerate(planes):
            row[..., channel] = plane.resize(
                (size, size), Image.Resampling.BILINEAR, box=box
            )
    return parts


def resize(image: Array, size: int) -> Array:
    """Resizes images [B, H, W, C] to [B, size, size, C], bilinear, antialiased."""
    if image.shape[1:3] == (size, size):
        return image
    shape = (image.shape[0], size, size, image.shape[3])
    return jax.image.resize(image, shape, "linear", antialias=True)


def cell_means(mask: np.ndarray, side: int) -> np.ndarray:
    """Returns how much of each cell of a grid a mask covers, exactly, on the host.

    Args:
      mask: [B, H, W].
      side: cells along a side, of any size.

    Returns:
      [B, side, side] float32, means over the cells' areas.
    """
    rows, columns = (_overlap(size, side) for size in mask.shape[1:])
    return rows @ np.asarray(mask, np.float32) @ columns.T


def _overlap(size: int, side: int) -> np.ndarray:
    """[side, size]: share of each cell that each pixel makes up; rows sum to one."""
    edges, pixels = np.arange(side + 1) * size / side, np.arange(size)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    return (np.maximum(high - low, 0) * side / size).astype(np.float32)


def load_shots(dataset: catalog.Dataset, category: str) -> np.ndarray:
    """Loads the normal training images of a category, [K, H, W, 3] in [0, 1].

    Raises:
      UserError: it has none, or images are not square.
    """

    def normal(name: str) -> list[int]:
        return catalog.select(dataset, "train", name, anomalous=False)

    numbers = normal(category)
    if not numbers:
        known = ", ".join(filter(normal, dataset.categories)) or "none"
        raise UserError(
            f"category {category!r} has no normal training image, which method 'adp' "
            f"needs; known: {known}"
        )
    height, width = dataset.image_size
    if height != width:
        raise UserError(
            f"images of {height}x{width}; views and maps of this method are square: "
            "set config.data.aspect='square'"
        )
    images = [dataset.load(dataset.records[number])[0] for number in numbers]
    return np.stack(images).astype(np.float32) / np.float32(255)


def turned(
    images: np.ndarray, quarter_turns: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns shots with copies turned by quarter turns, and which shot each is of.

    Args:
      images: [K, H, W, 3].
      quarter_turns: R of them, counter-clockwise.

    Returns:
      ([K R, H, W, 3], [K R] int).
    """
    copies = [np.rot90(image, turns) for image in images for turns in quarter_turns]
    return np.stack(copies), np.repeat(np.arange(len(images)), len(quarter_turns))


def padded(arrays: Sequence[np.ndarray]) -> Array:
    """Stacks [K_t, ...] arrays of T categories to [T, K, ...], zeros behind."""
    most = max(map(len, arrays))
    return jnp.stack(
        [np.pad(a, ((0, most - len(a)), *[(0, 0)] * (a.ndim - 1))) for a in arrays]
    )
