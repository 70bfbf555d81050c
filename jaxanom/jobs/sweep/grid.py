"""`config.sweep` -> points of a grid, and which of them run as one program."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxanom import sections
from jaxanom.errors import UserError
from jaxanom.methods.app import coupling

AXES = ("num_particles", "update", "rkhs", "step_size", "seed")
"""Sections' keys that hold several values, in the order of the table's columns."""
KEYS = (*AXES, "scale", "num_snapshots", "prompts_together", "development_seed")


class Point(NamedTuple):
    """One run of a sweep.

    Attributes:
      num_particles: N.
      update: a transport of `config.app.particles.update`.
      rkhs: of the transport's forces.
      step_size: factor on the learning rate of phase "particles", or on a sampler's
        `config.app.particles.step_size`; `config.sweep.scale` of the transport, which
        is 1 where it names none, times a value of `config.sweep.step_size`.
      seed: added to the config's: of particles, batches, shots and procedural images.
    """

    num_particles: int
    update: str
    rkhs: str
    step_size: float
    seed: int


class Group(NamedTuple):
    """Points whose shapes agree, so that one vmapped program runs them all.

    Attributes:
      points: as many as run together.
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
      UserError: an unknown key, an axis without values, or a value that cannot be.
    """
    _check(section)
    found = []
    for num_particles in section["num_particles"]:
        for update in section["update"]:
            kernels = section["rkhs"] if update in coupling.COUPLED else ("-",)
            scale = section["scale"].get(update, 1.0)
            found += [
                Point(num_particles, update, rkhs, scale * float(step_size), seed)
                for rkhs in kernels
                for step_size in section["step_size"]
                for seed in section["seed"]
            ]
    return tuple(dict.fromkeys(found))


def groups(
    wanted: Iterable[Point], num_classes: int, prompts_together: int
) -> list[Group]:
    """Divides points into programs: equal N, and so many that the memory holds them.

    Args:
      wanted: points still to run.
      num_classes: K; a point encodes N K prompts a step.
      prompts_together: most prompts of one program, if it has more than one point.

    Returns:
      Groups of one N one after another. All but the last of an N have one size, so
      that the same program serves them.
    """
    of_number: dict[int, list[Point]] = {}
    for point in wanted:
        of_number.setdefault(point.num_particles, []).append(point)
    found = []
    for number, members in of_number.items():
        variants = tuple(dict.fromkeys((p.update, p.rkhs) for p in members))
        most = max(prompts_together // (number * num_classes), 1)
        num_turns = -(-len(members) // most)
        size = -(-len(members) // num_turns)
        found += [
            Group(tuple(members[start : start + size]), variants)
            for start in range(0, len(members), size)
        ]
    return found


def _check(section: Mapping[str, Any]) -> None:
    sections.given(section, KEYS, "config.sweep")
    allowed: dict[str, tuple[str, Any]] = {
        "num_particles": ("positive integers", lambda v: v >= 1 and v == int(v)),
        "update": (f"of {coupling.UPDATES}", lambda v: v in coupling.UPDATES),
        "rkhs": (f"of {coupling.KERNELS}", lambda v: v in coupling.KERNELS),
        "step_size": ("positive factors", lambda v: v > 0),
        "seed": ("integers >= 0", lambda v: v >= 0 and v == int(v)),
    }
    for name, (wanted, fits) in allowed.items():
        values: Sequence[Any] = section[name]
        wrong = [value for value in values if not fits(value)]
        if not values or wrong:
            raise UserError(
                f"config.sweep.{name}={tuple(values)}; wanted one or more {wanted}"
            )
    for update, factor in section["scale"].items():
        if update not in coupling.UPDATES or factor <= 0:
            raise UserError(
                f"config.sweep.scale.{update}={factor}; wanted a positive factor of "
                f"one of {coupling.UPDATES}"
            )
    for name in ("num_snapshots", "prompts_together"):
        if section[name] < 1:
            raise UserError(f"config.sweep.{name}={section[name]}; wanted at least 1")
