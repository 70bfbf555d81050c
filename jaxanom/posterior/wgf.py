"""Wasserstein gradient flows of the KL divergence, on smoothed densities or functions.

The gradient of log q is what a finite number of particles does not have; the three
flows smooth it differently (arXiv 1807.01750, 1709.09195, 1805.11659). Symbols as in
`kernels`: S_i = sum_j k_ij, R_i the raw force.
"""

import jax.numpy as jnp
from jax.scipy import linalg

from jaxanom.errors import UserError
from jaxanom.posterior import kernels
from jaxanom.posterior.fields import Flow
from jaxanom.posterior.kernels import Interaction
from jaxanom.posterior.pairs import Pairs
from jaxanom.types import Array

GFSF_FORMS = ("compact", "reference")


def _drive(grad_log_p: Array, between: Interaction, pairs: Pairs) -> Array:
    return grad_log_p


def gfsd() -> Flow:
    """Smoothed density: v_i = grad log p(x_i) + R_i / S_i (arXiv 1807.01750)."""

    def push(particles: Array, between: Interaction, pairs: Pairs) -> Array:
        density = between.gram.sum(1, keepdims=True)
        return kernels.repulsion(particles, between, pairs) / density

    return Flow(_drive, push)


def blob() -> Flow:
    """Blob: GFSD's force plus sum_j w_ij (x_i - x_j) / S_j (arXiv 1709.09195)."""

    def push(particles: Array, between: Interaction, pairs: Pairs) -> Array:
        density = between.gram.sum(1)
        force = kernels.repulsion(particles, between, pairs) / density[:, None]
        weights = between.weights / pairs.gather(density)[None, :]
        back = between._replace(weights=weights, totals=weights.sum(1))
        return force + kernels.repulsion(particles, back, pairs)

    return Flow(_drive, push)


def gfsf(ridge: float = 1e-2, form: str = "compact") -> Flow:
    """Smoothed functions: v = grad log p + (K + ridge max(K) I)^{-1} R.

    Args:
      ridge: Relative to the largest entry of K, >= 0.
      form: "compact" as above; "reference" as the released code has it,
        (K + ridge max(K) I)^{-1} diag(S) x - x over h, whose ridge pulls particles
        towards the origin by about `ridge`.

    Raises:
      UserError: An unknown form, or a negative ridge.
    """
    if form not in GFSF_FORMS or ridge < 0:
        raise UserError(
            f"gfsf with form={form!r}, ridge={ridge}; choose one of {GFSF_FORMS} and "
            "a ridge >= 0"
        )

    def push(particles: Array, between: Interaction, pairs: Pairs) -> Array:
        gram = pairs.gather(between.gram)
        identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
        inverse = linalg.inv(gram + ridge * jnp.max(gram) * identity)[pairs.rows]
        if form == "compact":
            return pairs.product(inverse, kernels.repulsion(particles, between, pairs))
        weighed = between.gram.sum(1, keepdims=True) * particles
        return (pairs.product(inverse, weighed) - particles) / between.bandwidth

    return Flow(_drive, push)
