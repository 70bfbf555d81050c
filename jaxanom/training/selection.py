"""Which parameters a phase ends in: the last, or the best of those measured.

The rule of arXiv 2503.10080's code: measure every so many steps, keep the best
parameters, and end the phase when the measure has failed to grow several times in a
row. Where the measure takes labels of the images a run is tested on, its result is no
longer zero-shot; that is the caller's to say, and the default is the last step.

What was measured is written beside the checkpoints. A killed run measures again what
lay behind its newest checkpoint, and as its steps are the same, so are the values.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxanom import record, sections, trees
from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats import weights
from jaxanom.parallel import placement
from jaxanom.types import Frozen, Params

RULES = ("last", "authors")
METRICS = (
    *("image_auroc", "image_ap", "image_f1_max"),
    *("pixel_auroc", "pixel_ap", "pixel_f1_max"),
)
FOLDER = "selection"

Measure = Callable[[Params, Frozen, str], float]
"""(params, frozen, phase name) -> how good; higher is better."""


class Settings(NamedTuple):
    """Section `config.selection`.

    Attributes:
      rule: "last", or "authors" for the best by `metrics` on `categories`.
      categories: whose labelled test images are measured.
      every: steps between measurements.
      patience: measurements without a new best after which a phase ends.
      metrics: {phase name: metric}.
    """

    rule: str
    categories: tuple[str, ...]
    every: int
    patience: int
    metrics: Mapping[str, str]


class Selection(NamedTuple):
    """What the loop asks of it.

    Attributes:
      every: steps between calls of `add`.
      add: (params, frozen, phase name, step) -> measured value; keeps new bests.
      is_over: phase name -> whether its patience has run out.
      best: phase name -> the best parameters on the host, or None before any.
    """

    every: int
    add: Callable[[Params, Frozen, str, int], float]
    is_over: Callable[[str], bool]
    best: Callable[[str], Params | None]


def read(section: Mapping[str, Any] | None) -> Settings:
    """Reads `config.selection`, each key once; without one the rule is "last".

    Raises:
      UserError: an unknown key, rule or metric, or numbers that choose nothing.
    """
    if section is None:
        return Settings("last", (), every=0, patience=0, metrics={})
    settings = sections.read(section, Settings, "config.selection")
    settings = settings._replace(metrics=dict(settings.metrics))
    if settings.rule not in RULES:
        raise UserError(
            f"config.selection.rule={settings.rule!r}; choose one of {RULES}"
        )
    wrong = sorted(set(settings.metrics.values()) - set(METRICS))
    if wrong:
        raise UserError(f"config.selection.metrics={wrong}; known are {METRICS}")
    if settings.rule == "last":
        return settings
    if settings.every < 1 or settings.patience < 1 or not settings.categories:
        raise UserError(
            f"config.selection.every={settings.every}, patience={settings.patience}, "
            f"categories={settings.categories}: "
            "the rule 'authors' wants 1 or more of each"
        )
    return settings


def by_measure(
    directory: Path, measure: Measure, every: int, patience: int
) -> Selection:
    """Keeps the best parameters of each phase by a measure.

    Args:
      directory: The run; `selection/` is written in it.
      measure: Deterministic function of whole parameters.
      every: steps between measurements.
      patience: measurements in a row without a new best that end a phase.

    Raises:
      UserError: there are several processes, which would write the same files.
    """
    if jax.process_count() > 1:
        raise UserError(
            "config.selection.rule='authors' measures in one process; there are "
            f"{jax.process_count()}: set it to 'last'"
        )
    folder = directory / FOLDER

    def add(params: Params, frozen: Frozen, phase: str, step: int) -> float:
        value = float(measure(params, frozen, phase))
        if math.isnan(value):
            raise UserError(
                f"the measure of phase {phase!r} is undefined after step {step}: the "
                "images of config.selection.categories need both classes"
            )
        before = [row for row in history(directory, phase) if row[0] < step]
        if not before or value > max(found for _, found in before):
            folder.mkdir(parents=True, exist_ok=True)
            host = placement.to_host(params)
            weights.write(_best_path(folder, phase), trees.flatten(host))
        measured = [*before, [step, value]]
        record.write_json(folder / f"{phase}.json", {"measured": measured})
        return value

    def is_over(phase: str) -> bool:
        values = [value for _, value in history(directory, phase)]
        best = values.index(max(values)) if values else 0
        return len(values) - 1 - best >= patience

    def best(phase: str) -> Params | None:
        path = _best_path(folder, phase)
        return trees.unflatten(weights.read(path)) if path.is_file() else None

    return Selection(every, add, is_over, best)


def history(directory: Path, phase: str) -> list[list[float]]:
    """Returns [step, value] of every measurement of a phase of a run."""
    path = directory / FOLDER / f"{phase}.json"
    return record.read_json(path)["measured"] if path.is_file() else []


def _best_path(folder: Path, phase: str) -> Path:
    return folder / f"{phase}.safetensors"
