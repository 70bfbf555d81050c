"""The plot of how SVGD's spread collapses with the dimension, and what noise repairs.

    python -m benchmarks.quality.posterior_variance --out PNG

Eight particles, a standard normal of D dimensions, RBF kernel, median bandwidth: the
mean of the squared coordinates where each transport settles, 1 for draws of the target.
Deterministic flows are followed to rest; of the stochastic ones the second half of the
walk is averaged. Prints one JSON line a point. The recorded plot is
`benchmarks/records/variance_collapse.png`.

SVGD, GFSD and Blob contract as 1 / D: pull and push balance at one bandwidth h for all
D, and the median rule makes h the squared distance, D times the variance. Noise that is
correlated over particles (noisy SVGD) restores the variance at every D, as Langevin's
independent noise does (5 % too wide here, its error at this step size).
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.posterior import fields, sgld, svgd, wgf
from jaxanom.report import figures

NUM_PARTICLES = 8
WIDTHS = (2, 8, 32, 128, 512)
STEP_SIZE, NUM_STEPS = 0.1, 8000
FLOWS = {"SVGD": svgd.flow, "GFSD": wgf.gfsd, "Blob": wgf.blob}
NOISY = "noisy SVGD"
LANGEVIN = "Langevin"
NAMES = (*FLOWS, NOISY, LANGEVIN)
MAX_BYTES = 60_000


def step_of(name: str) -> Callable[..., Any]:
    """(particles, state, noise) -> (particles, state) under N(0, I)."""
    if name == LANGEVIN:
        return lambda x, state, noise: (
            x + sgld.langevin_move(-x, STEP_SIZE, noise),
            state,
        )
    field = fields.Field(FLOWS.get(name, svgd.flow)())

    def step(x, state, noise):
        extra = {"noise": noise} if name == NOISY else {}
        moved, state, info = fields.velocity(field, state, x, -x, **extra)
        x = x + STEP_SIZE * moved
        if name == NOISY:
            x = x + jnp.sqrt(2 * STEP_SIZE) * info["noise"]
        return x, state

    return step


def variance(name: str, width: int, num_steps: int = NUM_STEPS) -> float:
    """Mean squared coordinate over particles and the second half of the walk."""
    step = step_of(name)

    def walk(key):
        key_start, key_noise = jax.random.split(key)
        start = jax.random.normal(key_start, (NUM_PARTICLES, width))

        def body(carry, number):
            x, state = carry
            noise = jax.random.normal(jax.random.fold_in(key_noise, number), x.shape)
            x, state = step(x, state, noise)
            return (x, state), jnp.mean(x**2)

        carry = (start, fields.init(fields.Field(svgd.flow()), start))
        return jax.lax.scan(body, carry, jnp.arange(num_steps))[1]

    squares = jax.jit(walk)(jax.random.key(0))
    return float(jnp.mean(squares[num_steps // 2 :]))


def draw(curves: dict[str, list[float]], widths: Sequence[int], path: Path) -> None:
    """Writes the plot as PNG.

    Raises:
      ValueError: the file is larger than a repository should carry.
    """
    panel = figures.Panel(
        "Variance of eight particles",
        "dimensions D",
        "variance of 8 particles",
        (
            figures.Series("target", widths, np.ones(len(widths))),
            *(figures.Series(name, widths, values) for name, values in curves.items()),
        ),
        log_x=True,
        log_y=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.write_plot(panel, path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, above {MAX_BYTES}")


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.posterior_variance"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    settings = parser.parse_args(arguments)
    curves: dict[str, list[float]] = {}
    for name in NAMES:
        for width in settings.widths:
            value = variance(name, width, settings.steps)
            curves.setdefault(name, []).append(value)
            print(json.dumps({"transport": name, "D": width, "variance": value}))
    draw(curves, settings.widths, settings.out)
    return {name: np.round(values, 4).tolist() for name, values in curves.items()}


if __name__ == "__main__":
    main()
