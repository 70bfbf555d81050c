"""Options of the detector and the network they ask for."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxanom import sections
from jaxanom.errors import UserError
from jaxanom.methods.detector import segmenter as segmenters
from jaxanom.models.ops import initialise
from jaxanom.types import Params, PRNGKey


class Options(NamedTuple):
    """Keys of `config.detector`; a key left out has the value below.

    Attributes:
      width, depth, dtype: of `models.segmenter.Segmenter`.
      gamma: focal exponent; 0 is plain cross-entropy.
      class_balanced: defect and normal pixels weigh the same as two groups, however
        few the former; else every pixel weighs the same.
      dice_weight: factor of the Dice term; 0 leaves it out.
      flip_horizontal, flip_vertical: mirror half of the rows, image and mask alike.
      orientation_fixed: category names whose rows are never mirrored.
      brightness: images shift by up to this much of [0, 1].
      contrast: deviations from the image's mean grow or shrink by up to this fraction.
    """

    width: int = 32
    depth: int = 4
    dtype: str = "float32"
    gamma: float = 2.0
    class_balanced: bool = False
    dice_weight: float = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    orientation_fixed: tuple[str, ...] = ()
    brightness: float = 0.0
    contrast: float = 0.0


def read_options(section: Mapping[str, Any]) -> Options:
    """Reads `config.detector`, each key once.

    Raises:
      UserError: a key that is not an option, or a value out of range.
    """
    options = Options(**sections.given(section, Options._fields, "config.detector"))
    options = options._replace(orientation_fixed=tuple(options.orientation_fixed))
    if options.gamma < 0 or options.dice_weight < 0:
        raise UserError(
            f"config.detector.gamma={options.gamma}, dice_weight="
            f"{options.dice_weight}; neither can be negative"
        )
    for name in ("brightness", "contrast"):
        if not 0 <= getattr(options, name) < 1:
            raise UserError(
                f"config.detector.{name}={getattr(options, name)}; wanted in [0, 1)"
            )
    return options


def fixed_category_ids(options: Options, categories: Sequence[str]) -> tuple[int, ...]:
    """Returns the ids of `options.orientation_fixed`.

    Raises:
      UserError: a name the dataset does not have.
    """
    unknown = sorted(set(options.orientation_fixed) - set(categories))
    if unknown:
        raise UserError(
            f"config.detector.orientation_fixed names {unknown}; the dataset has "
            f"{list(categories)}"
        )
    return tuple(categories.index(name) for name in options.orientation_fixed)


def build(options: Options, image_size: tuple[int, int]) -> segmenters.Segmenter:
    """Returns the segmenter; raises UserError on a size its depth does not divide."""
    segmenters.check_size(image_size, options.depth)
    return segmenters.Segmenter(
        width=options.width, depth=options.depth, dtype=jnp.dtype(options.dtype)
    )


def init(segmenter: segmenters.Segmenter, key: PRNGKey) -> tuple[Params, Params]:
    """Returns (params, frozen); the smallest image will do, nothing is frozen."""
    side = 2**segmenter.depth
    image = jnp.zeros((1, side, side, 3))
    return initialise.parameters(segmenter, key, image), {}
