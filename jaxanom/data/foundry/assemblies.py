"""Objects made of parts: circuit chip, cable, juice bottle, parts tray, panel."""

import numpy as np

from jaxanom.data.foundry import shapes
from jaxanom.data.foundry.noise import fractal, noise
from jaxanom.data.foundry.scene import (
    Scene,
    backdrop,
    cast_shadow,
    item,
    kind_of,
    shadow_offset,
    texture,
)
from jaxanom.data.foundry.shapes import cover, over, relief, rgb, smooth, tinted


def chip(rng, surface, lit, edit) -> Scene:
    """A packaged circuit: black body, metal pins, a dot and printed lines."""
    at = shapes.pose(rng, 0.07, 0.22, (0.95, 1.05))
    turned = rng.random() < 0.5
    at = at._replace(angle=at.angle + (np.pi / 2 if turned else 0))
    board = rgb(rng.choice([0.4, 0.36, 0.6]), rng.uniform(0.45, 0.65), 0.42)
    color = backdrop(rng, surface, board)
    pins = int(rng.integers(4, 6))
    kind, gone, bent = kind_of(edit), set(), {}
    if kind == "missing_part":
        first = int(edit.rng.integers(pins - 1))
        side = int(edit.rng.integers(2))
        gone = {(side, first), (side, first + 1)}
    elif kind == "misplaced_part":
        number = int(edit.rng.integers(1, pins - 1))
        tilt = edit.rng.choice([-1, 1]) * edit.rng.uniform(0.18, 0.26)
        bent = {(int(edit.rng.integers(2)), number): tilt}
    u, v = shapes.local(surface, at)
    su, sv = shapes.local(surface, at, shadow_offset(lit, 0.06))
    body = shapes.box(u, v, 0.62, 0.4, 0.05)
    color = cast_shadow(color, shapes.box(su, sv, 0.62, 0.4, 0.05), surface, 0.5, 0.08)
    legs = np.full_like(u, 9.0)
    fallen = legs.copy()
    for side in range(2):
        for number in range(pins):
            if (side, number) in gone:
                continue
            sign = 2 * side - 1
            x = (number + 0.5) / pins * 1.16 - 0.58
            end = (x + bent.get((side, number), 0.0), sign * 0.66)
            legs = np.minimum(legs, shapes.segment(u, v, (x, sign * 0.38), end, 0.058))
            fallen = np.minimum(
                fallen, shapes.segment(su, sv, (x, sign * 0.38), end, 0.058)
            )
    color = cast_shadow(color, fallen, surface, 0.4, 0.05)
    shine = tinted(rgb(0.12, 0.08, 0.8), 0.9 + 1.2 * np.clip(-legs / 0.1, 0, 0.3))
    color = over(color, shine, cover(legs, surface))
    plastic = tinted(rgb(0.6, 0.08, 0.2), 1 + 0.08 * fractal(rng, surface, 12, 2))
    height = smooth(-body, 0, 0.07) * np.float32(0.06)
    plastic = relief(plastic, height, surface, lit, 2.2, 0.12)
    dot = shapes.circle(u + np.float32(0.46), v - np.float32(0.22), 0.065)
    plastic = over(plastic, rgb(0, 0, 0.72), cover(dot, surface))
    widths = rng.uniform(0.2, 0.36, 2)
    for row, half in zip((-0.12, 0.06), widths, strict=True):
        line = shapes.box(u - np.float32(0.05), v - np.float32(row), half, 0.035, 0.03)
        plastic = over(plastic, rgb(0, 0, 0.62), cover(line, surface))
    alpha = cover(body, surface)
    return item(over(color, plastic, alpha), alpha, at, ("box", 0.34, 0.16), 0.28)


def cable(rng, surface, lit, edit) -> Scene:
    """A cut cable: three coloured wires with copper strands in a sheath."""
    at = shapes.pose(rng, 0.07)
    color = backdrop(rng, surface)
    coat = rgb(rng.random(), rng.uniform(0.05, 0.35), rng.uniform(0.25, 0.45))
    fill = rgb(0.1, 0.05, 0.82)
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
    color = cast_shadow(
        color,
        shapes.circle(*shapes.local(surface, at, shadow_offset(lit, 0.1)), 0.8),
        surface,
    )
    u, v = shapes.local(surface, at)
    rim = shapes.circle(u, v, 0.8)
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
        if kind == "missing_part" and index == number:
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


JUICES = {
    "orange": (0.085, 0.85, 0.95),
    "cherry": (0.985, 0.8, 0.72),
    "grape": (0.78, 0.6, 0.6),
    "kiwi": (0.27, 0.7, 0.72),
    "lemon": (0.145, 0.7, 0.97),
    "berry": (0.62, 0.65, 0.72),
}
"""Hue, saturation and value of each juice."""


def juice_bottle(rng, surface, lit, edit) -> Scene:
    """A glass bottle of juice with a cap of the juice's colour and a label."""
    juice = tuple(JUICES)[int(rng.integers(len(JUICES)))]
    hue, saturation, value = JUICES[juice]
    hue, value = hue + rng.uniform(-0.012, 0.012), value * rng.uniform(0.93, 1.03)
    liquid = rgb(hue, saturation * rng.uniform(0.92, 1.05), value)
    at = shapes.pose(rng, 0.04, 0.06, (0.94, 1.0))
    wall = rgb(rng.random(), rng.uniform(0.02, 0.1), rng.uniform(0.72, 0.88))
    color = backdrop(rng, surface, wall)
    kind = kind_of(edit)
    level, cap_color, label = (
        -0.32 + rng.uniform(-0.015, 0.015),
        liquid * 0.85,
        (0, 0, 0),
    )
    with_cap, with_label = True, True
    if kind == "wrong_level":
        level += edit.rng.uniform(0.24, 0.42)
    elif kind == "wrong_color":
        cap_color = rgb(hue + edit.rng.uniform(0.33, 0.67), 0.75, 0.65)
    elif kind == "misplaced_part":
        sign = edit.rng.choice([-1, 1])
        label = (0.1 * sign, edit.rng.uniform(-0.28, -0.14), 0.5 * sign)
    elif kind == "missing_part":
        with_cap = bool(edit.rng.random() < 0.5)
        with_label = not with_cap

    def glass(u, v):
        neck = shapes.box(u, v + np.float32(0.62), 0.17, 0.3, 0.05)
        body = shapes.box(u, v - np.float32(0.26), 0.5, 0.64, 0.16)
        shoulder = np.float32(0.09)
        blend = np.clip(0.5 + 0.5 * (neck - body) / shoulder, 0, 1)
        return neck + (body - neck) * blend - shoulder * blend * (1 - blend)

    su, sv = shapes.local(surface, at, (-lit.x * 0.12, 0.05))
    color = cast_shadow(color, glass(su, sv), surface, 0.3, 0.16)
    u, v = shapes.local(surface, at)
    distance = glass(u, v)
    alpha = cover(distance, surface)
    color = over(color, 0.25 + 0.7 * color, alpha)
    filled = np.maximum(distance + np.float32(0.045), np.float32(level) - v)
    depth = smooth(-distance, 0.0, 0.3)
    drink = tinted(liquid, 0.78 + 0.24 * depth - 0.05 * v)
    color = over(color, drink, cover(filled, surface))
    meniscus = np.abs(v - np.float32(level)) - np.float32(0.016)
    line = np.maximum(meniscus, distance + np.float32(0.045))
    color = over(color, liquid * 0.7, cover(line, surface))
    if with_label:
        x, y, turn = label
        lu, lv = shapes.frame(u, v, shapes.Pose(x, y + 0.56, turn, 1))
        paper = shapes.box(lu, lv, 0.38, 0.2, 0.03)
        color = over(color, rgb(0.12, 0.05, 0.95), cover(paper, surface))
        mark = shapes.circle(lu + np.float32(0.2), lv, 0.11)
        color = over(color, liquid, cover(mark, surface))
        for row, half in ((-0.07, 0.16), (0.06, 0.12)):
            text = shapes.box(lu - np.float32(0.14), lv - np.float32(row), half, 0.03)
            color = over(color, rgb(0, 0, 0.35), cover(text, surface))
    edge = smooth(-np.abs(distance + np.float32(0.02)), -0.035, 0)
    color = over(color, color * 0.72, edge * alpha)
    side = np.float32(-0.34 if lit.x < 0 else 0.34)
    gleam = np.maximum(np.abs(u - side) - 0.035, np.abs(v - 0.2) - 0.5)
    color = over(color, color + 0.3, smooth(-gleam, -0.03, 0.03) * alpha)
    if with_cap:
        top = shapes.box(u, v + np.float32(0.86), 0.21, 0.11, 0.03)
        ribs = 0.8 + 0.2 * np.cos(u * 55) + 0.25 * np.clip(1 - (u / 0.21) ** 2, 0, 1)
        color = over(color, cap_color * ribs[..., None], cover(top, surface))
    place_scene = item(
        color,
        cover(filled, surface),
        at,
        ("box", 0.18, 0.1),
        0.26,
        juice=juice,
        juice_color=[float(c) for c in liquid],
    )
    # Surface defects lie in the juice between its level and the label.
    return place_scene._replace(
        place=lambda draw: shapes.outward(
            at, draw.uniform(-0.17, 0.17), draw.uniform(-0.02, 0.12)
        )
    )


def _part(u, v, form: int):
    """Distances of the three parts of a tray: outline, and an inner hole."""
    if form == 0:
        return shapes.circle(u, v, 0.19), shapes.circle(u, v, 0.08)
    if form == 1:
        return shapes.polygon(u, v, 6, 0.17), shapes.circle(u, v, 0.07)
    return shapes.box(u, v, 0.21, 0.1, 0.05), shapes.box(u, v, 0.12, 0.025)


def tray(rng, surface, lit, edit) -> Scene:
    """Six slots in two rows; each column holds one kind and colour of part."""
    at = shapes.pose(rng, 0.05, 0.1, (0.97, 1.03))
    color = backdrop(rng, surface)
    plastic = rgb(rng.random(), rng.uniform(0.05, 0.25), rng.uniform(0.3, 0.45))
    hue = rng.random()
    tints = [rgb(hue + k / 3, 0.55, 0.8) for k in range(3)]
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
        chosen = parts[number]
    if kind == "missing_part":
        del parts[number]
    elif kind == "wrong_color":
        chosen[4] = rgb(hue + (2 * chosen[3] + 1) / 6 + 1 / 3, 0.8, 0.55)
    elif kind == "misplaced_part":
        down = 1 if chosen[1] < 0 else -1
        chosen[0] += edit.rng.choice([-1, 1]) * edit.rng.uniform(0.08, 0.12)
        chosen[1] -= down * edit.rng.uniform(0.26, 0.32)
        chosen[2] += edit.rng.uniform(0.6, 1.2)
    elif kind == "extra_part":
        form, turn = int(edit.rng.integers(3)), edit.rng.uniform(0.5, 1.1)
        x = edit.rng.choice([-0.27, 0.27]) + edit.rng.uniform(-0.06, 0.06)
        parts.append([x, edit.rng.uniform(-0.2, 0.2), turn, form, tints[form]])
    su, sv = shapes.local(surface, at, shadow_offset(lit, 0.08))
    color = cast_shadow(color, shapes.box(su, sv, 0.86, 0.6, 0.08), surface)
    u, v = shapes.local(surface, at)
    outline = shapes.box(u, v, 0.86, 0.6, 0.08)
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
    for x, y, turn, form, tint in parts:
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
    "chip": chip,
    "cable": cable,
    "juice_bottle": juice_bottle,
    "tray": tray,
    "steel panel": steel_panel,
    "plastic panel": plastic_panel,
}

PART_DEFECTS = {
    "chip": ("missing_part", "misplaced_part"),
    "cable": ("missing_part", "misplaced_part", "wrong_color"),
    "juice_bottle": ("missing_part", "misplaced_part", "wrong_color", "wrong_level"),
    "tray": ("missing_part", "misplaced_part", "extra_part", "wrong_color"),
}
"""Defects these builders draw themselves; the rest are painted on the surface."""
