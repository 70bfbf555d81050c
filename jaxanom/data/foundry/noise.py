"""Canvas coordinates, random streams, and band-limited noise of any resolution.

Random fields are drawn on a lattice whose size is a property of the scene and are then
interpolated onto the canvas, so that one scene has the same content at every size.
"""

import functools
import zlib
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

SUPERSAMPLE = 2

# Variance a cubic B-spline leaves of unit white lattice noise, per axis: 151 / 315.
_SPLINE_VARIANCE = 151 / 315


class Canvas(NamedTuple):
    """The supersampled drawing surface, spanning [-1, 1] both ways.

    Attributes:
      size: output pixels per side.
      side: drawn pixels per side, `SUPERSAMPLE * size`.
      x: [side, side] float32, grows to the right.
      y: [side, side] float32, grows downwards.
      pixel: width of one drawn pixel in canvas units.
    """

    size: int
    side: int
    x: np.ndarray
    y: np.ndarray
    pixel: float


@functools.lru_cache(maxsize=8)
def canvas(size: int) -> Canvas:
    """The canvas of an image of `size` x `size` pixels; its arrays are read-only."""
    side = SUPERSAMPLE * size
    axis = ((np.arange(side) + 0.5) * (2 / side) - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return Canvas(size, side, x, y, 2 / side)


def stream(*words: int | str) -> Generator:
    """A random stream named by integers and strings, the same on every machine."""
    entropy = [zlib.crc32(w.encode()) if isinstance(w, str) else int(w) for w in words]
    return Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


@functools.lru_cache(maxsize=256)
def _spline(side: int, cells: int) -> np.ndarray:
    """Cubic B-spline weights [side, cells + 3] from a lattice to `side` samples."""
    position = (np.arange(side) + 0.5) / side * cells
    distance = np.abs(position[:, None] - (np.arange(cells + 3) - 1)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    return (weights / np.sqrt(_SPLINE_VARIANCE)).astype(np.float32)


def noise(rng: Generator, surface: Canvas, rows: int, columns: int | None = None):
    """Smooth noise of about unit variance with `rows` x `columns` lattice cells.

    A lattice finer than the canvas can carry gives zeros, yet draws the same numbers.

    Returns:
      [side, side] float32.
    """
    columns = rows if columns is None else columns
    lattice = rng.standard_normal((rows + 3, columns + 3), dtype=np.float32)
    if max(rows, columns) > surface.side // 2:
        return np.zeros((surface.side, surface.side), np.float32)
    return _spline(surface.side, rows) @ lattice @ _spline(surface.side, columns).T


def fractal(rng: Generator, surface: Canvas, cells: int, octaves: int, gain=0.5):
    """A sum of `octaves` noises, each twice as fine and `gain` as strong, unit-ish."""
    total = noise(rng, surface, cells)
    weight, power = 1.0, 1.0
    for octave in range(1, octaves):
        weight *= gain
        power += weight**2
        total = total + np.float32(weight) * noise(rng, surface, cells << octave)
    return total * np.float32(power**-0.5)


class Cells(NamedTuple):
    """A jittered cell pattern.

    Attributes:
      near: [side, side], distance to the nearest seed, in cells.
      gap: [side, side], second nearest minus nearest; 0 on the cell borders.
      tone: [side, side], one uniform number per cell.
    """

    near: np.ndarray
    gap: np.ndarray
    tone: np.ndarray


def cells(rng: Generator, surface: Canvas, count: int, warp=0.0) -> Cells:
    """Cells around `count` x `count` jittered seeds, borders bent by `warp` cells."""
    seeds = rng.uniform(0.1, 0.9, (2, count + 2, count + 2)).astype(np.float32)
    tones = rng.random((count + 2, count + 2), dtype=np.float32)
    u = (surface.x + 1) * np.float32(count / 2)
    v = (surface.y + 1) * np.float32(count / 2)
    bend_u, bend_v = noise(rng, surface, 2 * count), noise(rng, surface, 2 * count)
    u = np.clip(u + np.float32(warp) * bend_u, 0, count - 1e-3)
    v = np.clip(v + np.float32(warp) * bend_v, 0, count - 1e-3)
    column, row = np.floor(u), np.floor(v)
    across, down = u - column, v - row
    width = count + 2
    here = (row.astype(np.int32) + 1) * width + column.astype(np.int32) + 1
    seed_v, seed_u = seeds.reshape(2, -1)
    nearest = np.full(u.shape, 9.0, np.float32)
    second = nearest.copy()
    owner = here
    for step_v in (-1, 0, 1):
        for step_u in (-1, 0, 1):
            cell = here + (step_v * width + step_u)
            distance = (seed_u.take(cell) + (step_u - across)) ** 2
            distance += (seed_v.take(cell) + (step_v - down)) ** 2
            closer = distance < nearest
            second = np.minimum(second, np.maximum(nearest, distance))
            owner = np.where(closer, cell, owner)
            nearest = np.minimum(nearest, distance)
    nearest, second = np.sqrt(nearest), np.sqrt(second)
    tone = tones.ravel().take(owner)
    return Cells(nearest, second - nearest, tone)


def downsample(field: np.ndarray) -> np.ndarray:
    """[side, side, ...] to [size, size, ...] under binomial weights 1 3 3 1."""
    for axis in (0, 1):
        field = np.moveaxis(field, axis, 0)
        even, odd = field[0::2], field[1::2]
        before = np.concatenate([odd[:1], odd[:-1]])
        after = np.concatenate([even[1:], even[-1:]])
        field = np.float32(0.375) * (even + odd) + np.float32(0.125) * (before + after)
        field = np.moveaxis(field, 0, axis)
    return np.ascontiguousarray(field)
