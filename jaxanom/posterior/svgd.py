"""Stein variational gradient descent (arXiv 1608.04471), plain, scaled and noisy."""

import jax.numpy as jnp
from jax.scipy import linalg

from jaxanom.errors import UserError
from jaxanom.posterior import kernels
from jaxanom.posterior.fields import Flow
from jaxanom.posterior.kernels import Interaction
from jaxanom.posterior.pairs import Pairs
from jaxanom.types import Array

NORMALISATIONS = ("mean", "sum")


def correlated_noise(
    noise: Array, between: Interaction, pairs: Pairs, jitter: float = 1e-6
) -> Array:
    """Mixes noise over particles so that its covariance is the gram matrix.

    Args:
      noise: [n, D] standard normal.
      between: How the particles act on one another.
      pairs: How they meet, as `between` was made with.
      jitter: Times P, added to the diagonal: coincident particles make K singular.

    Returns:
      [n, D].
    """
    gram = pairs.gather(between.gram)
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    root = linalg.cholesky(gram + jitter * gram.shape[0] * identity, lower=True)
    return pairs.product(root[pairs.rows], noise)


def flow(normalise: str = "mean", normalised_density: bool = False) -> Flow:
    """v_i = (1/P) [sum_j k_ij grad log p(x_j) + R_i] (Algorithm 1).

    Its noise has covariance K / P over particles (arXiv 1812.00071): with step eps and
    the factor sqrt(2 eps T) every number of particles then has, in continuous time, the
    product posterior as its law, so the spread is right where SVGD's collapses.

    Args:
      normalise: "mean" is the paper's 1/P; "sum" leaves it out, so that with the median
        bandwidth (where k of a typical pair is about 1/P) a step is as long as that of
        a lone particle.
      normalised_density: multiplies by (2 pi h)^(-D/2), the kernel that integrates to
        one; for few dimensions only, it over- or underflows from some dozens on.

    Raises:
      UserError: unknown `normalise`.
    """
    if normalise not in NORMALISATIONS:
        raise UserError(f"normalise={normalise!r}; choose one of {NORMALISATIONS}")

    def factor(x: Array, between: Interaction, pairs: Pairs) -> Array:
        share = 1.0 / pairs.num_particles if normalise == "mean" else 1.0
        if not normalised_density:
            return jnp.asarray(share, x.dtype)
        half = pairs.columns(x) / 2
        return share * jnp.exp(-half * jnp.log(2 * jnp.pi * between.bandwidth))

    def drive(grad_log_p: Array, between: Interaction, pairs: Pairs) -> Array:
        averaged = pairs.product(between.gram, grad_log_p)
        return factor(grad_log_p, between, pairs) * averaged

    def push(particles: Array, between: Interaction, pairs: Pairs) -> Array:
        force = kernels.repulsion(particles, between, pairs)
        return factor(particles, between, pairs) * force

    def mixed(noise: Array, between: Interaction, pairs: Pairs) -> Array:
        scale = jnp.sqrt(factor(noise, between, pairs))
        return scale * correlated_noise(noise, between, pairs)

    return Flow(drive, push, noise=mixed)
