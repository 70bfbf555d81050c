"""Masks on the latent grid, masked cross-attention, and the two prompt contexts.

arXiv 2411.16767, Eqs. 10-11: cross-attention normalises each group of tokens on its own
and every query reads one group, chosen by the mask. One softmax over both groups with a
bias of minus infinity on the other group is the same function.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.types import Array

FORBIDDEN = -1e9
POOLINGS = ("max", "nearest", "area")


class Contexts(NamedTuple):
    """Text-tower outputs, one row a prompt.

    Attributes:
      defect: [K, L, D], row k for defect type k; row 0 ("good") is the hole's prompt.
      background: [C, L, D], row c for category c.
      hole: [L, D], what the masked part is called in the background branch.
    """

    defect: Array
    background: Array
    hole: Array


def pool_mask(mask: Array, grid: tuple[int, int], how: str = "max") -> Array:
    """Brings a binary mask to a coarser grid and keeps it binary.

    Args:
      mask: [B, H, W] of 0 and 1.
      grid: (h, w); H and W are multiples of it.
      how: "max" (any hit, so that a small defect survives), "nearest" (the pixel at
        the cell's corner), "area" (at least half of the cell).

    Returns:
      [B, h, w] float32 of 0 and 1. The loss and the sampler are only right for binary
      masks, so nothing in between ever leaves this function.
    """
    if how not in POOLINGS:
        raise UserError(f"mask pooling {how!r}; choose one of {POOLINGS}")
    batch, height, width = mask.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise UserError(
            f"a mask of {height}x{width} does not pool to {rows}x{columns}; "
            "set config.data.image_size to a multiple"
        )
    cells = mask.reshape(batch, rows, height // rows, columns, width // columns)
    if how == "max":
        pooled = cells.max((2, 4))
    elif how == "nearest":
        pooled = cells[:, :, 0, :, 0]
    else:
        pooled = cells.astype(jnp.float32).mean((2, 4))
    return (pooled >= 0.5).astype(jnp.float32)


def attention_bias(
    mask: Array,
    num_inside: int,
    num_outside: int,
    grids: Sequence[tuple[int, int]],
    how: str = "max",
) -> dict[int, Array]:
    """Which tokens each query of each cross-attention layer may read.

    Args:
      mask: [B, h, w] binary, on the latent grid.
      num_inside: tokens (first in the context) for queries inside the mask.
      num_outside: tokens (after them) for queries outside.
      grids: (rows, columns) of every cross-attention layer.
      how: pooling to a layer's grid, see `pool_mask`.

    Returns:
      {rows * columns: [B, rows * columns, num_inside + num_outside] float32}, 0 where a
      query may read and -1e9 where not. No query is left without a token.
    """
    inside = jnp.arange(num_inside + num_outside) < num_inside
    biases = {}
    for rows, columns in dict.fromkeys(grids):
        pooled = pool_mask(mask, (rows, columns), how).reshape(mask.shape[0], -1, 1)
        allowed = (pooled > 0.5) == inside
        biases[rows * columns] = jnp.where(allowed, 0.0, FORBIDDEN)
    return biases


def paired_context(
    contexts: Contexts, defect_id: Array, category_id: Array, grouped: bool
) -> tuple[Array, Array]:
    """Returns the contexts of the defect branch C1 and of the background branch C2.

    Args:
      contexts: prompt rows.
      defect_id, category_id: [B] int32.
      grouped: with masked cross-attention C1 = [defect; background] and C2 = [hole;
        background], [B, 2L, D] each; without it the plain prompts, [B, L, D] each.
    """
    defect = contexts.defect[defect_id]
    background = contexts.background[category_id]
    if not grouped:
        return defect, background
    hole = jnp.broadcast_to(contexts.hole, background.shape)
    return (
        jnp.concatenate([defect, background], 1),
        jnp.concatenate([hole, background], 1),
    )


def draw_masks(bank: Array, num_masks: int, key: Array) -> Array:
    """Draws masks from p(m): training masks, randomly flipped and shifted.

    arXiv 2411.16767 draws masks independently of the image they go on. A shift moves a
    mask by whole cells and never over the border, so it keeps its area.

    Args:
      bank: [M, h, w] binary, none of them empty.
      num_masks: how many to draw.
      key: random key.

    Returns:
      [num_masks, h, w] float32 binary.
    """

    def draw(key: Array) -> Array:
        key_row, key_flip, key_rows, key_columns = jax.random.split(key, 4)
        mask = bank[jax.random.randint(key_row, (), 0, bank.shape[0])]
        flips = jax.random.bernoulli(key_flip, 0.5, (2,))
        mask = jnp.where(flips[0], mask[::-1], mask)
        mask = jnp.where(flips[1], mask[:, ::-1], mask)
        mask = jnp.roll(mask, _free_shift(mask.any(1), key_rows), axis=0)
        return jnp.roll(mask, _free_shift(mask.any(0), key_columns), axis=1)

    return jax.vmap(draw)(jax.random.split(key, num_masks)).astype(jnp.float32)


def _free_shift(occupied: Array, key: Array) -> Array:
    """Draws a shift that keeps the occupied stretch [n] inside 0..n-1."""
    size = occupied.shape[0]
    first = jnp.argmax(occupied)
    last = size - 1 - jnp.argmax(occupied[::-1])
    return jax.random.randint(key, (), -first, size - last)


def mask_bank(masks: Sequence[np.ndarray], limit: int = 512) -> np.ndarray:
    """Stacks the non-empty masks of a training set, [M, H, W] uint8, evenly thinned.

    Raises:
      UserError: there is none.
    """
    found = [np.asarray(mask, np.uint8) for mask in masks if np.any(mask)]
    if not found:
        raise UserError(
            "no training defect has a mask, so there is no p(m) to draw from; "
            "add ground_truth/<defect>/<image>_mask.png"
        )
    keep = np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int)
    return np.stack([found[number] for number in keep])
