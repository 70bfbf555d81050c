"""The one table: parameter path -> PartitionSpec. Models stay unaware of it.

Two rules decide where a leaf lives, in this order:

1. `RULES`: the first pattern that matches the whole path gives the axes of tensor and
   particle parallelism. A dimension that the axis does not divide is an error.
2. `fsdp`: a leaf of at least `MIN_FSDP_SIZE` values is also split along its largest
   dimension that is still whole and that the axis divides. A leaf that is smaller, or
   has no such dimension, is held by every device: gathering it would cost more than
   keeping it.

With fsdp = model = particle = 1 everything is therefore replicated.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxanom.errors import UserError
from jaxanom.parallel.mesh import BATCH_AXES

MIN_FSDP_SIZE = 2**14

RULES: tuple[tuple[str, P], ...] = (
    # Stacked particles: every leaf is [num_particles, ...].
    (r"(.*/)?particles(/.*)?", P("particle")),
    # Projections into heads or hidden units split their outputs, the projections back
    # split their inputs, so that one sum per block crosses devices.
    (r".*/(q_proj|k_proj|v_proj|fc1|to_q|to_k|to_v)/kernel", P(None, "model")),
    (r".*/(out_proj|fc2|to_out_0)/kernel", P("model", None)),
    (r".*", P()),
)


def path_of(keys: tuple[Any, ...]) -> str:
    """Returns "a/b/0/c" for the key path of a leaf."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Returns how one leaf is split.

    Args:
      path: "a/b/c".
      shape: global shape.
      mesh: from `make_mesh`.

    Raises:
      UserError: a rule splits a dimension that the mesh axis does not divide.
    """
    rule = next(found for pattern, found in RULES if re.fullmatch(pattern, path))
    axes = list(rule) + [None] * (len(shape) - len(rule))
    for dimension, axis in enumerate(axes):
        if axis is None or mesh.shape[axis] == 1:
            continue
        if dimension >= len(shape) or shape[dimension] % mesh.shape[axis]:
            raise UserError(
                f"{path} of shape {shape} cannot be split along dimension {dimension} "
                f"into {axis}={mesh.shape[axis]} parts; set config.mesh.{axis}"
            )
    axes = [axis if axis and mesh.shape[axis] > 1 else None for axis in axes]
    return P(*_with_fsdp(axes[: len(shape)], shape, mesh.shape["fsdp"]))


def shardings(tree: Any, mesh: Mesh, memory_kind: str | None = None) -> Any:
    """Returns the tree with a NamedSharding in place of each leaf.

    Args:
      tree: arrays, ShapeDtypeStructs or numbers.
      mesh: from `make_mesh`.
      memory_kind: which memory of its device holds a part; None: the device's own.
    """

    def choose(keys, leaf):
        shape = getattr(leaf, "shape", ())  # a Python number has none
        axes = spec(path_of(keys), shape, mesh)
        return NamedSharding(mesh, axes, memory_kind=memory_kind)

    return jax.tree_util.tree_map_with_path(choose, tree)


def shardings_like(tree: Any, params: Any, mesh: Mesh) -> Any:
    """Shards optimiser state as the parameters that it belongs to.

    A leaf whose path ends in a parameter's path and that has the parameter's shape
    (moments, momentum) lives where the parameter lives; the rest (counters, factored
    moments, keys) is replicated.
    """
    shapes = {
        path_of(keys): leaf.shape
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def choose(keys, leaf):
        for start in range(len(keys)):
            path = path_of(keys[start:])
            if shapes.get(path) == leaf.shape:
                return NamedSharding(mesh, spec(path, leaf.shape, mesh))
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(choose, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows split over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def _with_fsdp(axes: list, shape: tuple[int, ...], size: int) -> list:
    """Adds the fsdp axis by rule 2 of this file."""
    if size == 1 or np.prod(shape, dtype=np.int64) < MIN_FSDP_SIZE:
        return axes
    free = [d for d in range(len(shape)) if axes[d] is None and shape[d] % size == 0]
    if free:
        axes[max(free, key=lambda d: shape[d])] = "fsdp"
    return axes
