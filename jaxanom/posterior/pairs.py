"""Sums over pairs of particles, wherever the particles live.

Every flow of this package is written once, in terms of four operations: inner products
of the rows held here with all particles, products of such a [n, P] matrix with stacked
vectors, gathering, and means. `local` holds all particles in one place; `sharded` makes
the same operations out of collectives.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxanom.types import Array


class Pairs(NamedTuple):
    """How the n particles held here meet all P.

    Attributes:
      num_particles: P.
      rows: [n] int32, which particles are here.
      inner: ([n, D], [n, D]) -> [n, P], inner products of rows of the first with all
        rows of the second.
      product: ([n, P], [n, D]) -> [n, D], matrix times the stack of all particles.
      gather: [n, ...] -> [P, ...], all rows in order.
      mean: [n, D] -> [1, D], over all particles.
      columns: [n, d] -> D, the columns of whole particles where d are held here.
    """

    num_particles: int
    rows: Array
    inner: Callable[[Array, Array], Array]
    product: Callable[[Array, Array], Array]
    gather: Callable[[Array], Array]
    mean: Callable[[Array], Array]
    columns: Callable[[Array], int]


def matmul(x: Array, y: Array) -> Array:
    """Product of two matrices in their own precision, on accelerators too.

    Squared distances are small differences of products: with inputs rounded to
    bfloat16, as TPUs round them unless told not to, near particles have none.
    """
    return jnp.matmul(x, y, precision="highest")


def local(num_particles: int) -> Pairs:
    """Returns the operations for particles that are all here."""
    return Pairs(
        num_particles=num_particles,
        rows=jnp.arange(num_particles),
        inner=lambda x, y: matmul(x, y.T),
        product=matmul,
        gather=lambda x: x,
        mean=lambda x: jnp.mean(x, axis=0, keepdims=True),
        columns=lambda x: x.shape[1],
    )


def diagonal(matrix: Array, pairs: Pairs) -> Array:
    """Returns the entries [n] of rows [n, P] that pair a particle with itself."""
    return jnp.take_along_axis(matrix, pairs.rows[:, None], axis=1)[:, 0]


def is_self(pairs: Pairs) -> Array:
    """Returns [n, P] bool, True where a row meets itself."""
    return pairs.rows[:, None] == jnp.arange(pairs.num_particles)


def squared_distances(particles: Array, pairs: Pairs | None = None) -> Array:
    """Squared distances of the rows here to all particles, by one matrix product.

    The mean is subtracted first, or nearly coincident particles far from the origin
    would lose their digits; negative rounding is cut off and the diagonal is exactly 0.

    Args:
      particles: [n, D].
      pairs: How they meet; None where all particles are here.

    Returns:
      [n, P], >= 0.
    """
    pairs = local(particles.shape[0]) if pairs is None else pairs
    centred = particles - pairs.mean(particles)
    inner = pairs.inner(centred, centred)  # [n, P]
    norms = diagonal(inner, pairs)
    r2 = norms[:, None] + pairs.gather(norms)[None, :] - 2 * inner
    return jnp.where(is_self(pairs), 0.0, jnp.maximum(r2, 0.0))


def mean_distance(particles: Array) -> Array:
    """Returns the mean distance of two different particles; 0 for one particle."""
    num_particles = particles.shape[0]
    total = jnp.sum(jnp.sqrt(squared_distances(particles)))
    return total / max(num_particles * (num_particles - 1), 1)
