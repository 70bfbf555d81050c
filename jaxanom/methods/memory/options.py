"""The section `config.memory`, read once."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxanom import sections
from jaxanom.errors import UserError

KINDS = ("nearest", "patchcore", "padim")


class Options(NamedTuple):
    """Keys of `config.memory`; `configs/memory/base.py` says of each what it does."""

    tower: str
    taps: tuple[str, ...]
    kind: str
    turns: tuple[int, ...]
    mirrors: bool
    scales: tuple[float, ...]
    border: int
    calibrate: bool
    foreground: bool
    share: float
    smoothing: float
    coreset: float
    most_patches: int
    dimensions: int
    shrinkage: float


def read(section: Mapping[str, Any]) -> Options:
    """Reads `config.memory`, each key once.

    Raises:
      UserError: An unknown key, or a value that means nothing; names the key.
    """
    options = sections.read(section, Options, "config.memory")
    if options.kind not in KINDS:
        raise UserError(f"config.memory.kind={options.kind!r}; choose one of {KINDS}")
    if 0 not in options.turns or not set(options.turns) <= {0, 1, 2, 3}:
        raise UserError(
            f"config.memory.turns={options.turns}; wanted 0 and some of (1, 2, 3)"
        )
    if not options.scales or min(options.scales) <= 0:
        raise UserError(
            f"config.memory.scales={options.scales}; wanted positive numbers"
        )
    for key, low, high in (
        ("border", 0, math.inf),
        ("share", 0, 1),
        ("smoothing", 0, 1),
        ("most_patches", 1, math.inf),
        ("dimensions", 1, math.inf),
        ("shrinkage", 0, math.inf),
    ):
        value = getattr(options, key)
        if not low <= value <= high:
            raise UserError(
                f"config.memory.{key}={value}; wanted one in [{low}, {high}]"
            )
    if not 0 < options.coreset <= 1:
        raise UserError(f"config.memory.coreset={options.coreset}; wanted (0, 1]")
    _check_kind(options)
    return options


def _check_kind(options: Options) -> None:
    """Raises UserError where a baseline is asked for what it has no place for."""
    if options.kind == "padim" and (options.mirrors or options.turns != (0,)):
        raise UserError(
            "config.memory.kind='padim' keeps a Gaussian per position, which no turned "
            "or mirrored copy has; set config.memory.turns=(0,) and mirrors=False"
        )
    views = len(options.scales) * max(1, len(options.taps))
    if options.kind == "patchcore" and views > 1:
        raise UserError(
            "config.memory.kind='patchcore' has one bank; set config.memory.taps to "
            "one group of layers and config.memory.scales to one number"
        )
