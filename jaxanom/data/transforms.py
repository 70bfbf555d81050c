"""Geometry for image and mask together.

Functions take an example and return a new one; arrays that come in are never written.
Only `image` [H, W, 3] and `mask` [H, W] move. An image keeps its type and range (uint8,
or float in [0, 1]); a mask stays {0, 1}. What moves in over a border is the mirrored
inside, for image and mask alike, so that a mirrored defect is marked as one.

Where geometry moves the whole of a mask out of sight, the image no longer holds its
defect: `label` and `defect_id` become 0. An example that came with an empty mask (no
ground truth) keeps both.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from jaxanom.data import pipeline
from jaxanom.data.catalog import Example
from jaxanom.errors import UserError

FLIPS = ("horizontal", "vertical", "rot90")

_VIEWS = 16  # the stream of `views`, beside those of the pipeline


def flip(example: Example, horizontal: bool = False, vertical: bool = False) -> Example:
    """Mirrors left-right and top-bottom."""
    rows = slice(None, None, -1 if vertical else 1)
    columns = slice(None, None, -1 if horizontal else 1)
    return _moved(example, lambda plane: plane[rows, columns])


def rot90(example: Example, turns: int) -> Example:
    """Turns counter-clockwise by quarter turns; odd turns swap height and width."""
    return _moved(example, lambda plane: np.rot90(plane, turns))


def shift(example: Example, down: int, right: int) -> Example:
    """Moves by whole pixels, without interpolation."""
    height, width = example["image"].shape[:2]
    rows = _mirror(np.arange(height) - down, height)
    columns = _mirror(np.arange(width) - right, width)
    return _moved(example, lambda plane: plane[rows[:, None], columns])


def rotate(example: Example, angle: float) -> Example:
    """Turns about the centre, bilinear.

    A mask pixel counts where at least half of its weight does, so edges stay in place;
    a mask that would vanish by this rule while still in sight counts wherever it has
    weight.

    Args:
      example: Holds `image` and `mask`.
      angle: Degrees, counter-clockwise.
    """
    height, width = example["image"].shape[:2]
    x, y = width / 2, height / 2
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    # Where output pixel (x, y) is read from; the y axis points down.
    matrix = np.array(
        [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]
    )
    return _moved(example, lambda plane: _warp(plane, matrix), binarise=True)


def random_flip(
    example: Example, rng: np.random.Generator, flips: tuple[str, ...]
) -> Example:
    """Mirrors and turns at random.

    Args:
      example: Holds `image` and `mask`.
      rng: Decides.
      flips: Some of `FLIPS`; each mirror with probability 1/2, all four
        quarter turns alike (of images that are not square: half turns only).

    Raises:
      UserError: another name in `flips`.
    """
    wrong = [name for name in flips if name not in FLIPS]
    if wrong:
        raise UserError(f"flips={tuple(flips)}; wanted some of {', '.join(FLIPS)}")
    horizontal, vertical = rng.integers(2, size=2).astype(bool)
    turns = int(rng.integers(4))
    horizontal = bool(horizontal) and "horizontal" in flips
    vertical = bool(vertical) and "vertical" in flips
    if horizontal or vertical:
        example = flip(example, horizontal, vertical)
    if "rot90" in flips:
        height, width = example["image"].shape[:2]
        turns = turns if height == width else 2 * (turns % 2)
        example = rot90(example, turns)
    return example


def random_shift(
    example: Example, rng: np.random.Generator, max_shift: float
) -> Example:
    """Moves by a random number of whole pixels.

    Args:
      example: Holds `image` and `mask`.
      rng: Decides.
      max_shift: Largest shift, as a share of height and of width.
    """
    height, width = example["image"].shape[:2]
    shifts = rng.uniform(-1, 1, size=2) * max_shift * (height, width)
    down, right = (int(value) for value in np.rint(shifts))
    return shift(example, down, right) if down or right else example


def views(
    example: Example,
    view: int,
    seed: int = 0,
    flips: tuple[str, ...] = (),
    max_shift: float = 0.0,
) -> Example:
    """Returns an augmented view, a function of (seed, `index` of the example, view).

    View 0 is the example itself; the others are flipped and shifted at random, see
    `random_flip` and `random_shift`.
    """
    if view == 0:
        return example
    rng = pipeline.generator(seed, _VIEWS, int(example["index"]), view)
    return random_shift(random_flip(example, rng, flips), rng, max_shift)


def check_views(
    encodes: bool,
    num_views: int,
    flips: tuple[str, ...],
    max_shift: float,
    feature_cache: str,
    augmented: bool,
) -> None:
    """Refuses views that nobody would make.

    Args:
      encodes: Whether images are encoded once, ahead of training.
      num_views, flips, max_shift: Views of each image, and how they differ.
      feature_cache: Folder that is to keep what was encoded.
      augmented: Whether training images are augmented or replaced by mosaics.

    Raises:
      UserError: Says which settings nobody heeds.
    """
    if not encodes and (num_views != 1 or flips or max_shift):
        raise UserError(
            f"config.data.num_views={num_views}, flips={flips}, shift={max_shift}: "
            "these views are of methods that encode images once; this one augments by "
            "its own keys: set them to 1, () and 0.0"
        )
    if not encodes and feature_cache:
        raise UserError(
            f"config.data.feature_cache={feature_cache!r}, but the method encodes no "
            "images ahead of training; set it to ''"
        )
    if encodes and augmented and num_views < 2:
        raise UserError(
            "config.data.augmentation or mosaic is set: images are encoded once, and "
            "of one view each the first is the image itself; raise "
            "config.data.num_views, or set the method's cache_features to False to "
            "draw anew in every step"
        )


def _moved(
    example: Example,
    move: Callable[[np.ndarray], np.ndarray],
    binarise: bool = False,
) -> Example:
    """Applies `move` to image and mask and keeps label and mask consistent."""
    image, mask = example["image"], example["mask"]
    if mask.shape != image.shape[:2]:
        raise UserError(f"mask {mask.shape} does not belong to image {image.shape}")
    moved_image = np.ascontiguousarray(move(image))
    if binarise:
        weight = move(mask.astype(np.float32))
        moved_mask = weight >= 0.5
        moved_mask = moved_mask if moved_mask.any() else weight > 1e-3
        moved_mask = moved_mask.astype(mask.dtype)
    else:
        moved_mask = np.ascontiguousarray(move(mask))
    result = {**example, "image": moved_image, "mask": moved_mask}
    if mask.any() and not moved_mask.any():
        result |= {k: np.int32(0) for k in ("label", "defect_id") if k in example}
    return result


def _mirror(positions: np.ndarray, length: int) -> np.ndarray:
    """Maps positions outside 0..length-1 inside: ... 1 0 | 0 1 2 | 2 1 ..."""
    positions = positions % (2 * length)
    return np.where(positions < length, positions, 2 * length - 1 - positions)


def _warp(plane: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Reads [H, W] or [H, W, C] at matrix @ (x, y, 1), bilinear, mirrored borders."""
    height, width = plane.shape[:2]
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    read = matrix @ corners
    outside = max(-read.min(), read[0].max() - width, read[1].max() - height, 0.0)
    pad = int(np.ceil(outside)) + 1
    widths = [(pad, pad), (pad, pad)] + [(0, 0)] * (plane.ndim - 2)
    padded = np.pad(plane, widths, mode="symmetric")
    # The output's origin and the padded input's origin differ by the padding.
    coefficients = tuple((matrix + np.array([[0, 0, pad], [0, 0, pad]])).ravel())

    def read(values: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(values))
        bilinear = Image.Resampling.BILINEAR
        return np.asarray(
            picture.transform(
                (width, height), Image.Transform.AFFINE, coefficients, bilinear
            )
        )

    if plane.dtype == np.uint8 or plane.ndim == 2:
        return read(padded)
    return np.stack([read(channel) for channel in np.moveaxis(padded, -1, 0)], axis=-1)
