"""What a category draws: a shaded picture and where defects may lie on it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from jaxanom.data.foundry import shapes
from jaxanom.data.foundry.noise import Canvas, fractal, noise
from jaxanom.data.foundry.shapes import Light, Pose


class Edit(NamedTuple):
    """A defect of a part, applied while the scene is drawn.

    Attributes:
      kind: a defect type.
      rng: draws the details of the defect; the scene's own stream is never touched.
    """

    kind: str
    rng: Generator


class Scene(NamedTuple):
    """A drawn scene.

    Attributes:
      color: [side, side, 3] float32, about [0, 1].
      surface: [side, side] float32, 1 where a surface defect can be.
      place: draws the centre of a surface defect, canvas units.
      reach: largest radius of a surface defect, canvas units.
      params: facts about the scene that experiments read.
    """

    color: np.ndarray
    surface: np.ndarray
    place: Callable[[Generator], tuple[float, float]]
    reach: float
    params: dict[str, Any]


def kind_of(edit: Edit | None) -> str:
    """The defect type of an edit, or "good"."""
    return "good" if edit is None else edit.kind


def texture(color, surface: Canvas, reach=0.36, **params) -> Scene:
    """A scene that fills the canvas."""

    def place(rng: Generator) -> tuple[float, float]:
        x, y = rng.uniform(-0.55, 0.55, 2)
        return float(x), float(y)

    return Scene(color, np.ones_like(surface.x), place, reach, params)


def item(color, alpha, at: Pose, zone, reach: float, **params) -> Scene:
    """A scene with one object; `zone` is (half width, half height) or (r low, r high).

    Args:
      color: [side, side, 3].
      alpha: [side, side] coverage of the object.
      at: pose of the object.
      zone: ("box", half_u, half_v) or ("ring", low, high), in the object's frame.
      reach: largest radius of a defect, canvas units.
      **params: facts about the scene.
    """
    form, first, last = zone

    def place(rng: Generator) -> tuple[float, float]:
        a, b = rng.uniform(-1, 1, 2)
        if form == "box":
            return shapes.outward(at, first * a, last * b)
        radius = first + (last - first) * abs(a)
        return shapes.outward(
            at, radius * np.cos(np.pi * b), radius * np.sin(np.pi * b)
        )

    return Scene(color, alpha, place, reach, params)


def backdrop(rng: Generator, surface: Canvas, tint=None) -> np.ndarray:
    """A plain table: muted colour, faint mottling, a soft gradient."""
    muted = shapes.rgb(rng.random(), rng.uniform(0.03, 0.2), rng.uniform(0.5, 0.85))
    base = muted if tint is None else tint
    mottle = 1 + np.float32(0.025) * fractal(rng, surface, 5, 3)
    sweep = 1 + np.float32(0.06) * noise(rng, surface, 1)
    return shapes.tinted(base, mottle * sweep)


def shadow(color, outline, at: Pose, surface: Canvas, lit: Light, height, **look):
    """Darkens a picture by the shadow of a shape.

    Args:
      color: [side, side, 3], what the shadow falls on.
      outline: Coordinates in the frame of the shape -> signed distance.
      at: Pose of the shape.
      surface: The canvas.
      lit: Direction of the light.
      height: How far the shadow falls from the shape, canvas units.
      **look: See `darkened`.
    """
    moved = shapes.local(surface, at, shadow_offset(lit, height))
    return darkened(color, outline(*moved), **look)


def darkened(color, distance, strength=0.45, soft=0.12):
    """Darkens by a soft shadow; `distance` is that of the shape, moved already."""
    shade = shapes.smooth(-distance, -soft, soft * 0.6)
    return shapes.planar(color) * (1 - np.float32(strength) * shade)[..., None]


def shadow_offset(lit: Light, height: float) -> tuple[float, float]:
    """Where a shape's shadow falls, relative to the shape, canvas units."""
    return -lit.x * height, -lit.y * height
