"""`config.sweep` -> points of a grid, and which of them run as one program."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxanom import sections
from jaxanom.errors import UserError
from jaxanom.posterior import kernels, transport

AXES = ("num_particles", "update", "rkhs", "step_size", "seed")
"""Sections' keys that hold several values, in the order of the table's columns."""
UPDATES = transport.FLOWS + transport.SAMPLERS


class Section(NamedTuple):
    """Keys of `config.sweep`; configs/app/base.py explains them."""

    num_particles: tuple[int, ...]
    update: tuple[str, ...]
    rkhs: tuple[str, ...]
    step_size: tuple[float, ...]
    seed: tuple[int, ...]
    scale: Mapping[str, float]
    num_snapshots: int
    prompts_together: int
    development_seed: int


class Point(NamedTuple):
    """One run of a sweep.

    Attributes:
      num_particles: N.
      update: One of `UPDATES`.
      rkhs: The kernel of the transport's forces; "-" where there is none.
      step_size: Factor on the learning rate of phase "particles", or on the step size
        of a transport that makes its own: `config.sweep.scale` of the transport, 1
        where it names none, times a value of `config.sweep.step_size`.
      seed: Added to the config's: of particles, batches, shots and procedural images.
    """

    num_particles: int
    update: str
    rkhs: str
    step_size: float
    seed: int


class Group(NamedTuple):
    """Points whose shapes agree, so that one vmapped program runs them all.

    Attributes:
      points: As many as run together.
      variants: (update, rkhs) pairs that the program knows.
    """

    points: tuple[Point, ...]
    variants: tuple[tuple[str, str], ...]

    @property
    def num_particles(self) -> int:
        """N of all points."""
        return self.points[0].num_particles


def points(section: Mapping[str, Any]) -> tuple[Point, ...]:
    """Lists the points of `config.sweep`, the last axis fastest, each once.

    A transport that does not look at the RKHS has points of the first one only.

    Raises:
      UserError: An unknown key, an axis without values, or a value that cannot be.
    """
    axes = sections.read(section, Section, "config.sweep")
    _check(axes)
    every = [
        Point(number, update, rkhs, axes.scale.get(update, 1.0) * float(size), seed)
        for number in axes.num_particles
        for update in axes.update
        for rkhs in (axes.rkhs if update in transport.COUPLED else ("-",))
        for size in axes.step_size
        for seed in axes.seed
    ]
    return tuple(dict.fromkeys(every))


def groups(
    todo: Iterable[Point], num_prompts: int, prompts_together: int
) -> list[Group]:
    """Divides points into programs: equal N, and so many that the memory holds them.

    Args:
      todo: Points still to run.
      num_prompts: Prompts that one particle is encoded with in a step.
      prompts_together: Most prompts of one program, if it has more than one point.

    Returns:
      Groups of one N one after another. All but the last of an N have one size, so
      that the same program serves them.
    """
    of_number: dict[int, list[Point]] = {}
    for point in todo:
        of_number.setdefault(point.num_particles, []).append(point)
    programs = []
    for number, members in of_number.items():
        variants = tuple(dict.fromkeys((p.update, p.rkhs) for p in members))
        most = max(prompts_together // (number * num_prompts), 1)
        num_turns = -(-len(members) // most)
        size = -(-len(members) // num_turns)
        programs += [
            Group(tuple(members[start : start + size]), variants)
            for start in range(0, len(members), size)
        ]
    return programs


def _check(axes: Section) -> None:
    allowed = {
        "num_particles": ("positive integers", lambda v: v >= 1 and v == int(v)),
        "update": (f"of {UPDATES}", lambda v: v in UPDATES),
        "rkhs": (f"of {tuple(kernels.NAMES)}", lambda v: v in kernels.NAMES),
        "step_size": ("positive factors", lambda v: v > 0),
        "seed": ("integers >= 0", lambda v: v >= 0 and v == int(v)),
    }
    for name, (words, fits) in allowed.items():
        values = getattr(axes, name)
        if not values or not all(map(fits, values)):
            raise UserError(
                f"config.sweep.{name}={tuple(values)}; choose one or more {words}"
            )
    for update, factor in axes.scale.items():
        if update not in UPDATES or factor <= 0:
            raise UserError(
                f"config.sweep.scale.{update}={factor}; choose a positive factor of "
                f"one of {UPDATES}"
            )
    for name in ("num_snapshots", "prompts_together"):
        if getattr(axes, name) < 1:
            raise UserError(
                f"config.sweep.{name}={getattr(axes, name)}; it is at least 1"
            )
