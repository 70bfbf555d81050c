"""`config.app.particles` -> the transport between gradient and optimiser.

Losses are per datum (`objective`), so the posterior of n data has temperature 1 / n:
`temperature / num_data` is what the transports are given, and the length of a step does
not depend on n.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxanom.methods.app import model
from jaxanom.methods.app.options import Particles
from jaxanom.parallel import mesh as meshes
from jaxanom.posterior import (
    bandwidths,
    fields,
    integrators,
    kernels,
    sgld,
    sharded,
    svgd,
    transport,
    wgf,
)


def temperature(options: Particles, num_data: int) -> float:
    """Returns T such that exp(-L_i / T) is the density that particle i targets."""
    return options.temperature / (options.num_data or num_data)


def make(
    options: Particles, num_data: int, tower: model.TextTower, mesh_config: Any
) -> optax.GradientTransformation:
    """Builds the transport of phase "particles".

    Args:
      options: How particles move.
      num_data: Number of training images.
      tower: Makes the text features between which distances may be measured.
      mesh_config: `config.mesh`, over which a backend spreads particles.
    """
    target_temperature = temperature(options, num_data)
    if options.update == "map":
        moves = optax.identity()
        if options.integrator == "plain":
            return moves
    elif options.update in transport.FLOWS:
        moves = transport.of_flow(
            _field(options, target_temperature),
            _velocity(options, mesh_config),
            _embedding(options.space, tower),
        )
    else:
        moves = _sampler(options, target_temperature, mesh_config)
    if options.integrator != "plain":
        moves = transport.integrated(moves, _integrator(options))
    return transport.only("particles", moves)


def _sampler(options: Particles, target_temperature: float, mesh_config: Any):
    noise = transport.noise_of(options.noise_seed)
    step_size = functools.partial(
        sgld.step_size,
        scale=options.step_size * (2 if options.update == "langevin" else 1),
        offset=options.step_offset,
        decay=options.step_decay,
    )
    if options.update == "noisy_svgd":
        velocity = _velocity(options, mesh_config)
        field = _field(options, target_temperature)
        return transport.noisy(field, step_size, noise, velocity)
    if options.update == "psgld":
        return transport.preconditioned_langevin(step_size, noise, target_temperature)
    return transport.langevin(step_size, noise, target_temperature)


def _integrator(options: Particles) -> integrators.Integrator:
    scaling = integrators.rms if options.integrator == "rms" else integrators.decay
    steps = scaling(
        options.step_size, exponent=options.step_decay, offset=options.step_offset
    )
    return {
        "decay": integrators.plain,
        "rms": integrators.plain,
        "wag": integrators.wag,
        "wnes": integrators.wnes,
        "polyak": integrators.polyak,
    }[options.integrator](steps)


def _field(options: Particles, target_temperature: float) -> fields.Field:
    if options.bandwidth:
        rule = bandwidths.fixed(options.bandwidth)
    elif options.bandwidth_rule == "median":
        rule = bandwidths.median(options.median, options.bandwidth_mode)
    else:
        released = options.bandwidth_rule == "heat_equation_released"
        rule = bandwidths.heat_equation(form="released" if released else "scale_free")
    if options.update == "gfsf":
        flow = wgf.gfsf(options.ridge, options.form)
    elif options.update in ("gfsd", "blob"):
        flow = {"gfsd": wgf.gfsd, "blob": wgf.blob}[options.update]()
    else:
        flow = svgd.flow(options.normalise)
    return fields.Field(
        flow=flow,
        between=kernels.NAMES[options.rkhs](),
        bandwidth=rule,
        temperature=target_temperature,
        metric=fields.Metric() if options.preconditioned else None,
    )


def _velocity(options: Particles, mesh_config: Any) -> Callable:
    """Returns how velocities are computed, wherever the particles live."""
    if options.backend == "auto":
        return fields.velocity
    mesh = meshes.make_mesh(**{axis: mesh_config[axis] for axis in meshes.AXES})
    return sharded.velocity(mesh, meshes.PARTICLE_AXIS, options.backend)


def _embedding(space: str, tower: model.TextTower) -> Callable | None:
    """Returns where particles are compared, or None for their own space."""
    if space == "ctx":
        return None

    def embed(tree, *, frozen=None, **_):
        (context,) = jax.tree.leaves(tree)  # [P, N, d]
        if space == "token_mean":
            return context.mean(1)
        text = model.text_features(tower, frozen["text"], context)
        return text.reshape(context.shape[0], -1)

    return embed
