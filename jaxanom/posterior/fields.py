"""Particle flows as velocities: what drives a particle, and what the others add.

A flow is dx_i/dt = drive_i + T push_i for the density p^(1/T): `drive` moves particles
up log p, `push` keeps them apart. The two are apart because the push may live in
another space than the particles (see `Field.embed`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxanom.errors import UserError
from jaxanom.posterior import bandwidths, kernels
from jaxanom.posterior import pairs as pairing
from jaxanom.posterior.kernels import Interaction
from jaxanom.posterior.pairs import Pairs
from jaxanom.types import Array, Metrics


class Flow(NamedTuple):
    """One member of the family.

    Attributes:
      drive: (grad_log_p [n, D], interaction, pairs) -> [n, D].
      push: (particles [n, D], interaction, pairs) -> [n, D].
      noise: ([n, D] standard normal, interaction, pairs) -> [n, D], the noise under
        which the flow samples; None where there is no such noise.
    """

    drive: Callable[[Array, Interaction, Pairs], Array]
    push: Callable[[Array, Interaction, Pairs], Array]
    noise: Callable[[Array, Interaction, Pairs], Array] | None = None


class Field(NamedTuple):
    """A flow with everything it needs to be a function of particles and gradients.

    Attributes:
      flow: Drive and push, see `svgd` and `wgf`.
      between: Makes the interaction, see `kernels`.
      bandwidth: The rule that finds h, see `bandwidths`.
      temperature: T; the flow targets p^(1/T). 0 leaves the push out.
      metric: The preconditioner; None is the identity.
    """

    flow: Flow
    between: kernels.InteractionFn = kernels.radial()
    bandwidth: bandwidths.Rule = bandwidths.median()
    temperature: float = 1.0
    metric: "Metric | None" = None


class Metric(NamedTuple):
    """A diagonal preconditioner Q, one for all particles (arXiv 1910.12794).

    Shared on purpose: one of each particle's own would make the kernel asymmetric. Q is
    the square root of a running mean of squared gradients of log p over particles and
    steps, plus damping: a gradient over Q is RMSprop's.

    Attributes:
      decay: What the running mean keeps of itself, in [0, 1).
      damping: Added to its square root, > 0.
    """

    decay: float = 0.9
    damping: float = 1e-3


class FieldState(NamedTuple):
    """What a field carries from step to step.

    Attributes:
      bandwidth: What the bandwidth rule remembers.
      metric: [D] running mean of squared gradients, or () without a metric.
      count: int32, velocities computed.
    """

    bandwidth: Any
    metric: Any
    count: Array


def init(field: Field, particles: Array) -> FieldState:
    """Returns the state before the first velocity of particles [n, D]."""
    width = particles.shape[1]
    return FieldState(
        bandwidth=field.bandwidth.init(particles.dtype),
        metric=jnp.zeros(width, particles.dtype) if field.metric else (),
        count=jnp.zeros((), jnp.int32),
    )


def velocity(
    field: Field,
    state: FieldState,
    particles: Array,
    grad_log_p: Array,
    pairs: Pairs | None = None,
    embed: Callable[[Array], Array] | None = None,
    noise: Array | None = None,
) -> tuple[Array, FieldState, Metrics]:
    """Computes dx/dt of every particle.

    Args:
      field: What flows how.
      state: What the step before left.
      particles: [n, D] float32 or float64.
      grad_log_p: [n, D], gradient of log p at them.
      pairs: How they meet; None where all particles are here.
      embed: [n, D] -> [n, M], where the kernel looks at particles: forces are found
        there and pulled back by the transposed Jacobian. None: the particles as such.
      noise: [n, D] standard normal, for flows that have noise.

    Returns:
      ([n, D] velocity, state, {"bandwidth"}); with `noise` also "noise", what the flow
      makes of it, to be added with the factor sqrt(2 eps T).

    Raises:
      UserError: noise for a flow that takes none.
    """
    chex.assert_equal_shape([particles, grad_log_p])
    if noise is not None and field.flow.noise is None:
        raise UserError("this flow has no noise of its own; use svgd.flow")
    pairs = pairing.local(particles.shape[0]) if pairs is None else pairs
    state, root = _updated_metric(field, state, grad_log_p, pairs)
    # The preconditioned flow is the plain one of y = Q^(1/2) x.
    placed, drift = particles * root, grad_log_p / root
    pull_back = lambda force: force  # noqa: E731
    seen = placed
    if embed is not None:
        seen, back = jax.vjp(lambda y: embed(y / root), placed)
        pull_back = lambda force: back(force)[0]  # noqa: E731
    r2 = pairing.squared_distances(seen, pairs)
    centred = seen - pairs.mean(seen)
    inner = pairs.gather(pairs.inner(centred, centred))
    # Bandwidths are chosen, not differentiated: a flow is a direction, not a loss.
    whole = jax.lax.stop_gradient((pairs.gather(r2), inner))
    bandwidth, of_rule = field.bandwidth.update(
        *whole, pairs.columns(seen), state.bandwidth
    )
    between = field.between(seen, r2, bandwidth, pairs)
    moved = field.flow.drive(drift, between, pairs)
    if field.temperature:
        push = pull_back(field.flow.push(seen, between, pairs))
        moved = moved + field.temperature * push
    info = {"bandwidth": bandwidth}
    if noise is not None:
        info["noise"] = field.flow.noise(noise, between, pairs) / root
    return moved / root, state._replace(bandwidth=of_rule), info


def _updated_metric(field, state, grad_log_p, pairs):
    """Returns (state, Q^(1/2)): [D], or 1 without a metric."""
    count = state.count + 1
    if field.metric is None:
        return state._replace(count=count), 1.0
    decay = field.metric.decay
    squares = pairs.mean(grad_log_p**2)[0]
    mean = decay * state.metric + (1 - decay) * squares
    unbiased = mean / (1 - decay ** count.astype(mean.dtype))
    scale = jnp.sqrt(unbiased) + field.metric.damping
    return state._replace(metric=mean, count=count), jnp.sqrt(scale)
