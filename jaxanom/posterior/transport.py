"""Flows and samplers as optax transformations: gradients in, descent directions out.

All of them target exp(-L / T) for a loss L_i of each particle and a temperature T:
gradients of sum_i L_i come in, stacked [P, ...]. A loss per datum of n data wants
T = 1/n for the posterior itself.

A flow hands on -v, the direction that a lone particle's gradient would be, for any
optimiser to use; only plain gradient descent follows the flow as the papers mean it.
Samplers, whose step size and noise belong together, and integrators make whole moves:
behind them stands `optax.sgd(1.0)`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxanom import trees
from jaxanom.posterior import fields, sgld
from jaxanom.posterior.integrators import Integrator
from jaxanom.types import Array

FLOWS = ("svgd", "gfsd", "blob", "gfsf", "map")
SAMPLERS = ("noisy_svgd", "sgld", "psgld", "langevin")
COUPLED = ("svgd", "gfsd", "blob", "gfsf", "noisy_svgd")
"""Those in which particles feel one another, through an RKHS."""
WHOLE_MOVES = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "learning_rate": 1.0,
    "schedule": "constant",
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "warmup_steps": 0,
}
"""Settings of a phase under which whole moves reach the particles as they are."""

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
      field: What flows how; its `temperature` is T above.
      velocity: `fields.velocity`, or one of `sharded`.
      embed: Where the kernel looks at particles, see `fields.velocity`; it gets what
        the caller passes to `update` beside gradients, state and parameters.
    """

    def init(params):
        return fields.init(field, trees.ravel_particles(params)[0])

    def update(grads, state, params, **extra):
        particles, unravel_particles = trees.ravel_particles(params)
        matrix, unravel = trees.ravel_particles(grads)
        # Embeddings only read the particles; the rest of `extra` stays as it is.
        seen = embed and (lambda x: embed(unravel_particles(x), **extra))
        moved, state, _ = velocity(field, state, particles, -matrix, embed=seen)
        return unravel(-moved), state

    return optax.GradientTransformationExtraArgs(init, update)


def integrated(
    flow: optax.GradientTransformation, integrator: Integrator
) -> optax.GradientTransformationExtraArgs:
    """Follows a flow by an integrator's own steps.

    The parameters are where the velocity is wanted, the `at` of the integrator's state.

    Args:
      flow: What hands on -v, such as `of_flow`; the identity for gradient ascent.
      integrator: What makes moves of velocities.
    """

    def init(params):
        return integrator.init(trees.ravel_particles(params)[0])

    def update(directions, state, params):
        at, _ = trees.ravel_particles(params)
        matrix, unravel = trees.ravel_particles(directions)
        state = integrator.step(state._replace(at=at), -matrix)
        return unravel(at - state.at), state

    return optax.chain(flow, optax.GradientTransformation(init, update))


def _sampler(
    init_memory: Callable[[Array], Any], move: Callable[..., tuple[Array, Any]]
) -> optax.GradientTransformationExtraArgs:
    """Makes a sampler of (state, particles, grad log p) -> (move, memory)."""

    def init(params):
        particles, _ = trees.ravel_particles(params)
        return Sampled(jnp.zeros((), jnp.int32), init_memory(particles))

    def update(grads, state, params, **extra):
        particles, _ = trees.ravel_particles(params)
        matrix, unravel = trees.ravel_particles(grads)
        moved, memory = move(state, particles, -matrix)
        return unravel(-moved), Sampled(state.count + 1, memory)

    return optax.GradientTransformationExtraArgs(init, update)


def noisy(
    field: fields.Field,
    step_size: StepSizeFn,
    noise: NoiseFn,
    velocity: Callable = fields.velocity,
) -> optax.GradientTransformationExtraArgs:
    """Samples by a flow with its own noise: noisy SVGD (arXiv 1812.00071).

    Args:
      field: A flow that has noise.
      step_size: eps of every step.
      noise: Draws the noise of a step, see `noise_of`.
      velocity: As in `of_flow`.
    """

    def move(state, particles, grad_log_p):
        eps = step_size(state.count)
        xi = noise(state.count, particles)
        moved, memory, info = velocity(
            field, state.memory, particles, grad_log_p, noise=xi
        )
        spread = jnp.sqrt(2 * eps * field.temperature)
        return eps * moved + spread * info["noise"], memory

    return _sampler(lambda particles: fields.init(field, particles), move)


def langevin(
    step_size: StepSizeFn, noise: NoiseFn, temperature: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """SGLD (Welling & Teh 2011); a move at eps is Langevin's at eps / 2."""

    def move(state, particles, grad_log_p):
        xi = noise(state.count, particles)
        eps = step_size(state.count)
        return sgld.sgld_move(grad_log_p, eps, xi, temperature), ()

    return _sampler(lambda particles: (), move)


def preconditioned_langevin(
    step_size: StepSizeFn, noise: NoiseFn, temperature: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """pSGLD (arXiv 1512.07666)."""

    def move(state, particles, grad_log_p):
        xi = noise(state.count, particles)
        eps = step_size(state.count)
        return sgld.psgld_move(state.memory, grad_log_p, eps, xi, temperature)

    return _sampler(jnp.zeros_like, move)


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
      inner: Whole chains, optimiser included; their states are kept side by side.
    """
    inner = [optax.with_extra_args_support(each) for each in inner]

    def init(params):
        return tuple(each.init(params) for each in inner)

    def update(grads, state, params=None, **extra):
        def branch(place):
            def apply():
                moves, new = inner[place].update(grads, state[place], params, **extra)
                return moves, (*state[:place], new, *state[place + 1 :])

            return apply

        return jax.lax.switch(number, [branch(place) for place in range(len(inner))])

    return optax.GradientTransformationExtraArgs(init, update)


def only(
    path: str, inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Applies a transport to one top-level entry of the parameters, if it is there.

    Args:
      path: The entry's name, such as "particles".
      inner: The transport; other entries' gradients pass through.
    """

    def mask(tree):
        return {
            name: jax.tree.map(lambda _, kept=name == path: kept, part)
            for name, part in tree.items()
        }

    return optax.masked(inner, mask)
