"""The textures: each function draws one from (rng, canvas, light, edit)."""

import numpy as np

from jaxanom.data.foundry import shapes
from jaxanom.data.foundry.noise import cells, fractal, noise
from jaxanom.data.foundry.scene import Scene, kind_of, texture
from jaxanom.data.foundry.shapes import over, plain, relief, rgb, smooth, tinted

PI = np.float32(np.pi)


def carpet(rng, surface, lit, edit) -> Scene:
    """Rows of wool loops in two shades of one colour."""
    hue, saturation = rng.random(), rng.uniform(0.25, 0.6)
    value, rows = rng.uniform(0.45, 0.75), rng.uniform(7, 9)
    at = shapes.pose(rng, 0.2, 0.12, (1, 1))
    u, v = shapes.local(surface, at)
    u = u + np.float32(0.02) * noise(rng, surface, 10)
    v = v + np.float32(0.02) * noise(rng, surface, 10)
    row = np.floor(v * np.float32(rows / 2))
    along = np.sin(PI * (u * np.float32(rows * 0.8) + 0.5 * row)) ** 2
    across = np.abs(np.sin(PI * v * np.float32(rows / 2)))
    loops = np.sqrt(along * across + 0.02)
    patch = smooth(fractal(rng, surface, 4, 3), -0.5, 0.7)
    fuzz = fractal(rng, surface, 24, 3, 0.8)
    color = over(
        plain(rgb(hue, saturation, value), u),
        rgb(hue + 0.03, saturation * 0.8, value * 0.72),
        patch,
    )
    color = color * (0.72 + 0.38 * loops + 0.05 * fuzz)[..., None]
    return texture(relief(color, loops * np.float32(0.05), surface, lit, 0.8), surface)


def leather(rng, surface, lit, edit) -> Scene:
    """Pebbled hide: raised cells between fine creases."""
    hue, saturation, value = (
        (0.06, 0.65, 0.5),
        (0.09, 0.5, 0.68),
        (0.01, 0.7, 0.48),
        (0.08, 0.35, 0.36),
        (0.4, 0.3, 0.42),
    )[rng.integers(5)]
    base = rgb(
        hue + rng.uniform(-0.015, 0.015), saturation, value * rng.uniform(0.92, 1.1)
    )
    pebbles = cells(rng, surface, int(rng.integers(8, 12)), 0.08)
    crease = smooth(pebbles.gap, 0.0, 0.35)
    fold = fractal(rng, surface, 3, 2)
    tone = 1 + 0.05 * fold + 0.05 * (pebbles.tone - 0.5)
    color = tinted(base, tone * (0.76 + 0.27 * crease))
    height = np.float32(0.03) * crease + np.float32(0.012) * fold
    return texture(relief(color, height, surface, lit, 1.6, 0.1), surface)


def wood(rng, surface, lit, edit) -> Scene:
    """Boards with growth rings along the grain and dark pores."""
    hue, saturation = rng.uniform(0.06, 0.1), rng.uniform(0.4, 0.65)
    value = rng.uniform(0.5, 0.78)
    turned = rng.random() < 0.5
    along, across = (surface.y, surface.x) if turned else (surface.x, surface.y)
    shape = (2, 9) if turned else (9, 2)
    wave = noise(rng, surface, 2) * 0.35 + noise(rng, surface, *shape) * 0.08
    knot_u, knot_v = rng.uniform(-1, 1, 2)
    pull = np.exp(
        -((along - knot_u) ** 2) * 3 - ((across - knot_v) ** 2) * 12, dtype=np.float32
    )
    rings = across * np.float32(rng.uniform(3, 4.5)) + wave + 1.2 * pull
    phase = rings - np.floor(rings)
    band = smooth(phase, 0.1, 0.85) - smooth(phase, 0.85, 1.0)
    grain = noise(rng, surface, *((4, 60) if turned else (60, 4)))
    color = over(
        plain(rgb(hue + 0.01, saturation * 0.85, value), band),
        rgb(hue - 0.02, saturation * 1.15, value * 0.66),
        band * 0.75,
    )
    color = color * (1 + 0.05 * grain)[..., None]
    seam = np.abs(across - np.float32(rng.uniform(-0.6, 0.6)))
    color = color * (0.4 + 0.6 * smooth(seam, 0.01, 0.035))[..., None]
    return texture(color, surface)


def tile(rng, surface, lit, edit) -> Scene:
    """Glazed tiles, each a little different, in pale grout."""
    hue, saturation = rng.random(), rng.uniform(0.15, 0.5)
    value, count = rng.uniform(0.55, 0.85), rng.uniform(2.3, 3.2)
    at = shapes.pose(rng, 0.3, 0.06, (1, 1))
    grout = rgb(0.1, 0.06, value + (0.16 if value < 0.7 else -0.26))
    tones = rng.uniform(-1, 1, (9, 9)).astype(np.float32)
    hues = rng.uniform(-0.02, 0.02, (9, 9))
    u, v = shapes.local(surface, at)
    u, v = u * np.float32(count / 2), v * np.float32(count / 2)
    column, row = np.floor(u).astype(int) % 9, np.floor(v).astype(int) % 9
    palette = np.stack(
        [
            rgb(hue + h, saturation, value * (1 + 0.08 * t))
            for h, t in zip(hues.ravel(), tones.ravel(), strict=True)
        ]
    ).reshape(9, 9, 3)
    if kind_of(edit) == "wrong_color":
        x, y = edit.rng.uniform(-0.45, 0.45, 2)
        side = surface.side
        pick = (int((y + 1) / 2 * side), int((x + 1) / 2 * side))
        odd = rgb(hue + edit.rng.uniform(0.3, 0.7), 0.65, 1.25 - value)
        palette[row[pick], column[pick]] = odd
    distance = shapes.box(
        u - np.floor(u) - 0.5, v - np.floor(v) - 0.5, 0.455, 0.455, 0.06
    )
    alpha = np.clip(0.5 - distance / np.float32(1.5 * surface.pixel * count / 2), 0, 1)
    glaze = 1 + 0.05 * fractal(rng, surface, 5, 3)
    color = palette[row, column] * glaze[..., None]
    height = smooth(-distance, 0.0, 0.12) * np.float32(0.05)
    color = relief(color, height, surface, lit, 1.0, 0.12)
    rough = 1 + 0.06 * fractal(rng, surface, 20, 2)
    return texture(over(grout * rough[..., None], color, alpha), surface)


def grid(rng, surface, lit, edit) -> Scene:
    """A woven wire mesh over a plain ground."""
    metal = rgb(rng.choice([0.58, 0.1, 0.08]), rng.uniform(0.05, 0.4), 0.76)
    ground = rgb(rng.random(), rng.uniform(0.1, 0.4), rng.uniform(0.24, 0.36))
    count, angle = rng.uniform(4.4, 5.6), rng.choice([0.0, np.pi / 4])
    at = shapes.pose(rng, 0.3, 0.1, (1, 1))
    u, v = shapes.local(surface, at._replace(angle=at.angle + angle))
    u = u + np.float32(0.008) * noise(rng, surface, 3)
    v = v + np.float32(0.008) * noise(rng, surface, 3)
    kind, gone = kind_of(edit), np.float32(0)
    if kind in ("misplaced_part", "missing_part"):
        x, y = edit.rng.uniform(-0.5, 0.5, 2)
        bend_u, bend_v = edit.rng.choice([-1, 1], 2) * edit.rng.uniform(0.6, 1, 2)
        radius = edit.rng.uniform(0.34, 0.42)
        distance = np.hypot(surface.x - np.float32(x), surface.y - np.float32(y))
        if kind == "misplaced_part":
            pull = np.float32(0.36 * radius) * smooth(-distance, -radius * 1.25, 0)
            u, v = u + np.float32(bend_u) * pull, v + np.float32(bend_v) * pull
        else:
            gone = shapes.cover(distance - np.float32(radius * 0.85), surface)
    u, v = u * np.float32(count / 2), v * np.float32(count / 2)
    color = tinted(ground, 1 + 0.06 * fractal(rng, surface, 4, 3))
    near_u, near_v = u - np.round(u), v - np.round(v)
    parity = 1 - 2 * ((np.round(u) + np.round(v)) % 2)
    under = np.float32(surface.pixel * count / 2 * 1.5)
    half = np.float32(0.16)
    wires = [(near_u, near_v, parity), (near_v, near_u, -parity)]
    for front in (False, True):
        for index, (side, along, sign) in enumerate(wires):
            top = np.cos(PI * along) * sign > 0
            alpha = np.clip(0.5 - (np.abs(side) - half) / under, 0, 1) * (1 - gone)
            alpha = alpha * (top if front else 1)
            tube = np.sqrt(np.clip(1 - (side / half) ** 2, 0, 1))
            tilt = (lit.x, lit.y)[index] * side / half
            shade = 0.4 + 0.5 * tube + 0.25 * tilt + 0.12 * np.cos(PI * along) * sign
            color = over(color, metal * shade[..., None], alpha)
    return texture(color, surface)


def metal(rng, surface, lit, edit) -> Scene:
    """Brushed metal: streaks along one direction and a broad reflection."""
    tint = rgb(rng.choice([0.58, 0.1, 0.06]), rng.uniform(0.02, 0.3), 0.66)
    turned = rng.random() < 0.5
    streak = np.zeros_like(surface.x)
    for rows, columns, weight in ((12, 2, 0.6), (36, 3, 0.8), (90, 4, 0.6)):
        shape = (columns, rows) if turned else (rows, columns)
        streak = streak + np.float32(weight) * noise(rng, surface, *shape)
    across = surface.x if turned else surface.y
    centre, width = rng.uniform(-0.6, 0.6), rng.uniform(0.35, 0.7)
    sheen = np.exp(-(((across - centre) / width) ** 2), dtype=np.float32)
    tone = 0.85 + 0.3 * sheen + 0.045 * streak + 0.03 * noise(rng, surface, 2)
    return texture(tinted(tint, tone), surface)


def marble(rng, surface, lit, edit) -> Scene:
    """Polished stone with soft clouds and branching veins."""
    palette = rng.integers(3)
    base = (rgb(0.1, 0.05, 0.86), rgb(0.4, 0.3, 0.4), rgb(0.04, 0.25, 0.72))[palette]
    vein = (rgb(0.6, 0.1, 0.42), rgb(0.35, 0.1, 0.78), rgb(0.03, 0.45, 0.4))[palette]
    cloud = fractal(rng, surface, 3, 4, 0.6)
    u, _ = shapes.local(surface, shapes.Pose(0, 0, rng.uniform(-np.pi, np.pi), 1))
    folded = u * np.float32(rng.uniform(1.2, 1.8)) + np.float32(0.4) * cloud
    main = np.abs(folded - np.round(folded))
    fine = np.abs(fractal(rng, surface, 3, 3, 0.6))
    # Veins swell and fade along their length, as in cut stone.
    swell = smooth(noise(rng, surface, 3), -1.2, 1.0)
    fade = smooth(noise(rng, surface, 4), -0.3, 1.2)
    color = tinted(base, 1 + 0.05 * cloud)
    color = over(
        color, base * 0.5 + vein * 0.5, 0.6 * smooth(-main, -0.22, 0.0) * swell
    )
    color = over(color, vein, 0.8 * smooth(-main / (0.03 + 0.07 * swell), -1, 0))
    color = over(color, vein, 0.5 * smooth(-fine, -0.2, 0.0) * fade)
    return texture(color, surface)


def fabric(rng, surface, lit, edit) -> Scene:
    """A plain weave of two thread colours."""
    hue, count = rng.random(), rng.uniform(7, 8.5)
    warp = rgb(hue, rng.uniform(0.3, 0.6), rng.uniform(0.5, 0.8))
    weft = rgb(hue + rng.uniform(-0.08, 0.08), 0.25, rng.uniform(0.6, 0.85))
    at = shapes.pose(rng, 0.2, 0.25, (1, 1))
    u, v = shapes.local(surface, at)
    u = (u + np.float32(0.012) * noise(rng, surface, 5)) * np.float32(count / 2)
    v = (v + np.float32(0.012) * noise(rng, surface, 5)) * np.float32(count / 2)
    near_u, near_v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    # A soft switch between the two threads keeps the pattern below the pixel grid.
    switch = smooth(np.sin(PI * u) * np.sin(PI * v), -0.25, 0.25)
    over_u = np.cos(PI * near_u) * (0.75 + 0.25 * np.cos(PI * near_v))
    over_v = np.cos(PI * near_v) * (0.75 + 0.25 * np.cos(PI * near_u))
    fiber_u = 0.06 * noise(rng, surface, 10, 70)
    fiber_v = 0.06 * noise(rng, surface, 70, 10)
    first = tinted(warp, 0.5 + 0.55 * over_u + fiber_u)
    second = tinted(weft, 0.5 + 0.55 * over_v + fiber_v)
    color = over(first, second, switch)
    return texture(color * (1 + 0.05 * noise(rng, surface, 3))[..., None], surface)


def cork(rng, surface, lit, edit) -> Scene:
    """Pressed granules in browns, with a few dark crumbs."""
    hue, value = rng.uniform(0.07, 0.095), rng.uniform(0.62, 0.78)
    granules = cells(rng, surface, int(rng.integers(10, 13)), 0.12)
    tone = granules.tone
    color = over(
        plain(rgb(hue, 0.42, value * 1.1), tone),
        rgb(hue - 0.02, 0.58, value * 0.72),
        smooth(tone, 0.2, 0.95),
    )
    seam = smooth(granules.gap, 0.0, 0.16)
    crumb = (tone > 0.88) * smooth(-granules.near, -0.42, -0.25)
    color = (
        color * (0.86 + 0.14 * seam + 0.05 * fractal(rng, surface, 16, 2))[..., None]
    )
    color = over(color, rgb(hue, 0.5, 0.28), np.float32(0.75) * crumb)
    return texture(relief(color, seam * np.float32(0.014), surface, lit, 0.9), surface)


BUILDERS = {
    build.__name__: build
    for build in (carpet, leather, wood, tile, grid, metal, marble, fabric, cork)
}

PART_DEFECTS = {
    "tile": ("wrong_color",),
    "grid": ("missing_part", "misplaced_part"),
}
"""Defects these builders draw themselves; the rest are painted on the surface."""
