"""Prompt vectors among words, and the frozen text tower over all of them.

The sentence of a class is "X name" with X replaced by P + Q vectors. The text tower is
causal and read at the end-of-text token only, so columns after the last such token may
be cut: they cost three quarters of the time and change no feature. For the same reason
the normal and the abnormal prompt of a draw, which begin with the same context vectors,
may be encoded as one beginning with two ends.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.models.clip import prompts, shared_prefix, towers
from jaxanom.types import Array, Params

RENAMED = {
    **dict.fromkeys(("macaroni1", "macaroni2"), "macaroni"),
    **dict.fromkeys(("pcb1", "pcb2", "pcb3", "pcb4"), "printed circuit board"),
    "pipe_fryum": "pipe fryum",
    "chewinggum": "chewing gum",
    "metal_nut": "metal nut",
}
"""Categories that the released code words differently."""


class Names(NamedTuple):
    """Class names around the open places; frozen.

    Attributes:
      words: [C, L, D] float32 token embeddings, any value at the open places.
      eos_positions: [C] int32.
    """

    words: Array
    eos_positions: Array


def class_name(category: str, wording: str) -> str:
    """Returns the words for a category; `wording` is "released" or "spaced"."""
    name = RENAMED.get(category, category)
    return (name if wording == "released" else name.replace("_", " ")).lower()


def names(
    words: Sequence[Sequence[int]],
    special: prompts.SpecialIds,
    table: Array,
    num_vectors: int,
    length: int | None = None,
) -> Names:
    """Looks up the words of C class names.

    Args:
      words: Token ids of each name.
      special: Start, end and padding ids.
      table: [V, D], the tower's token embeddings.
      num_vectors: P + Q.
      length: L; None cuts after the last end token.

    Raises:
      UserError: A sentence is longer than `length`.
    """
    template = (*(~k for k in range(num_vectors)), prompts.NAME)
    layout = prompts.make_layout(template, words, special, num_vectors, length)
    return Names(
        jnp.asarray(np.asarray(table, np.float32)[np.asarray(layout.input_ids)]),
        jnp.asarray(layout.eos_positions),
    )


def assemble(known: Names, prompt_vectors: Array, category_id: Array) -> Array:
    """Puts the vectors into the sentences of their images.

    Args:
      known: Names of C classes.
      prompt_vectors: [N, ..., P + Q, D].
      category_id: [N].

    Returns:
      [N, ..., L, D], positions not added.
    """
    words = known.words[category_id]  # [N, L, D]
    middle = (1,) * (prompt_vectors.ndim - 3)
    words = words.reshape(words.shape[0], *middle, *words.shape[1:])
    num_vectors = prompt_vectors.shape[-2]
    slots = np.full(words.shape[-2], -1, np.int32)  # -1 where a word stands
    slots[1 : 1 + num_vectors] = np.arange(num_vectors)
    return prompts.inject(words, slots, prompt_vectors)


def encode(
    tower: towers.TextTower,
    params: Params,
    known: Names,
    prompt_vectors: Array,
    category_id: Array,
    chunk: int | None = None,
) -> Array:
    """Runs the text tower once over every image, draw and bank entry.

    Args:
      tower: Frozen; gradients reach the prompt vectors.
      params: A whole CLIP's.
      known: Names of C classes.
      prompt_vectors: [N, ..., P + Q, D].
      category_id: [N].
      chunk: Sentences at a time, which bounds the memory; None takes all at once.

    Returns:
      [N, ..., D] text features, not normalised.
    """
    *lead, num_vectors, width = prompt_vectors.shape
    rows = prompt_vectors.reshape(-1, num_vectors, width)
    variables = {
        "params": {key: params[key] for key in ("text_model", "text_projection")}
    }

    def batch(rows: Array, category_rows: Array) -> Array:
        return tower.apply(
            variables,
            token_embeddings=assemble(known, rows, category_rows),
            eos_positions=known.eos_positions[category_rows],
        ).text_features

    category_rows = jnp.repeat(category_id, rows.shape[0] // lead[0])
    return _in_chunks(batch, rows, category_rows, chunk).reshape(*lead, -1)


def encode_pairs(
    tower: towers.TextTower,
    params: Params,
    known: Names,
    prompt_vectors: Array,
    num_shared: int,
    category_id: Array,
    chunk: int | None = None,
) -> Array:
    """`encode` of pairs whose first vectors are equal; those are encoded once.

    Args:
      tower, params, known, category_id: As in `encode`.
      prompt_vectors: [N, 2, ..., P + Q, D]; [:, 1, ..., :P] is taken to equal
        [:, 0, ..., :P].
      num_shared: P.
      chunk: Pairs at a time; None takes all at once.

    Returns:
      [N, 2, ..., D] text features, not normalised.
    """
    num_images, _, *middle, num_vectors, width = prompt_vectors.shape
    by_pair = jnp.moveaxis(prompt_vectors, 1, -3)  # [N, ..., 2, P + Q, D]
    rows = by_pair.reshape(-1, 2, num_vectors, width)
    start = 1 + num_shared  # behind the start token
    positions = params["text_model"]["embeddings"]["position_embedding"]["embedding"]

    def batch(rows: Array, category_rows: Array) -> Array:
        placed = assemble(known, rows, category_rows)  # [M, 2, L, D]
        placed = placed + positions[: placed.shape[2]]
        hidden = shared_prefix.encode(
            params,
            tower.config,
            placed[:, 0, :start],
            placed[:, :, start:],
            tower.dtype,
        )  # [M, 2, L - start, D]
        ends = (known.eos_positions[category_rows] - start)[:, None, None, None]
        last = jnp.take_along_axis(hidden, ends, axis=2)[:, :, 0]
        return shared_prefix.project(params, tower.config, last)

    category_rows = jnp.repeat(category_id, rows.shape[0] // num_images)
    features = _in_chunks(batch, rows, category_rows, chunk)  # [M, 2, D]
    features = features.reshape(num_images, *middle, 2, -1)
    return jnp.moveaxis(features, -2, 1)


def _in_chunks(
    batch: Callable[[Array, Array], Array],
    rows: Array,
    category_rows: Array,
    chunk: int | None,
) -> Array:
    if chunk is None or chunk >= rows.shape[0]:
        return batch(rows, category_rows)

    def one(row: tuple[Any, Any]) -> Array:
        return batch(row[0][None], row[1][None])[0]

    return jax.lax.map(one, (rows, category_rows), batch_size=chunk)
