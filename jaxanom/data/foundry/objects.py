"""Metal and moulded objects on a table, drawn from (rng, canvas, light, edit)."""

import numpy as np

from jaxanom.data.foundry import shapes
from jaxanom.data.foundry.noise import fractal
from jaxanom.data.foundry.scene import Scene, backdrop, item, kind_of, shadow
from jaxanom.data.foundry.shapes import cover, over, plain, relief, rgb, smooth, tinted


def _metal_tint(rng):
    hue, saturation = ((0.58, 0.06), (0.12, 0.45), (0.07, 0.45))[rng.integers(3)]
    return rgb(hue, saturation, rng.uniform(0.68, 0.8))


def nut(rng, surface, lit, edit) -> Scene:
    """A hexagonal nut with a chamfer and a threaded hole."""
    tint, at = _metal_tint(rng), shapes.pose(rng, 0.08)
    color = backdrop(rng, surface)
    chip = None
    if kind_of(edit) == "missing_part":
        corner = np.pi / 6 + np.pi / 3 * edit.rng.integers(6)
        chip = (np.cos(corner) * 0.8, np.sin(corner) * 0.8)
        size = edit.rng.uniform(0.34, 0.42)

    def outline(u, v):
        distance = np.maximum(shapes.polygon(u, v, 6, 0.66), shapes.circle(u, v, 0.735))
        if chip is not None:
            distance = np.maximum(distance, -shapes.circle(u, v, size, chip))
        return np.maximum(distance, -shapes.circle(u, v, 0.33))

    color = shadow(color, outline, at, surface, lit, 0.1)
    u, v = shapes.local(surface, at)
    distance, radius = outline(u, v), np.sqrt(u * u + v * v)
    body = tinted(tint, 1 + 0.05 * fractal(rng, surface, 6, 3))
    height = smooth(-distance, 0, 0.09) * np.float32(0.07)
    height = height - np.float32(0.05) * smooth(radius, 0.6, 0.74)
    height = height + np.float32(0.012) * np.sin(radius * 60) * (radius < 0.42)
    body = relief(body, height, surface, lit, 1.6, 0.3)
    alpha = cover(distance * np.float32(at.scale), surface)
    return item(over(color, body, alpha), alpha, at, ("ring", 0.48, 0.56), 0.26)


def gear(rng, surface, lit, edit) -> Scene:
    """A spur gear with a hub bore and lightening holes."""
    tint, at = _metal_tint(rng), shapes.pose(rng, 0.07)
    teeth, bores = int(rng.integers(9, 13)), int(rng.integers(4, 6))
    color = backdrop(rng, surface)
    gone = None
    if kind_of(edit) == "missing_part":
        gone = edit.rng.integers(teeth) * 2 * np.pi / teeth

    def outline(u, v):
        angle, radius = np.arctan2(v, u), np.sqrt(u * u + v * v)
        wave = np.clip(2.2 * np.cos(angle * np.float32(teeth)), -1, 1)
        if gone is not None:
            turn = np.mod(angle - gone + np.pi, 2 * np.pi) - np.pi
            # Two neighbouring teeth are sheared off.
            wave = np.where(
                np.abs(turn - np.pi / teeth) < 2 * np.pi / teeth, np.float32(-1), wave
            )
        distance = radius - np.float32(0.69) - np.float32(0.1) * wave
        step = 2 * np.pi / bores
        folded = np.mod(angle, np.float32(step)) - np.float32(step / 2)
        bore = np.sqrt(radius**2 + 0.39**2 - 0.78 * radius * np.cos(folded)) - 0.095
        distance = np.maximum(distance, -np.float32(1) * bore)
        return np.maximum(distance, 0.14 - radius).astype(np.float32)

    color = shadow(color, outline, at, surface, lit, 0.09)
    u, v = shapes.local(surface, at)
    distance, radius = outline(u, v), np.sqrt(u * u + v * v)
    body = tinted(tint, 1 + 0.05 * fractal(rng, surface, 6, 3))
    height = smooth(-distance, 0, 0.05) * np.float32(0.045)
    height = height + np.float32(0.05) * (1 - smooth(radius, 0.2, 0.25))
    height = height - np.float32(0.03) * smooth(radius, 0.53, 0.59)
    body = relief(body, height, surface, lit, 1.8, 0.3)
    alpha = cover(distance * np.float32(at.scale), surface)
    return item(over(color, body, alpha), alpha, at, ("ring", 0.46, 0.56), 0.29)


def button(rng, surface, lit, edit) -> Scene:
    """A shirt button: raised rim and four holes."""
    hue, saturation = rng.random(), rng.uniform(0.25, 0.75)
    tint, at = rgb(hue, saturation, rng.uniform(0.55, 0.85)), shapes.pose(rng, 0.1)
    color = backdrop(rng, surface)
    kind = kind_of(edit)
    size, apart = 0.105, 0.2
    holes = [(a * apart, b * apart) for a in (-1, 1) for b in (-1, 1)]
    broken = None
    if kind == "misplaced_part":
        out, turn = edit.rng.uniform(1.75, 2.1), edit.rng.uniform(-0.2, 0.2)
        a, b = holes[0]
        holes[0] = (out * a + turn * b, out * b - turn * a)
    elif kind == "extra_part":
        turn, out = edit.rng.integers(4) * np.pi / 2, 0.43
        holes += [(out * np.cos(turn), out * np.sin(turn)), (0.0, 0.0)]
    elif kind == "missing_part":
        turn, lost = edit.rng.uniform(-np.pi, np.pi), edit.rng.uniform(0.34, 0.44)
        broken = (np.cos(turn) * 0.75, np.sin(turn) * 0.75)

    def outline(u, v):
        distance = shapes.circle(u, v, 0.74)
        if broken is not None:
            distance = np.maximum(distance, -shapes.circle(u, v, lost, broken))
        return distance

    color = shadow(color, outline, at, surface, lit, 0.08)
    u, v = shapes.local(surface, at)
    distance, radius = outline(u, v), np.sqrt(u * u + v * v)
    swirl = 1 + 0.06 * fractal(rng, surface, 3, 3)
    height = smooth(-distance, 0, 0.1) * np.float32(0.06)
    height = height - np.float32(0.05) * (1 - smooth(radius, 0.46, 0.56))
    alpha = cover(distance * np.float32(at.scale), surface)
    inner = shapes.circles(u, v, [size] * len(holes), holes)
    height = height - np.float32(0.02) * smooth(-inner, -0.05, 0.02)
    body = relief(tinted(tint, swirl), height, surface, lit, 1.8, 0.35)
    pierced = over(body, color * 0.25, cover(inner, surface))
    return item(over(color, pierced, alpha), alpha, at, ("ring", 0.4, 0.6), 0.26)


def cap(rng, surface, lit, edit) -> Scene:
    """A crown cap: fluted skirt, painted top, a printed star."""
    hue, at = rng.random(), shapes.pose(rng, 0.07)
    paint = rgb(hue, rng.uniform(0.6, 0.85), rng.uniform(0.5, 0.8))
    ink = rgb(hue + rng.uniform(0.4, 0.6), 0.25, 0.95)
    points = int(rng.integers(5, 7))
    color = backdrop(rng, surface)
    kind = kind_of(edit)
    shift, flat = (0.0, 0.0), None
    if kind == "misplaced_part":
        turn = edit.rng.uniform(-np.pi, np.pi)
        shift = (0.27 * np.cos(turn), 0.27 * np.sin(turn))
    elif kind == "missing_part":
        flat = (edit.rng.uniform(-np.pi, np.pi), edit.rng.uniform(0.42, 0.5))

    def outline(u, v):
        radius, ripple = np.sqrt(u * u + v * v), np.cos(17 * np.arctan2(v, u))
        distance = radius - np.float32(0.75) - np.float32(0.035) * ripple
        if flat is not None:
            plane = u * np.float32(np.cos(flat[0])) + v * np.float32(np.sin(flat[0]))
            distance = np.maximum(distance, plane - np.float32(flat[1]))
        return distance

    color = shadow(color, outline, at, surface, lit, 0.1)
    u, v = shapes.local(surface, at)
    distance, radius = outline(u, v), np.sqrt(u * u + v * v)
    skirt = smooth(radius, 0.54, 0.62)
    flute = np.cos(17 * np.arctan2(v, u)) * skirt
    height = np.float32(0.1) * (1 - smooth(radius, 0.5, 0.78)) + 0.01 * flute
    body = over(plain(paint, u), paint * 0.85, skirt)
    body = body * (1 + 0.04 * fractal(rng, surface, 5, 3))[..., None]
    su, sv = u - np.float32(shift[0]), v - np.float32(shift[1])
    petal = np.cos(points * np.arctan2(sv, su))
    star = np.sqrt(su * su + sv * sv) - np.float32(0.24) - np.float32(0.1) * petal
    body = over(body, ink, cover(star, surface))
    ring = np.abs(radius - np.float32(0.46)) - np.float32(0.02)
    body = over(body, ink, cover(ring, surface) * 0.8)
    body = relief(body, height, surface, lit, 1.5, 0.35)
    alpha = cover(distance * np.float32(at.scale), surface)
    return item(over(color, body, alpha), alpha, at, ("ring", 0.1, 0.5), 0.3)


def pill(rng, surface, lit, edit) -> Scene:
    """A capsule, one half white, shaded as a cylinder with round ends."""
    at = shapes.pose(rng, 0.08, np.pi, (0.95, 1.08))
    hue = rng.random()
    left = rgb(hue, rng.uniform(0.6, 0.85), rng.uniform(0.6, 0.85))
    right = rgb(hue, 0.08, 0.93)
    color = backdrop(rng, surface)
    kind, cut = kind_of(edit), None
    if kind == "wrong_color":
        right = rgb(hue + edit.rng.uniform(0.33, 0.67), 0.75, 0.7)
    elif kind == "missing_part":
        cut = (edit.rng.choice([-1, 1]), edit.rng.uniform(0.42, 0.5))

    def outline(u, v):
        distance = shapes.segment(u, v, (-0.42, 0), (0.42, 0), 0.36)
        if cut is not None:
            jag = np.float32(0.03) * np.sin(v * 34) + np.float32(0.02) * np.sin(v * 15)
            distance = np.maximum(distance, u * cut[0] - np.float32(cut[1]) + jag)
        return distance

    color = shadow(color, outline, at, surface, lit, 0.12)
    u, v = shapes.local(surface, at)
    distance = outline(u, v)
    body = over(plain(left, u), right, cover(-u, surface))
    seam = np.exp(-((u / 0.025) ** 2), dtype=np.float32)
    full = -shapes.segment(u, v, (-0.42, 0), (0.42, 0), 0.36) / np.float32(0.36)
    height = np.float32(0.3) * np.sqrt(
        np.clip(1 - (1 - np.clip(full, 0, 1)) ** 2, 0, 1)
    )
    body = relief(body * (1 - 0.18 * seam)[..., None], height, surface, lit, 0.7)
    back = np.cos(at.angle) * lit.y - np.sin(at.angle) * lit.x
    stripe = np.exp(-(((v - np.float32(0.17 * np.sign(back))) / 0.05) ** 2))
    body = body + (
        0.35 * stripe * (np.abs(u) < 0.45) * smooth(0.5 - np.abs(u), 0, 0.1)
    )[..., None].astype(np.float32)
    alpha = cover(distance * np.float32(at.scale), surface)
    return item(over(color, body, alpha), alpha, at, ("box", 0.4, 0.08), 0.25)


def _biscuit(u, v, waves, bite):
    """Distance to a wavy disc, less a bite (x, y, radius) with marks of teeth."""
    angle = np.arctan2(v, u)
    distance = shapes.circle(u, v, 0.75)
    for order in range(5):
        distance = distance + np.float32(waves[0, order]) * np.cos(
            (order + 2) * angle + np.float32(40 * waves[1, order])
        )
    if bite is not None:
        u, v = u - np.float32(bite[0]), v - np.float32(bite[1])
        teeth = np.float32(0.03) * np.abs(np.sin(7 * np.arctan2(v, u)))
        distance = np.maximum(distance, teeth - shapes.circle(u, v, bite[2]))
    return distance


def cookie(rng, surface, lit, edit) -> Scene:
    """A round biscuit with chocolate drops."""
    at = shapes.pose(rng, 0.07)
    dough = rgb(rng.uniform(0.075, 0.1), rng.uniform(0.45, 0.6), rng.uniform(0.66, 0.8))
    color = backdrop(rng, surface)
    waves = rng.normal(0, 0.012, (2, 5))
    drops = int(rng.integers(7, 10))
    around = np.arange(9) * 2.4 + rng.uniform(0, 6) + rng.uniform(-0.2, 0.2, 9)
    outer = np.sqrt((np.arange(9) + 0.5) / 9) * 0.58 + rng.uniform(-0.03, 0.03, 9)
    sizes = rng.uniform(0.075, 0.11, 9)
    kind, bite, candy = kind_of(edit), None, None
    if kind != "good":
        turn = edit.rng.uniform(-np.pi, np.pi)
    if kind == "missing_part":
        bite = (0.68 * np.cos(turn), 0.68 * np.sin(turn), edit.rng.uniform(0.32, 0.4))
    elif kind == "extra_part":
        out = edit.rng.uniform(0.1, 0.42)
        candy = (out * np.cos(turn), out * np.sin(turn))
        candy_color = rgb((0.6, 0.34, 0.85, 0.0)[edit.rng.integers(4)], 0.85, 0.75)

    def outline(u, v):
        return _biscuit(u, v, waves, bite)

    color = shadow(color, outline, at, surface, lit, 0.08)
    u, v = shapes.local(surface, at)
    distance = outline(u, v)
    lump = fractal(rng, surface, 9, 3, 0.6)
    baked = smooth(np.sqrt(u * u + v * v), 0.4, 0.78)
    body = tinted(dough, (1 + 0.06 * lump) * (1 - 0.28 * baked))
    height = np.float32(0.09) * smooth(-distance, 0, 0.22) + np.float32(0.012) * lump
    chips = np.full_like(u, 9.0)
    for number in range(drops):
        a, b = np.cos(around[number]), np.sin(around[number])
        centre = (outer[number] * a, outer[number] * b)
        spot = shapes.circle(u, v, sizes[number], centre)
        chips = np.minimum(chips, spot + np.float32(0.012) * lump)
    body = over(body, rgb(0.05, 0.6, 0.26), cover(chips, surface))
    height = height + np.float32(0.03) * smooth(-chips, -0.02, 0.07)
    if candy is not None:
        spot = shapes.circle(u, v, 0.21, candy)
        body = over(body, candy_color, cover(spot, surface))
        height = height + np.float32(0.05) * smooth(-spot, 0.0, 0.15)
    body = relief(body, height, surface, lit, 1.5, 0.06)
    alpha = cover(distance * np.float32(at.scale), surface)
    return item(over(color, body, alpha), alpha, at, ("ring", 0.1, 0.4), 0.3)


BUILDERS = {build.__name__: build for build in (nut, gear, button, cap, pill, cookie)}

PART_DEFECTS = {
    "nut": ("missing_part",),
    "gear": ("missing_part",),
    "button": ("missing_part", "misplaced_part", "extra_part"),
    "cap": ("missing_part", "misplaced_part"),
    "pill": ("missing_part", "wrong_color"),
    "cookie": ("missing_part", "extra_part"),
}
"""Defects these builders draw themselves; the rest are painted on the surface."""
