"""A bank of patches: filled from the shots, thinned, measured on itself.

Every entry knows the shot it came from, so that a shot is scored as if it had not been
seen, its turned and mirrored copies left out with it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.models.features import patches
from jaxanom.types import Array

PROJECTED = 32
"""Random dimensions in which coverage is measured."""
ROUNDS = 512
"""Most passes over the entries while a coreset grows."""
NEIGHBOURS = 9
"""b of PatchCore's eq. 7."""


class Bank(NamedTuple):
    """Entries of one view of one category.

    Attributes:
      features: [N, D] unit.
      owners: [N] int32, the shot of each; `patches.PADDING` fills up.
    """

    features: Array
    owners: Array


def size(num_patches: int, coreset: float, most: int) -> int:
    """Returns how many of a number of patches a bank keeps, at least one."""
    return max(1, min(most, int(np.ceil(round(coreset * num_patches, 6)))))


def fill(features: np.ndarray, owners: np.ndarray, num_entries: int) -> Bank:
    """Keeps entries that cover the others, and fills up with padding.

    Args:
      features: [N, D] unit.
      owners: [N] int32.
      num_entries: Entries of the bank.
    """
    if len(features) > num_entries:
        kept = coreset(features, num_entries)
        features, owners = features[kept], owners[kept]
    missing = num_entries - len(features)
    return Bank(
        jnp.asarray(np.pad(features, ((0, missing), (0, 0)))),
        jnp.asarray(
            np.pad(
                owners.astype(np.int32), (0, missing), constant_values=patches.PADDING
            )
        ),
    )


def coreset(features: np.ndarray, count: int) -> np.ndarray:
    """Picks entries greedily, each time those that are farthest from the picked.

    PatchCore's Algorithm 1 (arXiv 2106.08265, section 3.2), after a random projection
    as there. Up to `ROUNDS` entries are picked one by one; of more, several at a time.

    Args:
      features: [N, D].
      count: M <= N.

    Returns:
      [M] int, the rows picked, ascending.
    """
    rng = np.random.default_rng(0)
    width = features.shape[1]
    if width > PROJECTED:
        matrix = rng.standard_normal((width, PROJECTED)).astype(np.float32)
        features = features @ (matrix / np.sqrt(np.float32(PROJECTED)))
    # The first is the one nearest to the mean, so that the order does not decide it.
    centre = features.mean(0, keepdims=True)
    first = int(np.argmin(((features - centre) ** 2).sum(1)))
    each = -(-count // ROUNDS)
    rounds = -(-(count - 1) // each)
    order = _farthest(jnp.asarray(features), jnp.asarray(first), rounds, each)
    return np.sort(np.concatenate([[first], np.asarray(order).ravel()[: count - 1]]))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _farthest(features: Array, first: Array, rounds: int, each: int) -> Array:
    """Returns [rounds, each] int: the rows that each pass adds."""
    squares = jnp.sum(features**2, axis=1)

    def distance(rows: Array) -> Array:  # of every entry to the nearest of `rows`
        picked = features[rows]
        return jnp.min(
            squares[:, None] - 2 * features @ picked.T + squares[rows], axis=1
        )

    def one_pass(nearest, _):
        _, rows = jax.lax.top_k(nearest, each)
        # What was picked is never picked again, however equal others are to it.
        nearest = jnp.minimum(nearest, distance(rows)).at[rows].set(-jnp.inf)
        return nearest, rows

    nearest = distance(first[None]).at[first].set(-jnp.inf)
    return jax.lax.scan(one_pass, nearest, None, length=rounds)[1]


@functools.partial(jax.jit, static_argnums=1)
def apart(features: Array, share: float = 1 / 7) -> Array:
    """Distance of patches to the nearest of their own image that is not beside them.

    What one shot says of how much normal patches differ, where no second shot does.

    Args:
      features: [K, h, w, D] unit.
      share: How far "beside" reaches, of the shorter side of the grid.

    Returns:
      [K, h, w] in [0, 1].
    """
    height, width = features.shape[1:3]
    reach = max(1, int(share * min(height, width)))
    rows, columns = (g.ravel() for g in np.mgrid[:height, :width])
    beside = np.maximum(
        np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
    )
    beside = jnp.asarray(beside <= reach)

    def one(image):
        flat = image.reshape(-1, image.shape[-1])
        best = jnp.max(jnp.where(beside, -1.0, flat @ flat.T), axis=1)
        return jnp.clip((1 - best) / 2, 0, 1).reshape(height, width)

    return jax.lax.map(one, features)


def reweighted(features: Array, bank: Bank, left_out: Array) -> Array:
    """Image score of PatchCore: the largest distance, less where the bank is sparse.

    arXiv 2106.08265, eqs. 6 and 7: with d the distance of the farthest patch to its
    nearest entry m, the score is (1 - exp(d) / sum of exp(distances to the b entries
    nearest to m)) d. Distances are Euclidean.

    Args:
      features: [h, w, D] unit.
      bank: Of this category.
      left_out: int32, a shot whose entries do not count.

    Returns:
      Scalar.
    """
    usable = (bank.owners != patches.PADDING) & (bank.owners != left_out)
    flat = features.reshape(-1, features.shape[-1])
    cosine = jnp.where(usable, flat @ bank.features.T, -jnp.inf)  # [h * w, N]
    patch = jnp.argmin(jnp.max(cosine, axis=1))
    nearest = jnp.argmax(cosine[patch])
    around = jnp.where(usable, bank.features @ bank.features[nearest], -jnp.inf)
    count = min(NEIGHBOURS, len(around))
    close, rows = jax.lax.top_k(around, count)
    to_patch = _euclidean(cosine[patch, rows])
    distance = _euclidean(cosine[patch, nearest])
    mass = jnp.sum(jnp.where(jnp.isfinite(close), jnp.exp(to_patch), 0.0))
    return (1 - jnp.exp(distance) / mass) * distance


def _euclidean(cosine: Array) -> Array:
    return jnp.sqrt(jnp.maximum(2 - 2 * cosine, 0))
