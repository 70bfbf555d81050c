"""Options of the detector, and the values that they may have."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxanom import sections
from jaxanom.errors import UserError

NO_ENCODER = "none"


class Options(NamedTuple):
    """Section `detector`; configs/detector/base.py explains it."""

    encoder: str
    taps: tuple[str, ...]
    head_width: int
    num_places: int
    cache_features: bool
    width: int
    depth: int
    dtype: str
    gamma: float
    flip_horizontal: bool
    flip_vertical: bool
    orientation_fixed: tuple[str, ...]
    brightness: float
    contrast: float


def read(section: Mapping[str, Any]) -> Options:
    """Reads `config.detector`.

    Raises:
      UserError: An unknown, missing or impossible key, by its name.
    """
    options = sections.read(section, Options, "config.detector")
    for key, low, high in (
        ("gamma", 0, float("inf")),
        ("head_width", 1, float("inf")),
        ("num_places", 2, float("inf")),
        ("brightness", 0, 1),
        ("contrast", 0, 1),
    ):
        value = getattr(options, key)
        if not low <= value < high:
            raise UserError(f"config.detector.{key}={value}; wanted in [{low}, {high})")
    return options
