"""From velocities to moves: plain, decaying, RMS-scaled, accelerated steps.

An integrator is a pair (init, step) that knows no field: `init(x)` gives a state whose
`at` says where the velocity is wanted, `step(state, velocity, noise)` moves on. Steps
count k from 1, as in arXiv 1807.01750, section 5, and its released code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxanom.posterior import sgld
from jaxanom.types import Array


class State(NamedTuple):
    """Where an integrator stands.

    Attributes:
      particles: [P, D], the iterate.
      at: [P, D], where the velocity is evaluated.
      scaling: What the scaling of the steps remembers.
      momentum: [P, D], or () for a rule without momentum.
      count: int32, steps taken.
    """

    particles: Array
    at: Array
    scaling: Any
    momentum: Any
    count: Array


class Integrator(NamedTuple):
    """A pair.

    Attributes:
      init: particles -> State.
      step: (State, velocity at `state.at`, noise or None) -> State.
    """

    init: Callable[[Array], State]
    step: Callable[..., State]


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
    return decay(step_size, exponent=0.0)


def decay(step_size: float, exponent: float = 0.55, offset: float = 1.0) -> Scaling:
    """eps_k = eps_0 (k + k_0)^(-a), see `sgld.step_size`."""

    def apply(memory, v, k):
        eps = sgld.step_size(k, step_size, offset, exponent)
        return v, eps.astype(v.dtype), memory

    return Scaling(lambda x: (), apply)


def rms(
    step_size: float,
    remember: float = 0.9,
    fudge: float = 1e-6,
    exponent: float = 0.0,
    offset: float = 1.0,
) -> Scaling:
    """v / (fudge + sqrt H), H the running mean of v^2, first step H = v^2."""
    steps = decay(step_size, exponent, offset)

    def apply(memory, v, k):
        squares = jnp.where(k == 1, v**2, remember * memory + (1 - remember) * v**2)
        v, eps, _ = steps.apply((), v / (fudge + jnp.sqrt(squares)), k)
        return v, eps, squares

    return Scaling(jnp.zeros_like, apply)


def plain(scaling: Scaling) -> Integrator:
    """x <- x + eps v."""

    def move(state, v, eps, number, noise):
        moved = state.at + eps * v
        return moved, moved, ()

    return _integrator(scaling, move)


def wag(scaling: Scaling, factor: float = 3.5) -> Integrator:
    """Wasserstein accelerated gradient (arXiv 1807.01750, Algorithm 1); factor > 3.

    x_k = y + eps v; y <- x_k + (k-1)/k (y - x_{k-1}) + (k + a - 2)/k eps v.
    """

    def move(state, v, eps, number, noise):
        moved = state.at + eps * v
        at = moved + (number - 1) / number * (state.at - state.particles)
        return moved, at + (number + factor - 2) / number * eps * v, ()

    return _integrator(scaling, move)


def wnes(scaling: Scaling, bound: float = 1.0, shrink: float = 0.2) -> Integrator:
    """Wasserstein Nesterov (arXiv 1807.01750, Algorithm 1).

    x_k = y + eps v; y <- x_k + c (x_k - x_{k-1}).

    Args:
      scaling: How long the steps are.
      bound: H, strong convexity times `shrink` squared, in the papers' symbols mu.
      shrink: s, beta = s sqrt(mu eps).
    """

    def move(state, v, eps, number, noise):
        moved = state.at + eps * v
        ratio = bound * eps
        beta = shrink * jnp.sqrt(ratio)
        below = jnp.sqrt(beta**2 + 4 * (1 + beta) * ratio) - beta
        below = below + 2 * (1 + beta) * ratio
        weight = 1 + beta - 2 * (1 + beta) * (2 + beta) * ratio / below
        return moved, moved + weight * (moved - state.particles), ()

    return _integrator(scaling, move)


def polyak(
    scaling: Scaling,
    remember: float = 0.6,
    noise_scale: float = 0.0,
    power: float = 1.0,
) -> Integrator:
    """m <- rho m + eps (v + (sigma / k^q) xi); x <- x + m.

    Args:
      scaling: How long the steps are.
      remember: rho.
      noise_scale: sigma; 0 needs no noise.
      power: q.
    """

    def move(state, v, eps, number, noise):
        if noise_scale:
            v = v + noise_scale / number**power * noise
        momentum = remember * state.momentum + eps * v
        moved = state.at + momentum
        return moved, moved, momentum

    return _integrator(scaling, move, jnp.zeros_like)


def _integrator(scaling: Scaling, move: Callable, momentum=lambda x: ()) -> Integrator:
    """Joins a scaling and (state, v, eps, k, noise) -> (particles, at, momentum)."""

    def init(x):
        # Every field its own buffer, so that the state may be donated.
        count = jnp.zeros((), jnp.int32)
        return State(jnp.copy(x), jnp.copy(x), scaling.init(x), momentum(x), count)

    def step(state, velocity, noise=None):
        k = state.count + 1
        v, eps, memory = scaling.apply(state.scaling, velocity, k)
        particles, at, kept = move(state, v, eps, k.astype(v.dtype), noise)
        return State(particles, at, memory, kept, k)

    return Integrator(init, step)
