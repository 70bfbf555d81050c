"""Augmentation of auxiliary training images, as arXiv 2503.10080's code does it.

Each change with probability 1/2, in this order: a turn by up to 30 degrees either way;
any quarter turns; brightness and contrast by up to a fifth; Gaussian noise; and one of
a 3 x 3 mean, a colour jitter and a Gaussian blur. Geometry moves image and mask
together (`transforms`), filters and colours are Pillow's. Where that code leaves a
strength to the default of its image library, ours is the figure named beside it.

A mosaic stands for a training image with some probability: four defective images of
its category in a square.
"""

import itertools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from jaxanom.data import catalog, images, transforms
from jaxanom.data.catalog import Dataset, Example
from jaxanom.errors import UserError, check_choice

AUGMENTATIONS = ("", "released")
MAX_ANGLE = 30.0
STRENGTH = 0.2
"""Of brightness, contrast, saturation (factors) and hue (fraction of the circle)."""
NOISE_VARIANCE = (10.0, 50.0)
"""In squared 8-bit levels."""
BLUR_SIGMA = (0.8, 1.4)
"""In pixels; what kernels of 3 to 7 pixels stand for."""

Transform = Callable[[Example, np.random.Generator], Example]


def make(
    dataset: Dataset,
    defects: tuple[int, ...],
    augmentation: str = "",
    mosaic: float = 0.0,
) -> Transform | None:
    """Returns (example, generator) -> example, or None where nothing is asked for.

    Args:
      dataset: where mosaics are read from.
      defects: numbers of the defective records that may be trained on.
      augmentation: One of `AUGMENTATIONS`.
      mosaic: probability that a mosaic takes the place of an example.

    Raises:
      UserError: an unknown augmentation or no probability; a mosaic without defects.
    """
    check_choice("config.data.augmentation", augmentation, AUGMENTATIONS)
    if not 0 <= mosaic <= 1:
        raise UserError(f"config.data.mosaic={mosaic}; wanted a probability")
    if mosaic and not defects:
        raise UserError(
            f"config.data.mosaic={mosaic}, but no defective image may be trained on; "
            "set it to 0 or choose another config.data.defect_rule"
        )
    if not (augmentation or mosaic):
        return None
    source = catalog.source(dataset, defects)
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(defects):
        category = dataset.categories.index(dataset.records[number].category)
        rows.setdefault(category, []).append(row)

    def transform(example: Example, rng: np.random.Generator) -> Example:
        own = rows.get(int(example["category_id"]), ())
        if own and rng.random() < mosaic:
            picked = rng.choice(own, size=4, replace=len(own) < 4)
            example = join(example, [source[int(row)] for row in picked])
        return augment(example, rng) if augmentation else example

    return transform


def join(example: Example, parts: list[Example]) -> Example:
    """Returns the example with image and mask of four parts, two by two.

    Args:
      example: gives size and `index`.
      parts: four defective examples of its category; `defect_id` is the first one's.
    """
    height, width = example["image"].shape[:2]
    top, left = height // 2, width // 2
    sizes = itertools.product((top, height - top), (left, width - left))
    placed = list(zip(parts, sizes, strict=True))
    pictures = [images.resize_image(part["image"], size) for part, size in placed]
    masks = [images.resize_mask(part["mask"], size) for part, size in placed]
    return {
        **example,
        "image": _square(pictures),
        "mask": _square(masks),
        "label": np.int32(1),
        "defect_id": parts[0]["defect_id"],
    }


def augment(example: Example, rng: np.random.Generator) -> Example:
    """Applies every change of the module text with probability 1/2.

    Args:
      example: `image` uint8 [H, W, 3], `mask` uint8 [H, W].
      rng: decides.

    Raises:
      UserError: an image of another type.
    """
    if example["image"].dtype != np.uint8:
        raise UserError(
            f"augmentation wants 8-bit images, got {example['image'].dtype}"
        )
    turn, quarter, light, noise, filtered = rng.random(5) < 0.5
    if turn:
        angle = float(rng.uniform(-MAX_ANGLE, MAX_ANGLE))
        example = transforms.rotate(example, angle)
    if quarter:
        turns = int(rng.integers(4))
        height, width = example["image"].shape[:2]
        # Batches have one size: of other shapes half turns alone keep it.
        turns = turns if height == width else 2 * (turns % 2)
        example = transforms.rot90(example, turns)
    picture = example["image"]
    if light:
        picture = _lit(picture, *rng.uniform(1 - STRENGTH, 1 + STRENGTH, 2))
    if noise:
        spread = float(rng.uniform(*NOISE_VARIANCE)) ** 0.5
        values = picture + spread * rng.standard_normal(picture.shape)
        picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if filtered:
        picture = FILTERS[int(rng.integers(len(FILTERS)))](picture, rng)
    return {**example, "image": picture}


def mean_filter(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean over 3 x 3 pixels."""
    del rng
    return np.array(Image.fromarray(picture).filter(ImageFilter.BoxBlur(1)))


def gaussian_filter(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur of a random width."""
    sigma = float(rng.uniform(*BLUR_SIGMA))
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma)))


def colour_jitter(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue at random."""
    brightness, contrast, saturation = rng.uniform(1 - STRENGTH, 1 + STRENGTH, 3)
    turned = Image.fromarray(_lit(picture, brightness, contrast))
    turned = ImageEnhance.Color(turned).enhance(float(saturation))
    hue, *rest = turned.convert("HSV").split()
    offset = int(rng.integers(-round(256 * STRENGTH), round(256 * STRENGTH) + 1))
    moved = Image.fromarray((np.asarray(hue).astype(int) + offset).astype(np.uint8))
    return np.array(Image.merge("HSV", [moved, *rest]).convert("RGB"))


FILTERS = (mean_filter, colour_jitter, gaussian_filter)


def _lit(picture: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    brighter = ImageEnhance.Brightness(Image.fromarray(picture)).enhance(
        float(brightness)
    )
    return np.array(ImageEnhance.Contrast(brighter).enhance(float(contrast)))


def _square(parts: list[np.ndarray]) -> np.ndarray:
    rows = [np.concatenate(parts[start : start + 2], axis=1) for start in (0, 2)]
    return np.concatenate(rows, axis=0)
