"""Geometry for image and mask together, and small photometric changes of the image.

Functions take an example and return a new one; arrays that come in are never written.
Only `image` [H, W, 3] and `mask` [H, W] move. An image keeps its type and range (uint8,
or float in [0, 1]); a mask stays {0, 1}. What moves in over a border is the mirrored
inside, for image and mask alike, so that a mirrored defect is marked as one.

Where geometry moves the whole of a mask out of sight, the image no longer holds its
defect: `label` and `defect_id` become 0. An example that came with an empty mask (no
ground truth) keeps both.
"""

from collections.abc import Callable
from typing import Any

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


def affine(
    example: Example,
    angle: float = 0.0,
    scale: float = 1.0,
    down: float = 0.0,
    right: float = 0.0,
) -> Example:
    """Turns and scales about the centre, then moves; bilinear.

    A mask pixel counts where at least half of its weight does, so edges stay in place;
    a mask that would vanish by this rule while still in sight counts wherever it has
    weight.

    Args:
      example: with `image` and `mask`.
      angle: degrees, counter-clockwise.
      scale: above 1 enlarges.
      down, right: pixels.
    """
    height, width = example["image"].shape[:2]
    centre_x, centre_y = width / 2, height / 2
    cos, sin = np.cos(np.deg2rad(angle)) / scale, np.sin(np.deg2rad(angle)) / scale
    # Where output pixel (x, y) is read from; the y axis points down.
    origin_x = centre_x - cos * (centre_x + right) + sin * (centre_y + down)
    origin_y = centre_y - sin * (centre_x + right) - cos * (centre_y + down)
    matrix = np.array([[cos, -sin, origin_x], [sin, cos, origin_y]])

    def warp(plane: np.ndarray) -> np.ndarray:
        return _warp(plane, matrix)

    return _moved(example, warp, binarise=True)


def photometric(
    example: Example, brightness: float = 0.0, contrast: float = 1.0
) -> Example:
    """Scales values about the image's mean and adds `brightness` in [0, 1] units."""
    image = example["image"]
    top = 255.0 if image.dtype == np.uint8 else 1.0
    mean = image.mean(dtype=np.float64).astype(np.float32)

    def change(values: np.ndarray) -> np.ndarray:
        values = (values.astype(np.float32) - mean) * np.float32(contrast) + mean
        return _fit(values + np.float32(brightness * top), image.dtype)

    if image.dtype == np.uint8:  # 256 values to change, whatever the image's size
        return {**example, "image": change(np.arange(256))[image]}
    return {**example, "image": change(image)}


def random_flip(
    example: Example, rng: np.random.Generator, flips: tuple[str, ...]
) -> Example:
    """Mirrors and turns at random.

    Args:
      example: with `image` and `mask`.
      rng: decides.
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


def random_affine(
    example: Example,
    rng: np.random.Generator,
    max_shift: float = 0.0,
    max_angle: float = 0.0,
    max_scale: float = 0.0,
) -> Example:
    """Moves, turns and scales at random, each uniformly in its range.

    Args:
      example: with `image` and `mask`.
      rng: decides.
      max_shift: fraction of height and width; the shift is a whole number of pixels.
      max_angle: degrees, either way.
      max_scale: the scale lies in [1 - max_scale, 1 + max_scale].
    """
    height, width = example["image"].shape[:2]
    shifts = rng.uniform(-1, 1, size=2) * max_shift * (height, width)
    down, right = (int(value) for value in np.rint(shifts))
    angle, scale = rng.uniform(-1, 1, size=2) * (max_angle, max_scale)
    if max_angle == 0 and max_scale == 0:
        return shift(example, down, right) if down or right else example
    return affine(example, float(angle), 1 + float(scale), down, right)


def random_photometric(
    example: Example,
    rng: np.random.Generator,
    max_brightness: float = 0.1,
    max_contrast: float = 0.1,
) -> Example:
    """Changes brightness by up to +-max_brightness, contrast by 1 +- max_contrast."""
    brightness, contrast = rng.uniform(-1, 1, size=2) * (max_brightness, max_contrast)
    return photometric(example, float(brightness), 1 + float(contrast))


def augment(
    example: Example,
    rng: np.random.Generator,
    flips: tuple[str, ...] = (),
    shift: float = 0.0,
    affine: tuple[float, float] = (0.0, 0.0),
    photometric: tuple[float, float] = (0.0, 0.0),
) -> Example:
    """Applies the random changes above, those with non-zero ranges.

    Args:
      example: with `image` and `mask`.
      rng: decides.
      flips: see `random_flip`.
      shift: `max_shift` of `random_affine`.
      affine: (max_angle in degrees, max_scale) of `random_affine`.
      photometric: (max_brightness, max_contrast) of `random_photometric`.
    """
    example = random_flip(example, rng, flips)
    example = random_affine(example, rng, shift, *affine)
    if any(photometric):
        example = random_photometric(example, rng, *photometric)
    return example


def views(
    example: Example,
    view: int,
    seed: int = 0,
    flips: tuple[str, ...] = (),
    shift: float = 0.0,
    affine: tuple[float, float] = (0.0, 0.0),
) -> Example:
    """Returns an augmented view, a function of (seed, `index` of the example, view).

    View 0 is the example itself; for the settings see `augment`.
    """
    if view == 0:
        return example
    rng = pipeline.generator(seed, _VIEWS, int(example["index"]), view)
    return augment(example, rng, flips, shift, affine)


def check_views(data: Any, method: str, encodes: bool) -> None:
    """Refuses views that nobody would make.

    Args:
      data: `config.data`.
      method: its name.
      encodes: whether it encodes images once.
    """
    wants_views = data.num_views != 1 or tuple(data.flips) or data.shift
    if wants_views and not encodes:
        raise UserError(
            f"config.data.num_views={data.num_views}, flips={tuple(data.flips)}, shift="
            f"{data.shift}: these views are of methods that encode images once; "
            f"{method!r} augments by its own keys: set them to 1, () and 0.0"
        )
    if data.get("feature_cache", "") and not encodes:
        raise UserError(
            f"config.data.feature_cache={data.feature_cache!r}, but {method!r} "
            "encodes no images ahead of training; set it to ''"
        )
    augmented = data.get("augmentation", "") or data.get("mosaic", 0.0)
    if augmented and encodes and data.num_views < 2:
        raise UserError(
            f"config.data.augmentation={data.augmentation!r}, mosaic={data.mosaic}: "
            "images are encoded once, and of one view each the first is the image "
            "itself; raise config.data.num_views, or set the method's cache_features "
            "to False to draw anew in every step"
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
    coefficients = matrix + np.array([[0, 0, pad], [0, 0, pad]])
    if plane.dtype == np.uint8 or plane.ndim == 2:
        return _read(padded, (width, height), coefficients)
    channels = np.moveaxis(padded, -1, 0)
    return np.stack(
        [_read(channel, (width, height), coefficients) for channel in channels], axis=-1
    )


def _read(
    plane: np.ndarray, size: tuple[int, int], coefficients: np.ndarray
) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(plane))
    warped = image.transform(
        size,
        Image.Transform.AFFINE,
        tuple(coefficients.ravel()),
        resample=Image.Resampling.BILINEAR,
    )
    return np.asarray(warped)


def _fit(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.uint8:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.clip(values, 0, 1).astype(dtype)
