"""A circuit chip and a cable: objects made of parts that can be lost or moved."""

import functools

import numpy as np

from jaxanom.data.foundry import shapes
from jaxanom.data.foundry.noise import fractal, noise
from jaxanom.data.foundry.scene import Scene, backdrop, item, kind_of, shadow
from jaxanom.data.foundry.shapes import cover, over, relief, rgb, smooth, tinted


def _feet(pins: int, edit):
    """Where each pin of a chip starts and ends, on both of its long sides."""
    kind, gone, bent = kind_of(edit), set(), {}
    if kind == "missing_part":
        first = int(edit.rng.integers(pins - 1))
        side = int(edit.rng.integers(2))
        gone = {(side, first), (side, first + 1)}
    elif kind == "misplaced_part":
        number = int(edit.rng.integers(1, pins - 1))
        tilt = edit.rng.choice([-1, 1]) * edit.rng.uniform(0.18, 0.26)
        bent = {(int(edit.rng.integers(2)), number): tilt}
    feet = []
    for side, sign in ((0, -1), (1, 1)):
        for number in range(pins):
            if (side, number) not in gone:
                x = (number + 0.5) / pins * 1.16 - 0.58
                end = (x + bent.get((side, number), 0.0), sign * 0.66)
                feet.append(((x, sign * 0.38), end))
    return feet


def chip(rng, surface, lit, edit) -> Scene:
    """A packaged circuit: black body, metal pins, a dot and printed lines."""
    at = shapes.pose(rng, 0.07, 0.22, (0.95, 1.05))
    turned = rng.random() < 0.5
    at = at._replace(angle=at.angle + (np.pi / 2 if turned else 0))
    board = rgb(rng.choice([0.4, 0.36, 0.6]), rng.uniform(0.45, 0.65), 0.42)
    color = backdrop(rng, surface, board)
    pins = int(rng.integers(4, 6))
    feet = _feet(pins, edit)
    u, v = shapes.local(surface, at)

    def package(u, v):
        return shapes.box(u, v, 0.62, 0.4, 0.05)

    def pins_at(u, v):
        ends = [shapes.segment(u, v, start, end, 0.058) for start, end in feet]
        return functools.reduce(np.minimum, ends, np.full_like(u, 9.0))

    color = shadow(color, package, at, surface, lit, 0.06, strength=0.5, soft=0.08)
    color = shadow(color, pins_at, at, surface, lit, 0.06, strength=0.4, soft=0.05)
    body, legs = package(u, v), pins_at(u, v)
    shine = tinted(rgb(0.12, 0.08, 0.8), 0.9 + 1.2 * np.clip(-legs / 0.1, 0, 0.3))
    color = over(color, shine, cover(legs, surface))
    plastic = tinted(rgb(0.6, 0.08, 0.2), 1 + 0.08 * fractal(rng, surface, 12, 2))
    height = smooth(-body, 0, 0.07) * np.float32(0.06)
    plastic = relief(plastic, height, surface, lit, 2.2, 0.12)
    dot = shapes.circle(u, v, 0.065, (-0.46, 0.22))
    plastic = over(plastic, rgb(0, 0, 0.72), cover(dot, surface))
    widths = rng.uniform(0.2, 0.36, 2)
    for row, half in zip((-0.12, 0.06), widths, strict=True):
        line = shapes.box(u - np.float32(0.05), v - np.float32(row), half, 0.035, 0.03)
        plastic = over(plastic, rgb(0, 0, 0.62), cover(line, surface))
    alpha = cover(body, surface)
    return item(over(color, plastic, alpha), alpha, at, ("box", 0.34, 0.16), 0.28)


def _wires(edit):
    """Centres and colours of a cable's three wires, and the number of a lost one."""
    colors = [rgb(0.08, 0.65, 0.5), rgb(0.6, 0.7, 0.65), rgb(0.33, 0.65, 0.55)]
    centres = [
        (0.34 * np.cos(turn), 0.34 * np.sin(turn))
        for turn in (np.pi / 2, np.pi * 7 / 6, np.pi * 11 / 6)
    ]
    kind, number = kind_of(edit), None
    if kind != "good":
        number = int(edit.rng.integers(3))
    if kind == "misplaced_part":
        a, b = centres[number]
        turn = edit.rng.choice([-1, 1]) * edit.rng.uniform(0.3, 0.4)
        out = edit.rng.uniform(1.45, 1.65)
        centres[number] = (out * a - turn * b, out * b + turn * a)
    elif kind == "wrong_color":
        colors[number] = (rgb(0.14, 0.85, 0.9), rgb(0.98, 0.8, 0.75), rgb(0, 0, 0.12))[
            edit.rng.integers(3)
        ]
    return centres, colors, number if kind == "missing_part" else None


def cable(rng, surface, lit, edit) -> Scene:
    """A cut cable: three coloured wires with copper strands in a sheath."""
    at = shapes.pose(rng, 0.07)
    color = backdrop(rng, surface)
    coat = rgb(rng.random(), rng.uniform(0.05, 0.35), rng.uniform(0.25, 0.45))
    fill = rgb(0.1, 0.05, 0.82)
    centres, colors, lost = _wires(edit)

    def outline(u, v):
        return shapes.circle(u, v, 0.8)

    color = shadow(color, outline, at, surface, lit, 0.1)
    u, v = shapes.local(surface, at)
    rim = outline(u, v)
    body = tinted(coat, 1 + 0.05 * fractal(rng, surface, 6, 2))
    height = np.float32(0.06) * smooth(-np.abs(rim + 0.07), -0.08, -0.01)
    bed = tinted(fill, 0.95 + 0.06 * fractal(rng, surface, 10, 2))
    inside = shapes.circle(u, v, 0.665)
    body = over(
        body,
        bed * (0.72 + 0.28 * smooth(-inside, 0, 0.2))[..., None],
        cover(inside, surface),
    )
    grain = noise(rng, surface, 26)
    for index, ((a, b), tint) in enumerate(zip(centres, colors, strict=True)):
        du, dv = u - np.float32(a), v - np.float32(b)
        if index == lost:
            pit = shapes.circle(du, dv, 0.27)
            shade = 0.32 + 0.25 * smooth(-pit, 0, 0.25)
            body = over(body, bed * shade[..., None], cover(pit, surface))
            continue
        wire = shapes.circle(du, dv, 0.275)
        body = over(body, body * 0.55, smooth(-wire, -0.07, 0.0))
        body = over(body, tint, cover(wire, surface))
        height = height + np.float32(0.05) * smooth(-wire, 0, 0.08)
        core = shapes.circle(du, dv, 0.16)
        strands = 0.85 + 0.12 * np.cos(40 * du) * np.cos(40 * dv) + 0.08 * grain
        body = over(
            body, rgb(0.065, 0.55, 0.82) * strands[..., None], cover(core, surface)
        )
        height = height - np.float32(0.02) * smooth(-core, -0.03, 0.03)
    body = relief(body, height, surface, lit, 1.6, 0.2)
    alpha = cover(rim, surface)
    return item(over(color, body, alpha), alpha, at, ("ring", 0.1, 0.5), 0.3)


BUILDERS = {build.__name__: build for build in (chip, cable)}

PART_DEFECTS = {
    "chip": ("missing_part", "misplaced_part"),
    "cable": ("missing_part", "misplaced_part", "wrong_color"),
}
"""Defects these builders draw themselves; the rest are painted on the surface."""
