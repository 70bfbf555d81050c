"""Where defects go: masks drawn from p(m), and the plan of a generated set."""

from collections.abc import Sequence
from typing import NamedTuple

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


class Request(NamedTuple):
    """One pair to generate.

    Attributes:
      number: Place k in the plan, which seeds its noise.
      category, defect_type: What to draw.
      normal: Record number of the normal image to draw it on.
      mask: [H, W] uint8, where.
    """

    number: int
    category: str
    defect_type: str
    normal: int
    mask: np.ndarray


def plan(
    dataset: catalog.Dataset, num_images: int, seed: int, per_image: int = 1
) -> list[Request]:
    """Chooses images, defect types and masks; entry k depends on (seed, k) alone.

    Every (category, defect type) with a training mask takes its turn. Masks come from
    that pair's own training defects, flipped and shifted, independently of the image;
    each normal image is equally likely.

    Args:
      dataset: The training part.
      num_images: Length of the plan.
      seed: Decides all draws.
      per_image: Entries in a row that share all but their number, and so one inversion.

    Raises:
      UserError: No training defect has a mask.
    """
    banks = _mask_banks(dataset)
    pairs = list(banks)
    key = jax.random.key(seed)
    masks, normals = {}, {}
    for number, pair in enumerate(pairs):
        normals[pair] = catalog.select(dataset, None, pair[0], anomalous=False)
        count = -(-num_images // (per_image * len(pairs)))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, number), jnp.arange(count)
        )
        drawn = _draw_one_each(jnp.asarray(banks[pair]), keys)
        masks[pair] = np.asarray(drawn, np.uint8)
    requests = []
    for number in range(num_images):
        place = number // per_image
        turn, which = divmod(place, len(pairs))
        pair = pairs[which]
        pool = normals[pair]
        normal = pool[np.random.default_rng([seed, place]).integers(len(pool))]
        requests.append(Request(number, *pair, normal, masks[pair][turn]))
    return requests


@jax.jit
def _draw_one_each(bank: Array, keys: Array) -> Array:
    """Draws one mask [H, W] per key, [N, H, W]."""
    return jax.vmap(lambda key: draw_masks(bank, 1, key)[0])(keys)


def _mask_banks(dataset: catalog.Dataset) -> dict[tuple[str, str], np.ndarray]:
    """Returns {(category, defect type): its training masks}; pairs without any miss."""
    banks = {}
    for category in dataset.categories:
        for defect_type in dataset.defect_types[1:]:
            numbers = catalog.select(dataset, None, category, defect_type)
            masks = [dataset.load(dataset.records[number])[1] for number in numbers]
            if any(mask.any() for mask in masks):
                banks[category, defect_type] = mask_bank(masks)
    if not banks:
        mask_bank(())  # raises, and says what is missing
    return banks
