"""Masks on the latent grid, masked cross-attention, and the prompts of both branches.

arXiv 2411.16767, Eqs. 10-11: cross-attention normalises each group of tokens on its own
and every query reads one group, chosen by the mask. One softmax over both groups with a
bias of minus infinity on the other group is the same function.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jaxanom.data import catalog
from jaxanom.errors import UserError, check_choice
from jaxanom.methods.defect_generation.options import POOLINGS, Training
from jaxanom.models import backbones
from jaxanom.types import Array

FORBIDDEN = -1e9


class Contexts(NamedTuple):
    """Text-tower outputs, one row a prompt.

    Attributes:
      defect: [K, L, D], row k for defect type k; row 0 ("good") is the hole's prompt,
        what the masked part is called in the background branch.
      background: [C, L, D], row c for category c.
    """

    defect: Array
    background: Array


class Prompted(NamedTuple):
    """What the two branches are told besides latents and timestep.

    Attributes:
      defect: Context of the defect branch, C1 [B, L', D].
      background: Context of the background branch, C2 [B, L', D].
      null: C1 with its defect tokens replaced by the hole's, for guidance.
      bias: {queries: [B, queries, L']} of masked cross-attention, or None.
      mask: [B, h, w, 1] binary.
    """

    defect: Array
    background: Array
    null: Array
    bias: dict[int, Array] | None
    mask: Array


def encode_prompts(
    text: backbones.TextEncoder, dataset: catalog.Dataset, training: Training
) -> Contexts:
    """Encodes one prompt per defect type and per category, and the hole's."""
    defects = [training.hole_prompt] + [
        _fill("defect_prompt", training.defect_prompt, defect=name)
        for name in dataset.defect_types[1:]
    ]
    categories = [
        _fill("background_prompt", training.background_prompt, category=name)
        for name in dataset.categories
    ]
    states = jnp.asarray(text.encode(defects + categories))
    return Contexts(states[: len(defects)], states[len(defects) :])


def _fill(key: str, template: str, **names: str) -> str:
    words = {field: name.replace("_", " ") for field, name in names.items()}
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"config.defect_generation.{key}={template!r}: the one field it may hold "
            f"is {{{next(iter(names))}}}"
        ) from error


def prompted(
    contexts: Contexts,
    mask: Array,
    defect_id: Array,
    category_id: Array,
    training: Training,
    grids: Sequence[tuple[int, int]],
) -> Prompted:
    """Looks the prompts up and spreads the mask over the cross-attention layers.

    With masked cross-attention C1 = [defect; background] and C2 = [hole; background],
    without it the plain prompts.

    Args:
      contexts: Prompt rows.
      mask: [B, h, w] binary, on the latent grid.
      defect_id, category_id: [B] int32.
      training: How the UNet is prompted.
      grids: (rows, columns) of every cross-attention layer.
    """
    defect = contexts.defect[defect_id]  # [B, L, D]
    background = contexts.background[category_id]
    null = jnp.broadcast_to(contexts.defect[0], defect.shape)
    bias = None
    if training.masked_attention:
        lengths = defect.shape[1], background.shape[1]
        bias = attention_bias(mask, *lengths, grids, training.attention_pooling)
        defect = jnp.concatenate([defect, background], 1)  # [B, 2L, D]
        background = null = jnp.concatenate([null, background], 1)
    return Prompted(defect, background, null, bias, mask[..., None])


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
    check_choice("mask pooling", how, POOLINGS)
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
    """Says which tokens each query of each cross-attention layer may read.

    Args:
      mask: [B, h, w] binary, on the latent grid.
      num_inside: Tokens (first in the context) for queries inside the mask.
      num_outside: Tokens (after them) for queries outside.
      grids: (rows, columns) of every cross-attention layer.
      how: Pooling to a layer's grid, see `pool_mask`.

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
