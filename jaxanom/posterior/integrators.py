"""From velocities to moves: plain, decaying, RMS-scaled, accelerated steps.

An integrator is a pair (init, step) that knows no field: `init(x)` gives a state whose
`at` says where the velocity is wanted, `step(state, velocity, noise)` moves on. Steps
count k from 1, as in arXiv 1807.01750, section 5, and its released code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxanom.types import Array


class State(NamedTuple):
    """Where an integrator stands.

    Attributes:
      particles: [P, D], the iterate.
      at: [P, D], where the velocity is evaluated.
      slots: what the rule remembers.
      count: int32, steps taken.
    """

    particles: Array
    at: Array
    slots: Any
    count: Array


class Integrator(NamedTuple):
    """A pair.

    Attributes:
      init: particles -> State.
      step: (State, velocity at `state.at`, noise or None) -> State.
    """

    init: Callable[[Array], State]
    step: Callable[[State, Array, Array | None], State]


class Scaling(NamedTuple):
    """How long a step is.

    Attributes:
      init: particles -> memory.
      apply: (memory, velocity, k) -> (scaled velocity, eps, memory).
    """

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array, Array], tuple[Array, Array, Any]]


def constant(step_size: float) -> Scaling:
    """The same eps always."""
    return Scaling(
        lambda x: (), lambda memory, v, k: (v, jnp.asarray(step_size, v.dtype), memory)
    )


def decay(step_size: float, exponent: float = 0.55, offset: float = 1.0) -> Scaling:
    """eps_k = eps_0 (k + k_0)^(-a)."""

    def apply(memory, v, k):
        count = k.astype(v.dtype) + offset
        return v, step_size * count ** (-exponent), memory

    return Scaling(lambda x: (), apply)


def rms(step_size: float, remember: float = 0.9, fudge: float = 1e-6) -> Scaling:
    """v / (fudge + sqrt H), H the running mean of v^2, first step H = v^2."""

    def apply(memory, v, k):
        squares = jnp.where(k == 1, v**2, remember * memory + (1 - remember) * v**2)
        scaled = v / (fudge + jnp.sqrt(squares))
        return scaled, jnp.asarray(step_size, v.dtype), squares

    return Scaling(jnp.zeros_like, apply)


def plain(scaling: Scaling) -> Integrator:
    """x <- x + eps v."""

    def step(state, velocity, noise=None):
        k = state.count + 1
        v, eps, memory = scaling.apply(state.slots, velocity, k)
        moved = state.particles + eps * v
        return State(moved, moved, memory, k)

    return Integrator(lambda x: _start(x, scaling.init(x)), step)


def wag(scaling: Scaling, factor: float = 3.5) -> Integrator:
    """Wasserstein accelerated gradient (arXiv 1807.01750, Algorithm 1); factor > 3.

    x_k = y + eps v; y <- x_k + (k-1)/k (y - x_{k-1}) + (k + a - 2)/k eps v.
    """

    def step(state, velocity, noise=None):
        k = state.count + 1
        v, eps, memory = scaling.apply(state.slots, velocity, k)
        number = k.astype(v.dtype)
        moved = state.at + eps * v
        at = moved + (number - 1) / number * (state.at - state.particles)
        at = at + (number + factor - 2) / number * eps * v
        return State(moved, at, memory, k)

    return Integrator(lambda x: _start(x, scaling.init(x)), step)


def wnes(scaling: Scaling, bound: float, shrink: float = 0.2) -> Integrator:
    """Wasserstein Nesterov (arXiv 1807.01750, Algorithm 1).

    x_k = y + eps v; y <- x_k + c (x_k - x_{k-1}).

    Args:
      scaling: of eps.
      bound: H, strong convexity times `shrink` squared, in the papers' symbols mu.
      shrink: s, beta = s sqrt(mu eps).
    """

    def step(state, velocity, noise=None):
        k = state.count + 1
        v, eps, memory = scaling.apply(state.slots, velocity, k)
        moved = state.at + eps * v
        ratio = bound * eps
        beta = shrink * jnp.sqrt(ratio)
        below = jnp.sqrt(beta**2 + 4 * (1 + beta) * ratio) - beta
        below = below + 2 * (1 + beta) * ratio
        weight = 1 + beta - 2 * (1 + beta) * (2 + beta) * ratio / below
        at = moved + weight * (moved - state.particles)
        return State(moved, at, memory, k)

    return Integrator(lambda x: _start(x, scaling.init(x)), step)


def polyak(
    scaling: Scaling,
    remember: float = 0.6,
    noise_scale: float = 0.0,
    power: float = 1.0,
) -> Integrator:
    """m <- rho m + eps (v + (sigma / k^q) xi); x <- x + m.

    Args:
      scaling: of eps.
      remember: rho.
      noise_scale: sigma; 0 needs no noise.
      power: q.
    """

    def step(state, velocity, noise=None):
        k = state.count + 1
        memory, momentum = state.slots
        v, eps, memory = scaling.apply(memory, velocity, k)
        if noise_scale:
            v = v + noise_scale / k.astype(v.dtype) ** power * noise
        momentum = remember * momentum + eps * v
        moved = state.particles + momentum
        return State(moved, moved, (memory, momentum), k)

    def init(x):
        return _start(x, (scaling.init(x), jnp.zeros_like(x)))

    return Integrator(init, step)


def _start(particles: Array, slots: Any) -> State:
    # Every field its own buffer, so that the state may be donated.
    return State(particles, jnp.copy(particles), slots, jnp.zeros((), jnp.int32))


VelocityFn = Callable[[Array, Any], tuple[Array, Any, Any]]
"""(where [P, D], state) -> (velocity [P, D], state, info)."""


def trajectory(
    velocity_fn: VelocityFn,
    field_state: Any,
    integrator: Integrator,
    particles: Array,
    num_steps: int,
    noise: Array | None = None,
) -> tuple[Array, Any]:
    """Walks `num_steps` in one scan.

    Args:
      velocity_fn: the field.
      field_state: its first state.
      integrator: what makes moves of velocities.
      particles: [P, D] at the start.
      num_steps: how many.
      noise: [num_steps, P, D] for integrators that take some.

    Returns:
      (particles after every step [num_steps, P, D], stacked (velocity, info)).
    """

    def body(carry, noise_row):
        state, of_field = carry
        velocity, of_field, info = velocity_fn(state.at, of_field)
        state = integrator.step(state, velocity, noise_row)
        return (state, of_field), (state.particles, (velocity, info))

    start = (integrator.init(particles), field_state)
    _, (walked, reported) = jax.lax.scan(body, start, noise, length=num_steps)
    return walked, reported
