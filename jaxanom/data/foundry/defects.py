"""Surface defects: each paints a layer on a finished scene and says where it lies."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from jaxanom.data.foundry import shapes
from jaxanom.data.foundry.noise import Canvas, noise
from jaxanom.data.foundry.scene import Scene
from jaxanom.data.foundry.shapes import Light, over, plain, rgb, smooth, tinted

PaintFn = Callable[[Generator, Canvas, Light, Scene], tuple[np.ndarray, np.ndarray]]
"""(rng, canvas, light, scene) -> (color [side, side, 3], support [side, side])."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Hue, saturation and value of spills and of foreign matter.
SPILLS = (
    *((0.07, 0.7, 0.25), (0.62, 0.75, 0.3), (0.98, 0.7, 0.38)),
    *((0.33, 0.5, 0.25), (0.13, 0.3, 0.92)),
)
FOREIGN = (
    *((0, 0, 0.95), (0, 0, 0.06), (0.99, 0.85, 0.8)),
    *((0.6, 0.85, 0.75), (0.35, 0.8, 0.55), (0.14, 0.9, 0.92)),
)

FLOATING_GAIN = 0.45
"""How bright a floating blob is, relative to what it floats in."""


def floating_color(background):
    """The colour of a floating blob, a known function of the colour around it.

    Same hue, darker: orange in orange juice, purple in grape juice.

    Args:
      background: [..., 3] in [0, 1].

    Returns:
      [..., 3] in [0, 1].
    """
    return np.float32(FLOATING_GAIN) * background


def _mean_color(scene: Scene, support) -> np.ndarray:
    weight = (support * scene.surface).ravel()
    channels = scene.color.transpose(2, 0, 1).reshape(3, -1)
    return channels @ weight / (weight.sum() + np.float32(1e-6))


def _contrasting(rng: Generator, scene: Scene, support, palette) -> np.ndarray:
    """The first colour of a shuffled palette that stands out, or the best one."""
    here = _mean_color(scene, support)
    shuffled = [rgb(*palette[i]) for i in rng.permutation(len(palette))]
    distances = [float(np.abs(color - here).mean()) for color in shuffled]
    for color, distance in zip(shuffled, distances, strict=True):
        if distance > 0.26:
            return color
    return shuffled[int(np.argmax(distances))]


class _Patch(NamedTuple):
    """A ragged disc: where it lies, and where it covers the canvas.

    Attributes:
      x, y, radius: Canvas units.
      field: [side, side], 0 at its centre, 1 on its edge, growing outwards.
      support: [side, side], antialiased coverage of `field` < 1.
    """

    x: float
    y: float
    radius: float
    field: np.ndarray
    support: np.ndarray


def _patch(rng: Generator, surface: Canvas, scene: Scene, sizes, rough, cells):
    """Draws one; `sizes` are its least and greatest radius in reaches of the scene."""
    x, y = scene.place(rng)
    radius = scene.reach * rng.uniform(*sizes)
    angle, stretch = rng.uniform(-np.pi, np.pi), rng.uniform(0.75, 1.3)
    u, v = shapes.local(surface, shapes.Pose(x, y, angle, radius))
    distance = np.sqrt((u * np.float32(stretch)) ** 2 + (v / np.float32(stretch)) ** 2)
    field = distance + np.float32(rough) * np.clip(noise(rng, surface, cells), -2, 2)
    return _Patch(x, y, radius, field, _edge(field, 1.0, surface, radius))


def _edge(field, level, surface: Canvas, radius):
    """Antialiased coverage of `field < level` for a field in units of `radius`."""
    return np.clip(
        0.5 - (field - level) * np.float32(radius / 1.5 / surface.pixel), 0, 1
    )


def _stroke(taper, away, surface: Canvas):
    """Antialiased coverage of a line of half width `taper` at distance `away`."""
    return np.clip((taper - np.abs(away)) / np.float32(1.5 * surface.pixel) + 0.5, 0, 1)


def scratch(rng, surface, lit, scene):
    """One to three nearly parallel grooves, bright or dark against the surface."""
    x, y = scene.place(rng)
    angle, count = rng.uniform(-np.pi, np.pi), int(rng.integers(1, 4))
    half = max(0.36, scene.reach * rng.uniform(1.25, 1.7))
    core = np.zeros_like(surface.x)
    edge = np.zeros_like(surface.x)
    for number in range(3):
        shift, turn = rng.uniform(-0.5, 0.5), rng.uniform(-0.12, 0.12)
        bend, part = rng.uniform(-0.12, 0.12), rng.uniform(0.7, 1)
        width = rng.uniform(0.034, 0.046) * (1.25 if count == 1 else 1)
        if number >= count:
            continue
        gap = 0.0 if number == 0 else 0.12 * (1 if number == 1 else -1)
        at = shapes.Pose(x, y, angle + turn, 1)
        s, t = shapes.local(surface, at)
        s = (s - np.float32(shift * 0.2)) / np.float32(half * part)
        t = t - np.float32(gap) - np.float32(bend) * (1 - s * s)
        taper = np.float32(width) * np.sqrt(np.clip(1 - s * s, 0, 1))
        alpha = _stroke(taper, t, surface) * (np.abs(s) < 1)
        core = np.maximum(core, alpha)
        edge = edge + alpha * np.tanh(t / np.float32(width))
    luma = float(_mean_color(scene, core) @ LUMA)
    tone = np.float32(0.92) if luma < 0.5 else np.float32(0.12)
    color = over(scene.color, scene.color * 0.3 + tone * 0.7, core * 0.85)
    side = np.float32(0.15 * np.sign(lit.x * -np.sin(angle) + lit.y * np.cos(angle)))
    return color + (side * edge)[..., None], core


def _zigzag(rng: Generator, surface: Canvas, x, y, angle, length, width):
    """A jagged line from (x, y): coverage, and signed side in units of its width."""
    s, t = shapes.local(surface, shapes.Pose(x, y, angle, 1))
    knots = np.linspace(0, length, 9)
    jag = np.cumsum(rng.uniform(-0.07, 0.07, 9)) * (length / 0.8)
    jag = jag - jag[0]
    path = np.interp(s, knots, jag).astype(np.float32)
    taper = np.float32(width) * np.sqrt(np.clip(1 - s / np.float32(length), 0, 1))
    away = (t - path) * np.float32(0.85)
    alpha = _stroke(taper, away, surface)
    ends = (s > 0) & (s < length)
    tips = [
        (
            x + np.cos(angle) * k - np.sin(angle) * j,
            y + np.sin(angle) * k + np.cos(angle) * j,
        )
        for k, j in zip(knots, jag, strict=True)
    ]
    return alpha * ends, np.tanh(away / np.float32(width)), tips


def crack(rng, surface, lit, scene):
    """A jagged dark line with two branches and a lit lip."""
    x, y = scene.place(rng)
    angle, length = rng.uniform(-np.pi, np.pi), scene.reach * rng.uniform(2.4, 3.2)
    width = rng.uniform(0.036, 0.05)
    start = (x - np.cos(angle) * length / 2, y - np.sin(angle) * length / 2)
    core, side, tips = _zigzag(rng, surface, *start, angle, length, width)
    lip = core * side
    for knot, sign in ((3, 1), (5, -1)):
        turn = sign * rng.uniform(0.5, 0.9)
        part = length * rng.uniform(0.3, 0.5)
        alpha, side, _ = _zigzag(
            rng, surface, *tips[knot], angle + turn, part, width * 0.8
        )
        core, lip = np.maximum(core, alpha), np.where(alpha > core, alpha * side, lip)
    luma = float(_mean_color(scene, core) @ LUMA)
    tone = np.float32(0.05) if luma > 0.34 else np.float32(0.72)
    color = over(scene.color, scene.color * 0.15 + tone * 0.85, core * 0.92)
    lean = np.float32(0.12 * np.sign(lit.x * -np.sin(angle) + lit.y * np.cos(angle)))
    return color - (lean * lip)[..., None], core


def hole(rng, surface, lit, scene):
    """A ragged hole: dark inside, shaded by the rim towards the light."""
    patch = _patch(rng, surface, scene, (0.6, 0.9), 0.16, 9)
    field, support = patch.field, patch.support
    inside = _edge(field, 0.84, surface, patch.radius)
    right, down = surface.x - np.float32(patch.x), surface.y - np.float32(patch.y)
    toward = right * lit.x + down * lit.y
    depth = np.clip(toward / np.float32(patch.radius), -1, 1)
    luma = float(_mean_color(scene, support) @ LUMA)
    rim = scene.color * (1 - 0.35 * depth)[..., None] + np.float32(
        0.2 if luma < 0.35 else -0.08
    )
    color = over(scene.color, rim, support)
    floor = np.array([0.07, 0.06, 0.06], np.float32) + 0.04 * scene.color
    floor = floor * (1 - 0.6 * depth)[..., None]
    return over(color, floor, inside), support


def stain(rng, surface, lit, scene):
    """A spill that colours what is below it, darkest on its rim."""
    patch = _patch(rng, surface, scene, (0.75, 1.0), 0.2, 7)
    field, support = patch.field, patch.support
    tint = _contrasting(rng, scene, support, SPILLS)
    ring = smooth(field, 0.7, 0.9)
    cloud = np.clip(0.5 + 0.3 * noise(rng, surface, 12), 0, 1)
    alpha = support * (0.6 + 0.14 * cloud + 0.16 * ring)
    wet = tint * (0.72 + 0.45 * scene.color) * (1 - 0.22 * ring)[..., None]
    return over(scene.color, wet, alpha), support


def dent(rng, surface, lit, scene):
    """A dimple: dark on the side towards the light, bright opposite, sharp rim."""
    patch = _patch(rng, surface, scene, (0.75, 0.95), 0.05, 5)
    field, support = patch.field, patch.support
    depth = -np.float32(0.55 * patch.radius) * (1 - np.clip(field, 0, 1) ** 2) ** 2
    facing = np.tanh(1.6 * shapes.slope(depth, surface, lit))
    color = scene.color * (1 + 0.62 * facing)[..., None]
    color = color + (0.3 * np.clip(facing, 0, 1) ** 2)[..., None]
    floor = smooth(-field, -0.7, -0.1)
    color = color * (1 - 0.3 * floor)[..., None]
    return over(scene.color, color, support), support


def contamination(rng, surface, lit, scene):
    """Foreign matter: a few crumbs, or a curled fibre, each with a shadow."""
    x, y = scene.place(rng)
    fibre = rng.random() < 0.4
    reach = scene.reach
    spots = rng.normal(0, 0.42 * reach, (6, 2))
    radii = rng.uniform(0.2, 0.36, 6) * reach
    curl, angle = rng.uniform(1.2, 2.6), rng.uniform(-np.pi, np.pi)
    width = rng.uniform(0.045, 0.055)
    if fibre:
        s, t = shapes.local(surface, shapes.Pose(x, y, angle, 1))
        wave, bow = curl * np.pi / 2 / reach, 0.5 * reach / curl**0.5
        path = np.float32(bow) * np.sin(np.float32(wave) * s)
        steep = np.float32(bow * wave) * np.cos(np.float32(wave) * s)
        taper = np.sqrt(np.clip(1 - (s / np.float32(1.3 * reach)) ** 4, 0, 1))
        distance = np.abs(t - path) / np.sqrt(1 + steep * steep)
        distance = distance - np.float32(width) * (1.3 * taper - 0.3)
        distance = np.maximum(distance, np.abs(s) - np.float32(1.3 * reach))
    else:
        centres = [(x + dx, y + dy) for dx, dy in spots]
        distance = shapes.circles(surface.x, surface.y, radii, centres)
        distance = distance + np.float32(0.018) * noise(rng, surface, 20)
    alpha = shapes.cover(distance, surface)
    support = shapes.cover(distance - np.float32(0.02), surface)
    tint = _contrasting(rng, scene, support, FOREIGN)
    dome = np.clip(-distance / np.float32(0.09), 0, 1)
    body = tinted(tint, 0.78 + 0.3 * dome)
    color = over(scene.color, scene.color * 0.55, support)
    return over(color, body, alpha), support


def wrong_color(rng, surface, lit, scene):
    """A patch whose dye is wrong; light and relief stay."""
    support = _patch(rng, surface, scene, (0.8, 1.0), 0.14, 6).support
    dyes = [(hue, 0.75, 0.8) for hue in np.arange(6) / 6 + 0.02]
    tint = _contrasting(rng, scene, support, dyes)
    luma = (scene.color @ LUMA)[..., None]
    dyed = tint * (luma / (float(_mean_color(scene, support) @ LUMA) + 1e-3)) * 0.8
    return over(scene.color, dyed, support * 0.9), support


def floating(rng, surface, lit, scene):
    """A clot floating in a liquid; its colour is `floating_color` of what it covers."""
    support = _patch(rng, surface, scene, (0.75, 1.0), 0.14, 8).support
    return over(scene.color, floating_color(scene.color), support), support


def rust(rng, surface, lit, scene):
    """An orange-brown eaten patch, mottled, darker at its edge."""
    patch = _patch(rng, surface, scene, (0.75, 1.0), 0.24, 8)
    field, support = patch.field, patch.support
    mottle = noise(rng, surface, 18)
    tint = over(
        plain(rgb(0.06, 0.8, 0.62), field),
        rgb(0.03, 0.75, 0.3),
        np.clip(0.35 + 0.35 * mottle + 0.5 * smooth(field, 0.6, 1.0), 0, 1),
    )
    return over(scene.color, tint + 0.1 * (scene.color - 0.5), support * 0.95), support


PAINTERS: dict[str, PaintFn] = {
    paint.__name__: paint
    for paint in (
        *(scratch, crack, hole, stain, dent),
        *(contamination, wrong_color, floating, rust),
    )
}
