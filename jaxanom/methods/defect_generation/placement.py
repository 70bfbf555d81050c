"""Masks drawn from p(m), independently of the image they go on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.data import catalog
from jaxanom.errors import UserError
from jaxanom.methods.defect_generation import model
from jaxanom.types import Array, PRNGKey


def draw_masks(bank: Array, num_masks: int, key: PRNGKey) -> Array:
    """Draws masks from p(m): training masks, randomly flipped and shifted.

    arXiv 2411.16767 draws masks independently of the image they go on. A shift moves a
    mask by whole cells and never over the border, so it keeps its area.

    Args:
      bank: [M, h, w] binary, none of them empty.
      num_masks: How many to draw.
      key: Decides all draws.

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
      UserError: There is none.
    """
    present = [np.asarray(mask, np.uint8) for mask in masks if np.any(mask)]
    if not present:
        raise UserError(
            "no training defect has a mask, so there is no p(m) to draw from; "
            "add ground_truth/<defect>/<image>_mask.png"
        )
    keep = np.linspace(0, len(present) - 1, min(limit, len(present)))
    return np.stack([present[number] for number in keep.round().astype(int)])


def latent_bank(dataset: catalog.Dataset, grid: tuple[int, int], pooling: str) -> Array:
    """Pools the training masks to the latent grid, [M, h, w]; drops those that vanish.

    Raises:
      UserError: No training defect has a mask, or none survives the pooling.
    """
    numbers = catalog.select(dataset, anomalous=True)
    masks = [dataset.load(dataset.records[number])[1] for number in numbers]
    pooled = np.asarray(model.pool_mask(mask_bank(masks), grid, pooling))
    kept = pooled[pooled.any((1, 2))]
    if not len(kept):
        raise UserError(
            f"every training mask vanishes on the latent grid {grid}; set "
            "config.defect_generation.latent_pooling='max'"
        )
    return jnp.asarray(kept)
