"""Planar flows: cheap maps that bend a Gaussian, with their log-determinants.

Rezende & Mohamed, arXiv 1505.05770, section 4.1:

    z' = z + u tanh(w . z + b)
    log |det dz'/dz| = log |1 + (1 - tanh^2(w . z + b)) w . u|

A step with w . u < -1 folds the space and has no inverse. "none" lets it be, as
arXiv 2503.10080's code does; "invertible" replaces u by the u-hat of arXiv 1505.05770,
appendix A.1, for which w . u-hat > -1.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxanom.errors import UserError
from jaxanom.types import Array

CONSTRAINTS = ("none", "invertible")

FLOOR = 1e-5
"""Added to |det| before the logarithm, as in arXiv 2503.10080's code."""


class Planar(NamedTuple):
    """Parameters of K steps; leading axes broadcast against those of the points.

    Attributes:
      u: [..., K, D], where a step pushes to.
      w: [..., K, D], normal of its plane.
      b: [..., K], offset of its plane.
    """

    u: Array
    w: Array
    b: Array


def step(point: Array, u: Array, w: Array, b: Array) -> tuple[Array, Array]:
    """Moves points by one step.

    Args:
      point: [..., D].
      u, w: [..., D].
      b: [...].

    Returns:
      (moved point [..., D], log |det| [...]), float32.
    """
    bend = jnp.tanh(jnp.sum(w * point, -1) + b)  # [...]
    slope = 1 - bend**2
    moved = point + u * bend[..., None]
    return moved, jnp.log(jnp.abs(1 + slope * jnp.sum(w * u, -1)) + FLOOR)


def push(point: Array, flow: Planar, constraint: str = "none") -> tuple[Array, Array]:
    """Moves points through all K steps.

    Args:
      point: [..., D], float32.
      flow: Its leading axes broadcast to those of `point`.
      constraint: One of `CONSTRAINTS`, explained above.

    Returns:
      (moved point [..., D], sum of the log-determinants [...]).

    Raises:
      UserError: an unknown constraint.
    """
    chex.assert_equal_shape([flow.u, flow.w])
    chex.assert_equal_shape_prefix([flow.u, flow.b], flow.b.ndim)
    if constraint not in CONSTRAINTS:
        raise UserError(
            f"flow constraint {constraint!r} is unknown; choose one of {CONSTRAINTS}"
        )
    u = flow.u if constraint == "none" else invertible(flow.u, flow.w)
    rows = (jnp.moveaxis(u, -2, 0), jnp.moveaxis(flow.w, -2, 0))
    rows = (*rows, jnp.moveaxis(flow.b, -1, 0))  # K first: one row a step

    def move(carried, row):
        moved, logdet = step(carried[0], *row)
        return (moved, carried[1] + logdet), None

    shape = jnp.broadcast_shapes(point.shape[:-1], flow.b.shape[:-1])
    start = jnp.broadcast_to(point, (*shape, point.shape[-1]))
    (moved, logdet), _ = jax.lax.scan(move, (start, jnp.zeros(shape)), rows)
    return moved, logdet


def invertible(u: Array, w: Array) -> Array:
    """Returns u-hat [..., D]: u, moved along w until w . u-hat > -1.

    u-hat = u + (softplus(w . u) - 1 - w . u) w / |w|^2.
    """
    along = jnp.sum(w * u, -1, keepdims=True)
    target = jax.nn.softplus(along) - 1
    return u + (target - along) * w / jnp.sum(w**2, -1, keepdims=True)
