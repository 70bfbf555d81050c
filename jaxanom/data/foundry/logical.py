"""Logical categories (juice bottle, parts tray) and the panel of one experiment."""

from typing import NamedTuple

import numpy as np

from jaxanom.data.foundry import shapes
from jaxanom.data.foundry.noise import fractal, noise
from jaxanom.data.foundry.scene import (
    Scene,
    backdrop,
    darkened,
    item,
    kind_of,
    shadow,
    shadow_offset,
    texture,
)
from jaxanom.data.foundry.shapes import cover, over, relief, rgb, smooth, tinted

JUICES = {
    "orange": (0.085, 0.85, 0.95),
    "cherry": (0.985, 0.8, 0.72),
    "grape": (0.78, 0.6, 0.6),
    "kiwi": (0.27, 0.7, 0.72),
    "lemon": (0.145, 0.7, 0.97),
    "berry": (0.62, 0.65, 0.72),
}
"""Hue, saturation and value of each juice."""


class _BottleParts(NamedTuple):
    """Level of the juice, colour of the cap [3], pose of the label; None is lost."""

    level: float
    cap: np.ndarray | None
    label: shapes.Pose | None


def _bottle_parts(level: float, liquid, hue: float, edit) -> _BottleParts:
    """The parts of a bottle, of which a defect changes one."""
    parts = _BottleParts(level, liquid * 0.85, shapes.Pose(0, 0.56, 0, 1))
    kind = kind_of(edit)
    if kind == "wrong_level":
        return parts._replace(level=level + edit.rng.uniform(0.24, 0.42))
    if kind == "wrong_color":
        turn = edit.rng.uniform(0.33, 0.67)
        return parts._replace(cap=rgb(hue + turn, 0.75, 0.65))
    if kind == "misplaced_part":
        sign, lift = edit.rng.choice([-1, 1]), edit.rng.uniform(-0.28, -0.14)
        return parts._replace(label=shapes.Pose(0.1 * sign, lift + 0.56, 0.5 * sign, 1))
    if kind == "missing_part":
        lost = "label" if edit.rng.random() < 0.5 else "cap"
        return parts._replace(**{lost: None})
    return parts


def _glass(u, v):
    """Distance to the outline of a bottle: neck and body, blended at the shoulder."""
    neck = shapes.box(u, v + np.float32(0.62), 0.17, 0.3, 0.05)
    body = shapes.box(u, v - np.float32(0.26), 0.5, 0.64, 0.16)
    shoulder = np.float32(0.09)
    blend = np.clip(0.5 + 0.5 * (neck - body) / shoulder, 0, 1)
    return neck + (body - neck) * blend - shoulder * blend * (1 - blend)


def _stick_label(color, surface, u, v, at, liquid):
    """Draws a label: white paper, a mark in the juice's colour, two lines of text."""
    u, v = shapes.frame(u, v, at)
    paper = shapes.box(u, v, 0.38, 0.2, 0.03)
    color = over(color, rgb(0.12, 0.05, 0.95), cover(paper, surface))
    mark = shapes.circle(u, v, 0.11, (-0.2, 0.0))
    color = over(color, liquid, cover(mark, surface))
    for row, half in ((-0.07, 0.16), (0.06, 0.12)):
        text = shapes.box(u - np.float32(0.14), v - np.float32(row), half, 0.03)
        color = over(color, rgb(0, 0, 0.35), cover(text, surface))
    return color


def juice_bottle(rng, surface, lit, edit) -> Scene:
    """A glass bottle of juice with a cap of the juice's colour and a label."""
    juice = tuple(JUICES)[int(rng.integers(len(JUICES)))]
    hue, saturation, value = JUICES[juice]
    hue, value = hue + rng.uniform(-0.012, 0.012), value * rng.uniform(0.93, 1.03)
    liquid = rgb(hue, saturation * rng.uniform(0.92, 1.05), value)
    at = shapes.pose(rng, 0.04, 0.06, (0.94, 1.0))
    wall = rgb(rng.random(), rng.uniform(0.02, 0.1), rng.uniform(0.72, 0.88))
    color = backdrop(rng, surface, wall)
    parts = _bottle_parts(-0.32 + rng.uniform(-0.015, 0.015), liquid, hue, edit)
    su, sv = shapes.local(surface, at, (-lit.x * 0.12, 0.05))
    color = darkened(color, _glass(su, sv), 0.3, 0.16)
    u, v = shapes.local(surface, at)
    distance = _glass(u, v)
    alpha = cover(distance, surface)
    color = over(color, 0.25 + 0.7 * color, alpha)
    filled = np.maximum(distance + np.float32(0.045), np.float32(parts.level) - v)
    depth = smooth(-distance, 0.0, 0.3)
    drink = tinted(liquid, 0.78 + 0.24 * depth - 0.05 * v)
    color = over(color, drink, cover(filled, surface))
    meniscus = np.abs(v - np.float32(parts.level)) - np.float32(0.016)
    line = np.maximum(meniscus, distance + np.float32(0.045))
    color = over(color, liquid * 0.7, cover(line, surface))
    if parts.label is not None:
        color = _stick_label(color, surface, u, v, parts.label, liquid)
    edge = smooth(-np.abs(distance + np.float32(0.02)), -0.035, 0)
    color = over(color, color * 0.72, edge * alpha)
    side = np.float32(-0.34 if lit.x < 0 else 0.34)
    gleam = np.maximum(np.abs(u - side) - 0.035, np.abs(v - 0.2) - 0.5)
    color = over(color, color + 0.3, smooth(-gleam, -0.03, 0.03) * alpha)
    if parts.cap is not None:
        top = shapes.box(u, v + np.float32(0.86), 0.21, 0.11, 0.03)
        ribs = 0.8 + 0.2 * np.cos(u * 55) + 0.25 * np.clip(1 - (u / 0.21) ** 2, 0, 1)
        color = over(color, parts.cap * ribs[..., None], cover(top, surface))
    stated = {"juice": juice, "juice_color": [float(c) for c in liquid]}
    inside = cover(filled, surface)
    scene = item(color, inside, at, ("box", 0.17, 0.07), 0.26, **stated)

    def place(draw):
        # Surface defects lie in the juice between its level and the label.
        u, v = draw.uniform(-0.17, 0.17), draw.uniform(-0.02, 0.12)
        return shapes.outward(at, u, v)

    return scene._replace(place=place)


def _part(u, v, form: int):
    """Distances of the three parts of a tray: outline, and an inner hole."""
    if form == 0:
        return shapes.circle(u, v, 0.19), shapes.circle(u, v, 0.08)
    if form == 1:
        return shapes.polygon(u, v, 6, 0.17), shapes.circle(u, v, 0.07)
    return shapes.box(u, v, 0.21, 0.1, 0.05), shapes.box(u, v, 0.12, 0.025)


def _tray_parts(rng, tints, hue: float, edit) -> list[list]:
    """[x, y, turn, form, colour] of each part; a defect changes one."""
    parts = []
    for row in range(2):
        for column in range(3):
            jitter = rng.uniform(-0.025, 0.025, 2)
            turn = rng.uniform(-0.15, 0.15)
            spot = (0.54 * (column - 1) + jitter[0], 0.5 * row - 0.25 + jitter[1])
            parts.append([*spot, turn, column, tints[column]])
    kind = kind_of(edit)
    if kind != "good":
        number = int(edit.rng.integers(6))
        part = parts[number]
    if kind == "missing_part":
        del parts[number]
    elif kind == "wrong_color":
        part[4] = rgb(hue + (2 * part[3] + 1) / 6 + 1 / 3, 0.8, 0.55)
    elif kind == "misplaced_part":
        down = 1 if part[1] < 0 else -1
        part[0] += edit.rng.choice([-1, 1]) * edit.rng.uniform(0.08, 0.12)
        part[1] -= down * edit.rng.uniform(0.26, 0.32)
        part[2] += edit.rng.uniform(0.6, 1.2)
    elif kind == "extra_part":
        form, turn = int(edit.rng.integers(3)), edit.rng.uniform(0.5, 1.1)
        x = edit.rng.choice([-0.27, 0.27]) + edit.rng.uniform(-0.06, 0.06)
        parts.append([x, edit.rng.uniform(-0.2, 0.2), turn, form, tints[form]])
    return parts


def _lay_part(color, surface, lit, at, x, y, turn, form, tint) -> None:
    """Draws one part with its shadow into `color`, in place."""
    centre = shapes.outward(at, x, y)
    area, near = shapes.window(surface, *centre, 0.34)
    frame = shapes.Pose(*centre, at.angle + turn, at.scale)
    cast = shapes.local(near, frame, shadow_offset(lit, 0.035))
    below = color[area]
    below = over(below, below * 0.45, smooth(-_part(*cast, form)[0], -0.04, 0.02))
    shape, inner = _part(*shapes.local(near, frame), form)
    lift = smooth(-shape, 0, 0.06) * np.float32(0.05)
    metal = relief(tint + np.zeros_like(below), lift, near, lit, 1.5, 0.3)
    metal = over(metal, metal * 0.3, cover(inner, near))
    color[area] = over(below, metal, cover(shape, near))


def tray(rng, surface, lit, edit) -> Scene:
    """Six slots in two rows; each column holds one kind and colour of part."""
    at = shapes.pose(rng, 0.05, 0.1, (0.97, 1.03))
    color = backdrop(rng, surface)
    plastic = rgb(rng.random(), rng.uniform(0.05, 0.25), rng.uniform(0.3, 0.45))
    hue = rng.random()
    tints = [rgb(hue + k / 3, 0.55, 0.8) for k in range(3)]
    parts = _tray_parts(rng, tints, hue, edit)

    def box(u, v):
        return shapes.box(u, v, 0.86, 0.6, 0.08)

    color = shadow(color, box, at, surface, lit, 0.08)
    u, v = shapes.local(surface, at)
    outline = box(u, v)
    fu = u - np.float32(0.54) * np.clip(np.round(u / np.float32(0.54)), -1, 1)
    fv = np.abs(v) - np.float32(0.25)
    slots = shapes.box(fu, fv, 0.25, 0.225, 0.05)
    body = plastic * (1 + 0.04 * fractal(rng, surface, 6, 2))[..., None]
    height = smooth(-outline, 0, 0.05) * np.float32(0.05)
    height = height - smooth(-slots, -0.02, 0.05) * np.float32(0.07)
    body = over(body, body * 0.62, cover(slots, surface))
    body = relief(body, height, surface, lit, 1.3, 0.1)
    alpha = cover(outline, surface)
    color = over(color, body, alpha)
    for part in parts:
        _lay_part(color, surface, lit, at, *part)
    return item(color, alpha, at, ("box", 0.6, 0.35), 0.26)


def steel_panel(rng, surface, lit, edit) -> Scene:
    """A wall panel of ribbed steel; rust occurs on it."""
    at = shapes.pose(rng, 0.2, 0.12, (1, 1))
    u, _ = shapes.local(surface, at)
    pitch, value = rng.uniform(0.8, 1.0), rng.uniform(0.92, 1.06)
    streak = noise(rng, surface, 40, 3)
    tint = rgb(0.58, 0.06, 0.68 * value)
    color = tinted(tint, 1 + 0.03 * fractal(rng, surface, 3, 3) + 0.025 * streak)
    wave = np.cos(u * np.float32(6 * np.pi * pitch))
    height = np.float32(0.035) * smooth(wave, -0.7, 0.7)
    color = color * (1 + np.float32(0.13) * wave)[..., None]
    color = relief(color, height, surface, lit, 0.9, 0.04)
    return texture(color, surface, 0.36, variant="steel")


def plastic_panel(rng, surface, lit, edit) -> Scene:
    """A wall panel of studded blue plastic; rust never occurs on it."""
    at = shapes.pose(rng, 0.2, 0.12, (1, 1))
    u, v = shapes.local(surface, at)
    step, value = np.float32(rng.uniform(0.34, 0.4)), rng.uniform(0.92, 1.06)
    stud = shapes.circle(
        u - step * np.round(u / step), v - step * np.round(v / step), 0.11
    )
    color = tinted(rgb(0.56, 0.5, 0.62 * value), 1 + 0.03 * fractal(rng, surface, 3, 3))
    height = np.float32(0.045) * smooth(-stud, -0.02, 0.06)
    color = relief(color, height, surface, lit, 1.5, 0.12)
    return texture(color, surface, 0.36, variant="plastic")


BUILDERS = {
    "juice_bottle": juice_bottle,
    "tray": tray,
    "steel panel": steel_panel,
    "plastic panel": plastic_panel,
}

PART_DEFECTS = {
    "juice_bottle": ("missing_part", "misplaced_part", "wrong_color", "wrong_level"),
    "tray": ("missing_part", "misplaced_part", "extra_part", "wrong_color"),
}
"""Defects these builders draw themselves; the rest are painted on the surface."""
