"""Reproducing kernels: gram matrices and the forces between particles (RKHS only).

A radial one is a profile k(r2) of the squared distance. Its force on particle i is
R_i = sum_j grad_{x_j} k(x_j, x_i) = sum_j w_ij (x_i - x_j) with w = -2 k'(r2), which is
two matrix products: (sum_j w_ij) x_i - (w x)_i. The [P, P, D] tensor never exists.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxanom.errors import UserError
from jaxanom.posterior import pairs as pairing
from jaxanom.posterior.pairs import Pairs
from jaxanom.types import Array


class Profile(NamedTuple):
    """A radial function of the squared distance and its first two derivatives by it."""

    value: Array
    first: Array
    second: Array


RadialFn = Callable[[Array, Array], Profile]
"""(squared distances, bandwidth h) -> Profile."""


class Interaction(NamedTuple):
    """What the n particles here feel of all P.

    Attributes:
      gram: [n, P], k(x_i, x_j).
      weights: [n, P], w_ij; 0 where a particle meets itself.
      totals: [n], the factor of x_i; sum_j w_ij for a radial kernel.
      origin: [1, D], subtracted from particles before they are weighed.
      bandwidth: scalar h.
    """

    gram: Array
    weights: Array
    totals: Array
    origin: Array
    bandwidth: Array


InteractionFn = Callable[[Array, Array, Array, Pairs], Interaction]
"""(particles [n, D], squared distances [n, P], h, pairs) -> Interaction."""


def rbf(r2: Array, bandwidth: Array) -> Profile:
    """exp(-r2 / (2h)), the kernel of arXiv 1608.04471 with h its squared width."""
    value = jnp.exp(-r2 / (2 * bandwidth))
    return Profile(value, -value / (2 * bandwidth), value / (4 * bandwidth**2))


def imq(offset: float = 1.0, exponent: float = -0.5) -> RadialFn:
    """(c^2 + r2 / h)^beta: heavy tails, so that KSD controls convergence.

    arXiv 1703.01717, section 4.2.

    Args:
      offset: c > 0.
      exponent: beta in (-1, 0).

    Raises:
      UserError: out of range.
    """
    if offset <= 0 or not -1 < exponent < 0:
        raise UserError(
            f"imq with offset={offset}, exponent={exponent}; wanted offset > 0 and "
            "exponent in (-1, 0)"
        )

    def profile(r2: Array, bandwidth: Array) -> Profile:
        base = offset**2 + r2 / bandwidth
        value = base**exponent
        first = exponent / bandwidth * base ** (exponent - 1)
        second = exponent * (exponent - 1) / bandwidth**2 * base ** (exponent - 2)
        return Profile(value, first, second)

    return profile


def radial(profile: RadialFn = rbf) -> InteractionFn:
    """Turns a profile into forces between particles."""

    def interaction(
        particles: Array, r2: Array, bandwidth: Array, pairs: Pairs
    ) -> Interaction:
        value, first, _ = profile(r2, bandwidth)
        # A particle does not push itself; left in, 1/h times rounding would.
        weights = jnp.where(pairing.is_self(pairs), 0.0, -2 * first)
        origin = pairs.mean(particles)
        return Interaction(value, weights, weights.sum(1), origin, bandwidth)

    return interaction


def linear(particles: Array, r2: Array, bandwidth: Array, pairs: Pairs) -> Interaction:
    """x . y + 1, whose force is P x_i; matches Gaussian moments (arXiv 1810.11693)."""
    gram = pairs.inner(particles, particles) + 1
    return Interaction(
        gram=gram,
        weights=jnp.zeros_like(gram),
        totals=jnp.full_like(gram[:, 0], pairs.num_particles),
        origin=jnp.zeros_like(particles[:1]),
        bandwidth=bandwidth,
    )


def repulsion(particles: Array, between: Interaction, pairs: Pairs) -> Array:
    """Returns R [n, D], the raw force on each particle.

    Args:
      particles: [n, D].
      between: Their interaction.
      pairs: How they meet, as `between` was made with.
    """
    shifted = particles - between.origin
    attraction = pairs.product(between.weights, shifted)
    return between.totals[:, None] * shifted - attraction


NAMES: dict[str, Callable[[], InteractionFn]] = {
    "rbf": radial,
    "imq": lambda: radial(imq()),
    "linear": lambda: linear,
}
