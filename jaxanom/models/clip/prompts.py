"""Learnable vectors among words: where they stand, and the text tower's input.

A `Layout` is made once on the host from a template and class names; `assemble` then
places prompt vectors after the embedding lookup, so that the token table is never
copied or written to, neither under `vmap` nor in the backward pass.

    template = prompts.parse("a {name} with {0:4} damage", 4, tokenizer.words)
    layout = prompts.make_layout(template, tokenizer.words(names), tokenizer)
    prompt = prompts.assemble(layout, table, prompt_vectors)
    tower.apply({"params": params}, **prompt._asdict())
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.types import Array

NAME = "{name}"
"""Stands in a parsed template for the tokens of the class name."""

Template = tuple[int | str, ...]
"""Token ids >= 0; `~k` (that is -k - 1) for prompt vector k; `NAME`."""


class SpecialIds(Protocol):
    """What of a `Tokenizer` a layout needs."""

    bos_id: int
    eos_id: int
    pad_id: int


class Layout(flax.struct.PyTreeNode):
    """Sentences with open places.

    Attributes:
      input_ids: [..., L] int32; the padding id at the open places.
      slots: [..., L] int32, which prompt vector stands there; -1 where a word does.
      eos_positions: [...] int32.
      num_vectors: How many prompt vectors the template speaks of; static.
    """

    input_ids: Array
    slots: Array
    eos_positions: Array
    num_vectors: int = flax.struct.field(pytree_node=False)


class Prompt(NamedTuple):
    """What `TextTower` is called with.

    Attributes:
      token_embeddings: [..., L, D] float32, positions not added.
      eos_positions: [...] int32.
    """

    token_embeddings: Array
    eos_positions: Array


def parse(
    template: str, num_vectors: int, words: Callable[[Sequence[str]], list[list[int]]]
) -> Template:
    """Reads a template such as "a {name} with {vectors}".

    Places: `{name}` the class name; `{vectors}` all prompt vectors in order; `{2}` one
    of them; `{0:4}` a run, end excluded. A vector may stand in several places. Words
    are cut at places, so "{name}s" is the name and the word "s".

    Args:
      template: Words and places.
      num_vectors: N, rows of the prompt vectors.
      words: `Tokenizer.words`.

    Raises:
      UserError: an unknown place, or a vector outside 0 to N - 1.
    """
    parts = re.split(r"(\{[^}]*\})", template)
    texts = iter(words(parts[0::2]))
    pieces: list[int | str] = []
    for part in parts:
        if not part.startswith("{"):
            pieces += next(texts)
        elif part == NAME:
            pieces.append(NAME)
        else:
            pieces += [~k for k in _run(part, num_vectors)]
    return tuple(pieces)


def _run(place: str, num_vectors: int) -> range:
    ends = re.fullmatch(r"\{(\d+)(?::(\d+))?\}", place)
    if place == "{vectors}":
        run = range(num_vectors)
    elif ends:
        start = int(ends[1])
        run = range(start, start + 1 if ends[2] is None else int(ends[2]))
    else:
        raise UserError(
            f"place {place} is unknown; use {NAME}, {{vectors}}, {{2}} or {{0:4}}"
        )
    if not run or run[-1] >= num_vectors:
        raise UserError(f"place {place} does not fit num_vectors={num_vectors}")
    return run


def make_layout(
    template: Template,
    names: Sequence[Sequence[int]],
    special: SpecialIds,
    num_vectors: int | None = None,
    length: int | None = None,
) -> Layout:
    """Lays out one sentence per class: start, template, end, padding.

    Args:
      template: From `parse`, or by hand.
      names: Token ids of K class names, as `Tokenizer.words` gives them.
      special: A `Tokenizer`.
      num_vectors: N; None is one more than the largest vector of the template.
      length: L; None is the longest sentence. The tower is causal and read at the end
        token, so columns after it cost time and change no feature; the last hidden
        states that diffusion models read do need their full length.

    Returns:
      Layout over [K, L], on the host.

    Raises:
      UserError: a sentence is longer than `length`, or a vector is outside N.
    """
    rows = []
    for name in names:
        pieces = [name if piece == NAME else [piece] for piece in template]
        words = itertools.chain.from_iterable(pieces)
        rows.append([special.bos_id, *words, special.eos_id])
    if not rows:
        raise UserError("names is empty; give the tokens of one class name at least")
    longest = max(len(row) for row in rows)
    length = longest if length is None else length
    if longest > length:
        which = [len(row) for row in rows].index(longest)
        raise UserError(
            f"sentence {which} takes {longest} tokens with start and end, "
            f"length={length}; use fewer prompt vectors, a shorter template or name"
        )
    codes = np.full((len(rows), length), special.pad_id, np.int32)
    for line, row in zip(codes, rows, strict=True):
        line[: len(row)] = row
    slots = np.where(codes < 0, ~codes, -1)
    last = int(slots.max())
    num_vectors = last + 1 if num_vectors is None else num_vectors
    if last >= num_vectors:
        raise UserError(
            f"the template uses prompt vector {last}, num_vectors={num_vectors}"
        )
    return Layout(
        input_ids=np.where(codes < 0, special.pad_id, codes),
        slots=slots,
        eos_positions=np.array([len(row) - 1 for row in rows], np.int32),
        num_vectors=num_vectors,
    )


def assemble(layout: Layout, table: Array, prompt_vectors: Array) -> Prompt:
    """Looks the words up and puts the vectors between them.

    Words are given: no gradient reaches `table`. Leading axes multiply, so P particles
    over K classes give [P, K]; for vectors that belong to a class or an image, `vmap`
    over layout and vectors, or over vectors alone.

    Args:
      layout: Sentences [..., L].
      table: [V, D], the tower's `embeddings/token_embedding/embedding`.
      prompt_vectors: [N, D] or [P, N, D], any number of leading axes.

    Returns:
      Prompt over [leading axes of vectors, leading axes of layout].

    Raises:
      UserError: the vectors are not N, or not as wide as the table.
    """
    *leading, num_vectors, width = prompt_vectors.shape
    if num_vectors != layout.num_vectors or width != table.shape[1]:
        raise UserError(
            f"prompt_vectors [{num_vectors}, {width}] do not fit the layout's "
            f"num_vectors={layout.num_vectors} and the table's width {table.shape[1]}"
        )
    words = jax.lax.stop_gradient(table)[layout.input_ids]  # [..., L, D]
    embeddings = inject(words, jnp.asarray(layout.slots), prompt_vectors)
    eos_positions = jnp.asarray(layout.eos_positions)
    eos_positions = jnp.broadcast_to(eos_positions, (*leading, *eos_positions.shape))
    return Prompt(embeddings, eos_positions)


def inject(token_embeddings: Array, slots: Array, prompt_vectors: Array) -> Array:
    """Replaces the embeddings at open places by prompt vectors.

    Args:
      token_embeddings: [..., L, D].
      slots: [..., L] int32, which vector; -1 keeps the embedding.
      prompt_vectors: [N, D], with any leading axes.

    Returns:
      [leading axes of vectors, ..., L, D].
    """
    placed = jnp.take(prompt_vectors, jnp.maximum(slots, 0), axis=-2)
    return jnp.where(slots[..., None] >= 0, placed, token_embeddings)
