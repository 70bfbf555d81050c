"""Signed distances (negative inside), poses, colours and shading of flat drawings."""

import colorsys
import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from jaxanom.data.foundry.noise import Canvas


class Pose(NamedTuple):
    """Where a drawing lies: centre in canvas units, angle in radians, scale."""

    x: float
    y: float
    angle: float
    scale: float


class Light(NamedTuple):
    """Direction towards the light in the image plane, a unit vector."""

    x: float
    y: float


def light(rng: Generator) -> Light:
    """Light from above, up to 60 degrees to either side."""
    # Of the two numbers drawn, flat drawings need the first: the side it comes from.
    angle, _ = rng.uniform(-1.05, 1.05, 2)
    return Light(float(np.sin(angle)), float(-np.cos(angle)))


def pose(rng: Generator, shift=0.1, angle=np.pi, scale=(0.9, 1.08)) -> Pose:
    """A random pose: uniform shift, angle in [-angle, angle], and scale."""
    x, y = rng.uniform(-shift, shift, 2)
    return Pose(float(x), float(y), rng.uniform(-angle, angle), rng.uniform(*scale))


def local(surface: Canvas, at: Pose, offset=(0.0, 0.0)):
    """Canvas coordinates in the frame of a pose; `offset` moves the drawing, canvas."""
    moved = at._replace(x=at.x + offset[0], y=at.y + offset[1])
    return frame(surface.x, surface.y, moved)


def outward(at: Pose, u: float, v: float) -> tuple[float, float]:
    """The canvas point of a point in the frame of a pose."""
    cos, sin = math.cos(at.angle) * at.scale, math.sin(at.angle) * at.scale
    return float(at.x + cos * u - sin * v), float(at.y + sin * u + cos * v)


def frame(u, v, at: Pose):
    """Coordinates (u, v) seen from a pose that is given in the same coordinates."""
    cos, sin = math.cos(at.angle) / at.scale, math.sin(at.angle) / at.scale
    u, v = u - np.float32(at.x), v - np.float32(at.y)
    return cos * u + sin * v, cos * v - sin * u


def window(surface: Canvas, x: float, y: float, half: float):
    """The part of a canvas within `half` of a point: (rows and columns, canvas)."""
    low = [max(0, int((c - half + 1) / surface.pixel)) for c in (y, x)]
    high = [math.ceil((c + half + 1) / surface.pixel) for c in (y, x)]
    area = tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
    return area, surface._replace(x=surface.x[area], y=surface.y[area])


def circle(u, v, radius, centre=(0.0, 0.0)):
    """Distance to a circle."""
    u, v = u - np.float32(centre[0]), v - np.float32(centre[1])
    return np.sqrt(u * u + v * v) - np.float32(radius)


def circles(u, v, radii, centres):
    """Distance to the union of circles; 9 where there are none."""
    distance = np.full_like(u, 9.0)
    for radius, centre in zip(radii, centres, strict=True):
        distance = np.minimum(distance, circle(u, v, radius, centre))
    return distance


def box(u, v, half_u, half_v, corner=0.0):
    """Distance to a box about the origin with rounded corners."""
    du = np.abs(u) - np.float32(half_u - corner)
    dv = np.abs(v) - np.float32(half_v - corner)
    outside = np.sqrt(np.maximum(du, 0) ** 2 + np.maximum(dv, 0) ** 2)
    return outside + np.minimum(np.maximum(du, dv), 0) - np.float32(corner)


def polygon(u, v, sides, radius):
    """Distance (exact along the edges) to a regular polygon of inner radius."""
    step = 2 * np.pi / sides
    angle = np.arctan2(v, u)
    folded = np.mod(angle + step / 2, step) - step / 2
    return np.sqrt(u * u + v * v) * np.cos(folded) - np.float32(radius)


def segment(u, v, a, b, radius):
    """Distance to a thick segment from `a` to `b`."""
    du, dv = b[0] - a[0], b[1] - a[1]
    length = du * du + dv * dv + 1e-9
    t = np.clip(((u - a[0]) * du + (v - a[1]) * dv) / np.float32(length), 0, 1)
    return np.sqrt((u - a[0] - t * du) ** 2 + (v - a[1] - t * dv) ** 2) - np.float32(
        radius
    )


def cover(distance, surface: Canvas, soft=0.0):
    """Antialiased coverage in [0, 1] of a signed distance; `soft` widens the edge."""
    return np.clip(0.5 - distance / np.float32(1.5 * surface.pixel + soft), 0, 1)


def smooth(field, low, high):
    """Smooth step: 0 below `low`, 1 above `high`."""
    t = np.clip((field - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour [3] float32 from hue, saturation and value, the hue taken modulo 1."""
    red, green, blue = colorsys.hsv_to_rgb(
        hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1)
    )
    return np.array([red, green, blue], np.float32)


def planar(color):
    """[side, side, 3] with each channel contiguous, which broadcasting likes."""
    if color.strides[-1] >= color.strides[0]:
        return color
    return np.ascontiguousarray(color.transpose(2, 0, 1)).transpose(1, 2, 0)


def plain(color, like):
    """One colour [3] on the pixels of a field [side, side], as [side, side, 3]."""
    return color + np.zeros((*like.shape, 3), np.float32)


def tinted(color, tone):
    """One colour [3] at the brightness of a field [side, side], as [side, side, 3]."""
    return np.multiply.outer(color, tone).transpose(1, 2, 0)


def over(below, color, alpha):
    """`color` ([3] or [..., 3]) laid over `below` [..., 3] with `alpha` [...]."""
    below = planar(below)
    if color.ndim == 3:
        color = planar(color)
    return below + alpha[..., None] * (color - below)


def slope(height, surface: Canvas, lit: Light):
    """Directional derivative of a height towards the light, per canvas unit.

    Positive where the surface faces the light.
    """
    du, dv = np.empty_like(height), np.empty_like(height)
    du[:, 1:-1] = height[:, 2:] - height[:, :-2]
    du[:, 0], du[:, -1] = du[:, 1], du[:, -2]
    dv[1:-1] = height[2:] - height[:-2]
    dv[0], dv[-1] = dv[1], dv[-2]
    scale = np.float32(-0.5 / surface.pixel)
    return (np.float32(lit.x) * du + np.float32(lit.y) * dv) * scale


def relief(color, height, surface: Canvas, lit: Light, strength: float, gloss=0.0):
    """`color` shaded as a surface of the given height, with an optional highlight."""
    facing = np.tanh(np.float32(strength) * slope(height, surface, lit))
    shaded = planar(color) * (1 + np.float32(0.45) * facing)[..., None]
    if gloss:
        shaded = shaded + (np.float32(gloss) * np.clip(facing, 0, 1) ** 3)[..., None]
    return shaded
