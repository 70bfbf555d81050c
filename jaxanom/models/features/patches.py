"""Patches of feature layers: joined to one vector each, and how far from a memory.

WinCLIP's reference score (arXiv 2303.14814, section 4.3): (1 - max cos) / 2 to all
remembered features of the same kind. Every entry knows the shot it came from, so that
a shot can be scored as if it had not been seen.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxanom.types import Array

PADDING = -2
"""Owner of rows that fill a bank up; never matched."""
NOBODY = -1
"""Shot to leave out where none is."""
ENTRIES = 8192
"""Entries of a bank that are compared at a time, so that products stay small."""


def unit(features: Array) -> Array:
    """Scales features [..., D] to length one; zeros stay zeros."""
    features = features.astype(jnp.float32)
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norm, 1e-12)


def mean_around(features: Array) -> Array:
    """Averages [B, h, w, D] over 3 x 3 neighbours; at the border over those there."""
    return nn.avg_pool(
        features.astype(jnp.float32), (3, 3), padding="SAME", count_include_pad=False
    )


def joined(features: Mapping[str, Array]) -> dict[str, Array]:
    """Layers pooled over 3 x 3 neighbours and concatenated, see `concatenated`.

    The manner of PatchCore (arXiv 2106.08265, section 3.1) with layers of equal weight;
    a patch must then match in all layers at one place. Each layer alone comes along.

    Args:
      features: {layer: [B, h, w, D]}.

    Returns:
      {"joined": [B, h', w', sum of D] unit} and, of several, every layer likewise.
    """
    layers = on_one_grid({name: mean_around(array) for name, array in features.items()})
    return {"joined": concatenated(layers), **(layers if len(layers) > 1 else {})}


def on_one_grid(features: Mapping[str, Array]) -> dict[str, Array]:
    """Resizes layers [B, h, w, D] to the finest grid of them, and makes them unit."""
    finest = max(array.shape[1:3] for array in features.values())
    return {
        name: unit(
            jax.image.resize(
                array, (array.shape[0], *finest, array.shape[-1]), "linear"
            )
        )
        for name, array in features.items()
    }


def concatenated(layers: Mapping[str, Array]) -> Array:
    """Joins unit layers [B, h, w, D] of one grid with equal weight; unit again."""
    return unit(jnp.concatenate(list(layers.values()), axis=-1))


def distances(
    features: Array,
    bank: Array,
    owners: Array,
    category_id: Array,
    left_out: Array,
) -> Array:
    """Distance of every patch to its nearest remembered one.

    Args:
      features: [B, h, w, D] unit.
      bank: [T, N, D] unit, one bank a category.
      owners: [T, N] int32.
      category_id: [B] int32.
      left_out: [B] int32, a shot whose entries do not count; `NOBODY` for none.

    Returns:
      [B, h, w] in [0, 1], (1 - max cos) / 2. A row without any entry left has 1.
    """

    def row(inputs):
        patches, category, shot = inputs
        entries, owner = bank[category], owners[category]
        usable = (owner != PADDING) & (owner != shot)
        best = _largest(patches.reshape(-1, patches.shape[-1]), entries, usable)
        return jnp.clip((1 - best) / 2, 0, 1).reshape(patches.shape[:2])

    # One image at a time: the products of a whole batch with its banks would not fit.
    return jax.lax.map(row, (features, category_id, left_out))


def _largest(patches: Array, entries: Array, usable: Array) -> Array:
    """Returns the largest cosine [P] of patches [P, D] to usable entries [N, D]."""

    def of(entries, usable):
        cosine = patches @ entries.T  # [P, N]
        return jnp.max(jnp.where(usable, cosine, -1.0), axis=1)

    if len(entries) <= ENTRIES:
        return of(entries, usable)
    whole = len(entries) // ENTRIES * ENTRIES
    parts = (
        entries[:whole].reshape(-1, ENTRIES, entries.shape[-1]),
        usable[:whole].reshape(-1, ENTRIES),
    )
    best = jnp.max(jax.lax.map(lambda part: of(*part), parts), axis=0)
    if whole < len(entries):
        best = jnp.maximum(best, of(entries[whole:], usable[whole:]))
    return best


def smoothing(side: int, spread: Array) -> Array:
    """Returns the matrix [side, side] of a Gaussian along one axis, rows sum to one.

    A map is enlarged, linearly between its cells, and smoothed at its full size; this
    is what that gives at the cells, in closed form: a cell's weight at distance d is
    the mean of the tent max(0, 1 - |d - u|) over u ~ N(0, s^2), s the spread. Rows
    are renormalised at the border, so that a constant map stays constant.

    Args:
      side: Side of the map.
      spread: Standard deviation, a scalar, in cells; 0 is the identity.
    """
    spread = jnp.maximum(spread, 1e-6)

    def ramp(x: Array) -> Array:  # mean of max(0, x - u)
        return x * norm.cdf(x / spread) + spread * norm.pdf(x / spread)

    place = jnp.arange(side, dtype=jnp.float32)
    # Distances only, or the differences of large numbers would lose digits.
    apart = jnp.abs(place[:, None] - place)
    weights = ramp(1 - apart) - 2 * ramp(-apart) + ramp(-1 - apart)
    weights = jnp.maximum(weights, 0)
    return weights / weights.sum(1, keepdims=True)
