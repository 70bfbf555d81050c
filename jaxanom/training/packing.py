"""Joins the many small arrays of a training state, which cost a store the most.

Orbax takes some 2 ms of an array whatever its size, and a small UNet with its moments
is a thousand arrays, seven of eight of them small. Here those become one array of each
dtype. What was joined is told by the list of their paths, so that files may hold any
choice of them, also none.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

LARGEST = 2**14
"""Elements of an array that is still joined with others."""
PREFIX = "packed."


def join(
    flat: Mapping[str, jax.Array],
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Joins small arrays of which every process holds all elements.

    Args:
      flat: {path: array}, without empty arrays and typed keys.

    Returns:
      ({path: array}, what was joined), with one array [N] on the host for each dtype in
      the place of small ones; joined: {its path: the paths in it, in order}.
    """
    joined: dict[str, list[str]] = {}
    for path, leaf in flat.items():
        if leaf.size <= LARGEST and leaf.is_fully_replicated:
            joined.setdefault(f"{PREFIX}{leaf.dtype.name}", []).append(path)
    small = {path for paths in joined.values() for path in paths}
    values = jax.device_get({path: flat[path] for path in small})  # all at once
    together = {path: leaf for path, leaf in flat.items() if path not in small}
    for name, paths in joined.items():
        together[name] = np.concatenate([values[path].ravel() for path in paths])
    return together, joined


def wanted(
    flat: Mapping[str, jax.ShapeDtypeStruct], joined: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Returns what to ask of a store for `flat`: joined arrays on the host.

    Args:
      flat: {path: shape, dtype and sharding}, without empty arrays.
      joined: as `join` returned it.
    """
    small = {path for paths in joined.values() for path in paths}
    request: dict[str, Any] = {path: x for path, x in flat.items() if path not in small}
    for name, paths in joined.items():
        length = sum(math.prod(flat[path].shape) for path in paths)
        request[name] = np.empty(length, flat[paths[0]].dtype)
    return request


def part(
    stored: Mapping[str, Any],
    flat: Mapping[str, jax.ShapeDtypeStruct],
    joined: Mapping[str, Sequence[str]],
) -> dict[str, jax.Array]:
    """Inverse of `join`: takes joined arrays apart and places them.

    Args:
      stored: What a store returned for `wanted`.
      flat, joined: as for `wanted`.

    Returns:
      {path: array with the sharding of `flat`}.
    """
    parts = {path: leaf for path, leaf in stored.items() if path not in joined}
    for name, paths in joined.items():
        ends = np.cumsum([math.prod(flat[path].shape) for path in paths])
        pieces = np.split(np.asarray(stored[name]), ends[:-1])
        for path, piece in zip(paths, pieces, strict=True):
            parts[path] = _placed(piece, flat[path])
    return parts


def _placed(values: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Puts what every process read onto its own devices; they need not talk."""
    values = values.reshape(leaf.shape)
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: values[index]
    )
