"""Score channels C1 and C2: each maps evidence about an image to maps [B, m, m].

Reconstructed from the abstract: which channels the paper fuses is not known. C1
(language) and C2 (memory) are on by default and are WinCLIP's two scores with S* in
place of the class word; `generative.py` has C3 to C5. A channel has cells, variants of
its hyper-parameters; a row of the batch picks its cell, so that one program serves all.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxanom.methods.adp.memory import windows
from jaxanom.types import Array

EPSILON = 1e-6
TEMPERATURES = (0.07, 0.03, 0.15)
"""Cells of C1; the first is WinCLIP's, as its best reproduction has it."""


class Evidence(NamedTuple):
    """What all channels start from, for B images.

    Attributes:
      clip: CLIP's features.
      prototypes: [B, 2, K], g_n and g_a of each row's category.
      distances: [B, G, m, m], to the memory, by kind of feature.
      latents: [B, h, w, C] mean of the posterior, or None without C3 to C5.
      contexts: [B, 4, L, D]: normal, neutral, anomalous, empty.
      category_id, left_out: [B] int32, see `patches.distances`.
    """

    clip: windows.Features
    prototypes: Array
    distances: Array | None
    latents: Array | None
    contexts: Array
    category_id: Array
    left_out: Array


class Channel(NamedTuple):
    """A score channel.

    Attributes:
      name: As in the config key `adp.channels`.
      cells: what its variants are called, the default first.
      apply: (evidence, frozen, cell [B] int32) -> map [B, m, m], higher = anomalous.
    """

    name: str
    cells: tuple[str, ...]
    apply: Callable[[Evidence, dict, Array], Array]


def probability(features: Array, prototypes: Array, temperature: Array) -> Array:
    """P(anomalous), a softmax over two cosines.

    Args:
      features: [B, ..., K] unit.
      prototypes: [B, 2, K], normal and anomalous.
      temperature: [B].

    Returns:
      [B, ...] float32.
    """
    direction = prototypes[:, 1] - prototypes[:, 0]
    margin = jnp.einsum("b...k,bk->b...", features, direction)
    shape = (-1,) + (1,) * (margin.ndim - 1)
    return jax.nn.sigmoid(margin / temperature.reshape(shape))


def merge_windows(values: Array, size: int) -> Array:
    """Brings window scores back to patches by their harmonic mean, as WinCLIP does.

    A patch takes the harmonic mean over the windows it lies in, which leans to the
    lowest: one window that looks normal speaks for its patches.

    Args:
      values: [B, n, n] positive.
      size: k patches along a window's side.

    Returns:
      [B, n + k - 1, n + k - 1].
    """

    def spread(x):
        pad = ((0, 0), (size - 1, size - 1), (size - 1, size - 1))
        return jax.lax.reduce_window(
            x, 0.0, jax.lax.add, (1, size, size), (1, 1, 1), pad
        )

    return spread(jnp.ones_like(values)) / spread(1 / jnp.maximum(values, EPSILON))


def language_maps(evidence: Evidence, temperature: Array) -> tuple[Array, Array]:
    """C1 on CLIP's grid: harmonic over windows, over window sizes and the whole image.

    Args:
      evidence: What is known of B images.
      temperature: [B].

    Returns:
      (map [B, g, g], whole-image probability a_0 [B]).
    """
    prototypes = evidence.prototypes
    whole = probability(evidence.clip.whole, prototypes, temperature)
    inverse = 1 / jnp.maximum(whole, EPSILON)[:, None, None]
    count = 1
    for size, features in evidence.clip.windows.items():
        values = probability(features, prototypes, temperature)
        inverse = inverse + 1 / jnp.maximum(merge_windows(values, size), EPSILON)
        count += 1
    return count / inverse, whole


def to_grid(values: Array, side: int) -> Array:
    """Resizes maps [B, h, w] to [B, side, side], bilinear."""
    if values.shape[1:] == (side, side):
        return values
    return jax.image.resize(values, (values.shape[0], side, side), "linear")


def language(side: int, temperatures: tuple[float, ...]) -> Channel:
    """C1. The map is a logit, so that the fusion adds evidence, not probabilities."""

    def apply(evidence, frozen, cell):
        del frozen
        values, _ = language_maps(evidence, jnp.asarray(temperatures)[cell])
        values = jnp.clip(values, EPSILON, 1 - EPSILON)
        return to_grid(jnp.log(values) - jnp.log1p(-values), side)

    return Channel("language", tuple(f"tau {t}" for t in temperatures), apply)


def reference(mixtures: Array, names: tuple[str, ...]) -> Channel:
    """C2: a mixture of the distances to the memory.

    Args:
      mixtures: [M, G], see `bank.Groups`.
      names: M names of the mixtures.
    """

    def apply(evidence, frozen, cell):
        del frozen
        weights = jnp.asarray(mixtures)[cell]  # [B, G]
        return jnp.einsum("bg,bgij->bij", weights, evidence.distances)

    return Channel("reference", names, apply)


def image_evidence(evidence: Evidence, temperature: Array) -> Array:
    """a_0 as a logit, [B]."""
    whole = probability(evidence.clip.whole, evidence.prototypes, temperature)
    whole = jnp.clip(whole, EPSILON, 1 - EPSILON)
    return jnp.log(whole) - jnp.log1p(-whole)
