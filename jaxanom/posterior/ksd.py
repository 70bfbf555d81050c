"""Kernelised Stein discrepancy: how far particles are from a density, by gradients.

arXiv 1602.03253 and 1602.02964. A diagnostic: it needs no normalising constant and no
samples of the target.
"""

import jax.numpy as jnp

from jaxanom.posterior import kernels
from jaxanom.posterior import pairs as pairing
from jaxanom.types import Array


def stein_matrix(
    particles: Array,
    grad_log_p: Array,
    bandwidth: Array | float = 1.0,
    profile: kernels.RadialFn = kernels.rbf,
) -> Array:
    """The Stein kernel between particles, in O(P^2 D) by matrix products.

    For k(r2): s_i.s_j k - 2 k' (s_i - s_j).(x_i - x_j) - 2 D k' - 4 k'' r2.

    Args:
      particles: [P, D].
      grad_log_p: [P, D].
      bandwidth: The profile's h.
      profile: `kernels.rbf`, or `kernels.imq()`, which controls convergence.

    Returns:
      [P, P].
    """
    pairs = pairing.local(particles.shape[0])
    r2 = pairing.squared_distances(particles, pairs)
    value, first, second = profile(r2, jnp.asarray(bandwidth, particles.dtype))
    centred = particles - pairs.mean(particles)
    forth = pairs.inner(grad_log_p, centred)
    back = pairs.inner(centred, grad_log_p)
    own = pairing.diagonal(forth, pairs)
    moved = own[:, None] + own[None, :] - forth - back
    return (
        pairs.inner(grad_log_p, grad_log_p) * value
        - 2 * first * moved
        - 2 * particles.shape[1] * first
        - 4 * second * r2
    )


def statistics(matrix: Array) -> tuple[Array, Array]:
    """Returns the squared discrepancy of [P, P] as (V, U).

    V, the mean of all entries, is >= 0; U leaves the diagonal out, is unbiased and may
    be negative. U of a single particle is undefined and 0 here.
    """
    num_particles = matrix.shape[0]
    off_diagonal = jnp.sum(matrix) - jnp.trace(matrix)
    pairs = max(num_particles * (num_particles - 1), 1)
    return jnp.mean(matrix), off_diagonal / pairs
