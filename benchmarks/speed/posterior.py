"""How fast particles move: SVGD beside other implementations; backends against N.

    python -m benchmarks.speed.posterior [--part svgd backends] [--record]

"svgd": one update of N particles of D values (their gradients are those of a Gaussian,
which costs nothing), with the same bandwidth everywhere: ours, blackjax's, a PyTorch
loop over particles and PyTorch in matrix form. Results are compared before anything is
timed. "backends": updates a second against N for each way to spread particles, on this
device alone; and the bytes that a device would receive if there were eight
(`benchmarks.scale.collectives`). Simulated devices are not timed. Extra `bench`.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.scale import collectives
from jaxanom.parallel import mesh as meshes
from jaxanom.posterior import bandwidths, fields, sharded, svgd

NAME = "posterior"
COUNTS = (32, 128, 512)
BACKEND_COUNTS = (1, 4, 16, 64, 256, 1024)
WIDTH = 8192


def draw(num_particles: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Particles off the centre of a Gaussian, and the gradient of its log density."""
    rng = np.random.default_rng(0)
    particles = rng.normal(0.5, 1.0, (num_particles, width)).astype(np.float32)
    return particles, -particles


def bandwidth_of(particles: np.ndarray) -> float:
    """The median rule's h, from float64 distances."""
    wide = particles.astype(np.float64)
    norms = (wide**2).sum(1)
    r2 = norms[:, None] + norms - 2 * wide @ wide.T
    np.fill_diagonal(r2, 0.0)
    return float(np.median(r2) / (2 * np.log(len(wide) + 1)))


def exact(particles: np.ndarray, grads: np.ndarray, h: float) -> np.ndarray:
    """SVGD's velocity in float64, the common yardstick."""
    x, g = particles.astype(np.float64), grads.astype(np.float64)
    norms = (x**2).sum(1)
    r2 = norms[:, None] + norms - 2 * x @ x.T
    np.fill_diagonal(r2, 0.0)
    gram = np.exp(-r2 / (2 * h))
    return (gram @ g + (gram.sum(1)[:, None] * x - gram @ x) / h) / len(x)


def ours(h: float) -> Callable[..., Any]:
    """(particles, grads) -> velocity, matrix products only."""
    field = fields.Field(svgd.flow(), bandwidth=bandwidths.fixed(h))

    def update(particles, grads):
        return fields.velocity(field, fields.init(field, particles), particles, grads)[
            0
        ]

    return update


def theirs(h: float) -> Callable[..., Any]:
    """blackjax's SVGD step, made a velocity by a unit of plain ascent."""
    import blackjax
    import optax
    from blackjax.vi import svgd as stein

    optimizer = optax.sgd(1.0)
    step = blackjax.vi.svgd.build_kernel(optimizer)

    def update(particles, grads):
        del grads  # it takes the density's gradient as a function: the same values
        state = stein.init(particles, {"length_scale": 2 * h}, optimizer)
        moved = step(state, lambda x: -x, stein.rbf_kernel)
        return moved.particles - particles

    return update


def torch_loop(h: float) -> Callable[..., Any]:
    """The update as one writes it first in PyTorch: a loop over particles."""
    import torch

    def update(particles, grads):
        rows = []
        for particle in particles:
            gaps = particle - particles
            gram = torch.exp(-(gaps**2).sum(1) / (2 * h))
            rows.append((gram @ grads + gram @ gaps / h) / len(particles))
        return torch.stack(rows)

    return update


def torch_batched(h: float) -> Callable[..., Any]:
    """The same in matrix products, as a careful PyTorch user writes it."""
    import torch

    def update(particles, grads):
        centred = particles - particles.mean(0)
        inner = centred @ centred.T
        norms = inner.diagonal()
        r2 = (norms[:, None] + norms - 2 * inner).clamp(min=0)
        gram = torch.exp(-r2.fill_diagonal_(0) / (2 * h))
        push = (gram.sum(1, keepdim=True) * centred - gram @ centred) / h
        return (gram @ grads + push) / len(particles)

    return update


def svgd_cases(num_particles: int, width: int) -> list[harness.Case]:
    """Compares the results of one N with float64, then makes cases."""
    import torch

    particles, grads = draw(num_particles, width)
    h = bandwidth_of(particles)
    reference = exact(particles, grads, h)
    arrays = jnp.asarray(particles), jnp.asarray(grads)
    tensors = torch.from_numpy(particles), torch.from_numpy(grads)
    facts = {"N": num_particles, "D": width, "torch_threads": torch.get_num_threads()}
    cases = [
        harness.compiled(f"svgd N={num_particles}, {name}", make(h), *arrays)
        for name, make in (("ours", ours), ("blackjax", theirs))
    ]
    cases += [
        harness.Case(
            f"svgd N={num_particles}, {name}",
            functools.partial(make(h), *tensors),
            wait=lambda result: result,
        )
        for name, make in (("torch loop", torch_loop), ("torch batched", torch_batched))
    ]
    compared = []
    for case in cases:
        value = np.asarray(case.wait(case.call()), np.float64)
        error = {
            "difference": float(np.abs(value - reference).max()),
            "relative": harness.relative_error(value, reference),
        }
        compared.append(case._replace(unit="updates", facts=facts | error))
    return compared


def backend_cases(num_particles: int, width: int) -> list[harness.Case]:
    """One case a backend, on a mesh of this device alone; bytes from eight."""
    particles, grads = map(jnp.asarray, draw(num_particles, width))
    field = fields.Field(svgd.flow())
    state = fields.init(field, particles)
    mesh = meshes.make_mesh(data=1, particle=1, devices=jax.devices()[:1])
    velocities = {"auto": fields.velocity} | {
        name: sharded.velocity(mesh, meshes.PARTICLE_AXIS, name)
        for name in sharded.BACKENDS
    }
    cases = []
    for name, velocity in velocities.items():

        def update(particles, grads, velocity=velocity):
            return velocity(field, state, particles, grads)[0]

        case = harness.compiled(
            f"backend {name}, N={num_particles}", update, particles, grads
        )
        facts = {"N": num_particles, "D": width, "bandwidth": "median, exact"}
        if name != "auto" and num_particles % collectives.NUM_DEVICES == 0:
            facts["received_mb_of_8"] = round(
                collectives.of_backend(num_particles, width, name) / 1e6, 3
            )
        cases.append(case._replace(unit="updates", facts=facts))
    values = [np.asarray(case.wait(case.call())) for case in cases]
    return [
        case._replace(
            facts={
                **case.facts,
                "difference": float(np.abs(value - values[0]).max()),
            }
        )
        for case, value in zip(cases, values, strict=True)
    ]


def speedups(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Says how many times faster ours is than each of the others."""
    seconds = {row["case"]: row["median_s"] for row in rows}
    lines = []
    for name, value in seconds.items():
        head, _, who = name.rpartition(", ")
        if who != "ours" and f"{head}, ours" in seconds:
            lines.append(f"{head}: {value / seconds[f'{head}, ours']:.1f} x {who}")
    return lines


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(NAME)
    parser.add_argument("--part", nargs="+", default=["svgd", "backends"])
    parser.add_argument("--counts", nargs="+", type=int)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--torch_threads", type=int, help="default: one a core")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    parts = {
        "svgd": (svgd_cases, COUNTS),
        "backends": (backend_cases, BACKEND_COUNTS),
    }
    if settings.torch_threads:
        import torch

        torch.set_num_threads(settings.torch_threads)
    rows = []
    for part in settings.part:
        make, counts = parts[part]
        for count in settings.counts or counts:
            cases = make(count, settings.width)
            rows += harness.run(cases, settings.warmup, settings.repeats)
            print(f"{part} N={count} done", file=sys.stderr, flush=True)
    for row in rows:
        row.pop("seconds", None)
    print("\n".join(speedups(rows)))
    return harness.report(NAME, rows, settings.record)


if __name__ == "__main__":
    main()
