"""Host batch -> global array; tree -> sharded tree; gather to host."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxanom.errors import UserError
from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import rules
from jaxanom.types import Batch

HOST_MEMORY = "pinned_host"
"""jax's name of the host's memory that a device copies from by itself."""


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Checks that rows split evenly over devices (and over microbatches).

    Args:
      batch_size: rows of the global batch.
      mesh: from `make_mesh`.
      accumulate: microbatches per optimiser step.

    Raises:
      UserError: they do not.
    """
    shards = meshes.num_batch_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"batch_size={batch_size} is not a multiple of mesh axes data*fsdp="
            f"{shards}; set config.data.batch_size"
        )
    if batch_size % (shards * accumulate):
        raise UserError(
            f"batch_size={batch_size} is not a multiple of mesh axes data*fsdp="
            f"{shards} times accumulate={accumulate}; set config.data.batch_size or "
            "config.phases.<name>.accumulate"
        )


def process_rows(batch_size: int, mesh: Mesh) -> tuple[int, ...]:
    """Returns which rows of a global batch the devices of this process hold.

    Args:
      batch_size: rows of the global batch.
      mesh: from `make_mesh`.

    Returns:
      Row numbers in order. Processes share rows where the mesh splits something else
      than the batch between them.
    """
    places = rules.rows(mesh).addressable_devices_indices_map((batch_size,))
    return tuple(
        sorted({row for (rows,) in places.values() for row in range(batch_size)[rows]})
    )


def own_rows(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Returns what `place_batch` wants of a batch that every process has made whole.

    Args:
      batch: numpy arrays [B, ...], equal on every process.
      mesh: from `make_mesh`.
    """
    if jax.process_count() == 1:
        return dict(batch)
    (count,) = {len(value) for value in batch.values()}
    rows = list(process_rows(count, mesh))
    return {key: value[rows] for key, value in batch.items()}


def place_batch(batch: Mapping[str, Any], mesh: Mesh, accumulate: int = 1) -> Batch:
    """Spreads the rows of a host batch over the mesh.

    Args:
      batch: numpy arrays [b, ...]; with several processes, this process's rows,
        see `process_rows`.
      mesh: from `make_mesh`.
      accumulate: microbatches per optimiser step, for the check of the batch size.

    Returns:
      Global arrays of the rows of all processes, split over `data` and `fsdp`.

    Raises:
      UserError: rows differ between entries, an entry is not numeric, or the rows do
        not split evenly.
    """
    num_rows = {key: np.shape(value)[:1] for key, value in batch.items()}
    if len(set(num_rows.values())) != 1 or () in num_rows.values():
        raise UserError(f"entries of a batch need equally many rows, got {num_rows}")
    (local,) = next(iter(num_rows.values()))
    sharding, shards = rules.rows(mesh), meshes.num_batch_shards(mesh)
    total = local * shards // len(process_rows(shards, mesh))
    check_batch_size(total, mesh, accumulate)
    return {
        key: _place_rows(key, value, sharding, total) for key, value in batch.items()
    }


def place(tree: Any, shardings: Any) -> Any:
    """Copies a tree (equal on every process) to where `shardings` says.

    The result never shares memory with `tree`, so that it may be donated.
    """
    return jax.device_put(tree, shardings, may_alias=False)


def place_frozen(frozen: Any, mesh: Mesh, offload: bool = False) -> Any:
    """Puts a frozen tree where it waits for the steps; what is there stays.

    Args:
      frozen: arrays.
      mesh: from `make_mesh`.
      offload: see `frozen_shardings`.
    """
    return jax.device_put(frozen, frozen_shardings(frozen, mesh, offload))


def frozen_shardings(frozen: Any, mesh: Mesh, offload: bool = False) -> Any:
    """Returns where the parts of a frozen tree wait for the steps.

    Args:
      frozen: arrays or shapes.
      mesh: from `make_mesh`.
      offload: in the memory of the host that each device belongs to, split there as on
        the devices, so that a step brings no more than its part to a device.

    Raises:
      UserError: `offload`, and the devices reach no such memory.
    """
    if not offload:
        return rules.shardings(frozen, mesh)
    device = mesh.devices.flat[0]
    known = [memory.kind for memory in device.addressable_memories()]
    if HOST_MEMORY not in known:
        raise UserError(
            f"config.train.offload_frozen=True needs memory of kind {HOST_MEMORY!r}; "
            f"{device.device_kind} devices have {known}: set it to False"
        )
    return rules.shardings(frozen, mesh, HOST_MEMORY)


def fetched_shardings(frozen: Any, mesh: Mesh) -> Any:
    """Returns where a step brings a frozen tree first; None: it is there.

    Args:
      frozen: placed arrays, or shapes with their shardings.
      mesh: from `make_mesh`.
    """
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(frozen)}
    return rules.shardings(frozen, mesh) if HOST_MEMORY in kinds else None


def to_host(tree: Any) -> Any:
    """Returns the tree as numpy arrays, whole on every process."""

    def fetch(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def _place_rows(
    key: str, value: Any, sharding: jax.sharding.Sharding, total: int
) -> jax.Array:
    if isinstance(value, jax.Array):
        return jax.device_put(value, sharding)
    value = np.asarray(value)
    if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
        raise UserError(
            f"batch[{key!r}] has dtype {value.dtype}; only numbers go to devices, "
            "leave it out of the batch"
        )
    shape = (total, *value.shape[1:])
    return jax.make_array_from_process_local_data(sharding, value, shape)
