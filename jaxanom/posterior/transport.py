"""Flows and samplers as optax transformations: gradients in, descent directions out.

All of them target exp(-L / T) for a loss L_i of each particle and a temperature T:
gradients of sum_i L_i come in, stacked [P, ...]. A loss per datum of n data wants
T = 1/n for the posterior itself.

A flow hands on -v, the direction that a lone particle's gradient would be, for any
optimiser to use; only plain gradient descent follows the flow as the papers mean it. A
sampler's step size and noise belong together, so it makes whole moves: behind it stands
`optax.sgd(1.0)`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxanom import trees
from jaxanom.posterior import fields, sgld
from jaxanom.types import Array

NoiseFn = Callable[[Array, Array], Array]
"""(step, particles [P, D]) -> [P, D] standard normal."""
StepSizeFn = Callable[[Array], Array]
"""Step from 0 -> eps."""
EmbedFn = Callable[..., Array]
"""(particles as a tree, **extra arguments of update) -> [P, M]."""


class Sampled(NamedTuple):
    """State of a sampler: steps taken, and what its rule remembers."""

    count: Array
    memory: Any


def of_flow(
    field: fields.Field,
    velocity: Callable = fields.velocity,
    embed: EmbedFn | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Couples particles by a flow.

    Args:
      field: what flows how; its `temperature` is T above.
      velocity: `fields.velocity`, or one of `sharded`.
      embed: where the kernel looks at particles, see `fields.velocity`; it gets what
        the caller passes to `update` beside gradients, state and parameters.
    """

    def init(params):
        return fields.init(field, trees.ravel_particles(params)[0])

    def update(grads, state, params, **extra):
        particles, _ = trees.ravel_particles(params)
        matrix, unravel = trees.ravel_particles(grads)
        seen = _embedder(embed, params, extra)
        moved, state, _ = velocity(field, state, particles, -matrix, embed=seen)
        return unravel(-moved), state

    return optax.GradientTransformationExtraArgs(init, update)


def noisy(
    field: fields.Field,
    step_size: StepSizeFn,
    noise: NoiseFn,
    velocity: Callable = fields.velocity,
) -> optax.GradientTransformationExtraArgs:
    """Samples by a flow with its own noise: noisy SVGD (arXiv 1812.00071).

    Args:
      field: a flow that has noise.
      step_size: eps.
      noise: from `noise_of`.
      velocity: as in `of_flow`.
    """

    def init(params):
        particles, _ = trees.ravel_particles(params)
        return Sampled(jnp.zeros((), jnp.int32), fields.init(field, particles))

    def update(grads, state, params, **extra):
        particles, _ = trees.ravel_particles(params)
        matrix, unravel = trees.ravel_particles(grads)
        eps = step_size(state.count)
        moved, memory, info = velocity(
            field,
            state.memory,
            particles,
            -matrix,
            noise=noise(state.count, particles),
        )
        spread = jnp.sqrt(2 * eps * field.temperature)
        move = eps * moved + spread * info["noise"]
        return unravel(-move), Sampled(state.count + 1, memory)

    return optax.GradientTransformationExtraArgs(init, update)


def langevin(
    step_size: StepSizeFn, noise: NoiseFn, temperature: float = 1.0
) -> optax.GradientTransformation:
    """SGLD (Welling & Teh 2011); a move at eps is Langevin's at eps / 2."""

    def update(grads, state, params):
        particles, _ = trees.ravel_particles(params)
        matrix, unravel = trees.ravel_particles(grads)
        xi = noise(state.count, particles)
        move = sgld.sgld_move(-matrix, step_size(state.count), xi, temperature)
        return unravel(-move), Sampled(state.count + 1, ())

    return optax.GradientTransformation(
        lambda params: Sampled(jnp.zeros((), jnp.int32), ()), update
    )


def preconditioned_langevin(
    options: sgld.Preconditioner,
    step_size: StepSizeFn,
    noise: NoiseFn,
    temperature: float = 1.0,
) -> optax.GradientTransformation:
    """pSGLD (arXiv 1512.07666)."""

    def init(params):
        particles, _ = trees.ravel_particles(params)
        return Sampled(jnp.zeros((), jnp.int32), jnp.zeros_like(particles))

    def update(grads, state, params):
        particles, _ = trees.ravel_particles(params)
        matrix, unravel = trees.ravel_particles(grads)
        move, squares = sgld.psgld_move(
            options,
            state.memory,
            -matrix,
            step_size(state.count),
            noise(state.count, particles),
            temperature,
        )
        return unravel(-move), Sampled(state.count + 1, squares)

    return optax.GradientTransformation(init, update)


def noise_of(seed: int) -> NoiseFn:
    """Returns noise whose row i depends on (seed, step, i) alone, not on the mesh."""

    def noise(step: Array, particles: Array) -> Array:
        rows = jnp.arange(particles.shape[0])
        key = jax.random.key(seed)
        return sgld.draw(key, step, rows, particles.shape[1], particles.dtype)

    return noise


def choose(
    number: Array, inner: Sequence[optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """Applies one of several transformations, which one being a value.

    Under `jax.vmap` with a number for each run all of them are computed for all runs
    and one is kept: many runs are one program, and next to a network the others cost
    nothing.

    Args:
      number: int32 scalar, a place in `inner`.
      inner: whole chains, optimiser included; their states are kept side by side.
    """
    inner = [optax.with_extra_args_support(each) for each in inner]

    def init(params):
        return tuple(each.init(params) for each in inner)

    def update(grads, state, params=None, **extra):
        def branch(place):
            def apply():
                found, new = inner[place].update(grads, state[place], params, **extra)
                return found, (*state[:place], new, *state[place + 1 :])

            return apply

        return jax.lax.switch(number, [branch(place) for place in range(len(inner))])

    return optax.GradientTransformationExtraArgs(init, update)


def only(
    path: str, inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Applies a transport to one top-level entry of the parameters, if it is there.

    Args:
      path: "particles".
      inner: the transport; other entries' gradients pass through.
    """

    def mask(tree):
        return {
            name: jax.tree.map(lambda _, chosen=name == path: chosen, part)
            for name, part in tree.items()
        }

    return optax.masked(inner, mask)


def _embedder(embed: EmbedFn | None, params: Any, extra: dict[str, Any]):
    """Returns `embed` as a function of the matrix [P, D]."""
    if embed is None:
        return None
    # Embeddings only read the particles; the rest of `extra` stays as it is.
    _, unravel = trees.ravel_particles(params)
    return lambda matrix: embed(unravel(matrix), **extra)
