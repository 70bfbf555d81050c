"""Trees of arrays by path: split, merge, flatten, measure."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxanom.errors import UserError
from jaxanom.types import Array


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"a/b/c": leaf} for a nested dict."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def split(
    tree: Mapping[str, Any], patterns: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a nested dict by parameter path.

    Args:
      tree: nested dict of leaves.
      patterns: regular expressions, matched against the whole path "a/b/c".

    Returns:
      (selected, rest); `merge(selected, rest)` is the input again.

    Raises:
      UserError: no path matches; the message shows paths that exist.
    """
    flat = flatten(tree)
    compiled = [re.compile(pattern) for pattern in patterns]
    selected = {
        path: leaf
        for path, leaf in flat.items()
        if any(pattern.fullmatch(path) for pattern in compiled)
    }
    if flat and not selected:
        examples = ", ".join(list(flat)[:5])
        raise UserError(
            f"no parameter path matches {list(patterns)}; paths look like: {examples}"
        )
    rest = {path: leaf for path, leaf in flat.items() if path not in selected}
    return unflatten(selected), unflatten(rest)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Joins two nested dicts with disjoint leaves.

    Raises:
      UserError: a path occurs in both.
    """
    flat_first, flat_second = flatten(first), flatten(second)
    both = sorted(flat_first.keys() & flat_second.keys())
    if both:
        raise UserError(f"parameter paths occur twice: {both[:5]}")
    return unflatten({**flat_first, **flat_second})


def check_same_shapes(params: Any, target: Any, where: str) -> None:
    """Compares paths and shapes of two nested dicts.

    Raises:
      UserError: they differ; names up to five paths, and `where` they were found.
    """
    wrong = differences(
        *(
            {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}
            for tree in (params, target)
        )
    )
    if wrong:
        raise UserError(
            f"{where} holds the parameters of another model; {len(wrong)} paths "
            f"differ, such as {'; '.join(wrong[:5])}"
        )


def differences(stored: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    """Lists the paths at which what is there is not what is wanted, for a message.

    Args:
      stored, target: {path: what tells a leaf, such as its shape}.
    """
    return [
        f"{path}: wanted {target.get(path, 'nothing')}, "
        f"found {stored.get(path, 'nothing')}"
        for path in sorted(stored.keys() | target.keys())
        if stored.get(path) != target.get(path)
    ]


def fixed_batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields batches of row numbers of one length, so that one program serves all.

    The last batch is filled up with the last row.

    Args:
      count: Number of rows, at least one.
      size: Rows of a batch.

    Yields:
      (row numbers [size] int, how many of them are not filling).
    """
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield rows, min(size, count - start)


def batched(function: Callable[..., Any], batch_size: int, *arrays: Array) -> Any:
    """Runs a jitted function over rows in batches of one shape; joins on the host.

    Args:
      function: Arrays [B, ...] -> a tree of arrays [B, ...].
      batch_size: B; the last batch is filled up with its last row.
      *arrays: [N, ...] each, N >= 1.
    """
    parts = []
    for rows, count in fixed_batches(len(arrays[0]), batch_size):
        output = function(*(array[rows] for array in arrays))
        parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], output))
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def ravel_particles(tree: Any) -> tuple[Array, Callable[[Array], Any]]:
    """Flattens leaves [P, ...] into one matrix [P, D] and returns the way back.

    The matrix is float32, or float64 where a leaf is.
    """
    leaves, treedef = jax.tree.flatten(tree)
    dtype = jnp.result_type(jnp.float32, *leaves)
    num_particles = leaves[0].shape[0]
    shapes = [leaf.shape for leaf in leaves]
    dtypes = [leaf.dtype for leaf in leaves]
    widths = [leaf.size // num_particles for leaf in leaves]
    matrix = jnp.concatenate(
        [leaf.reshape(num_particles, -1).astype(dtype) for leaf in leaves], axis=1
    )

    def unravel(flat: Array) -> Any:
        ends = [sum(widths[: i + 1]) for i in range(len(widths))]
        parts = jnp.split(flat, ends[:-1], axis=1)
        return treedef.unflatten(
            [
                part.reshape(shape).astype(dtype)
                for part, shape, dtype in zip(parts, shapes, dtypes, strict=True)
            ]
        )

    return matrix, unravel


def num_params(tree: Any) -> int:
    """Returns the number of values in all leaves."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))
