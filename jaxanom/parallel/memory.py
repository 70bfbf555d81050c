"""What parameters and their training state take on a device, and what room it has."""

import math
import os
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import rules

ADAM_COPIES = 4
"""Parameters, gradients and Adam's two moments, all float32."""


def free_bytes(mesh: Mesh) -> int | None:
    """Returns the room on the fullest device of a mesh; None where it is not known.

    The CPU backend does not tell: its device memory is the host's.
    """
    rooms = []
    for device in mesh.devices.flat:
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        rooms.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return min(rooms)


def device_bytes(mesh: Mesh) -> int | None:
    """Returns the memory of the smallest device of a mesh; None where it is not known.

    CPU devices of one host share its memory evenly; a device that is not attached
    tells nothing.
    """
    rooms = []
    for device in mesh.devices.flat:
        if device.platform == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
            host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            rooms.append(host // len(mesh.local_devices))
            continue
        try:
            stats = device.memory_stats() or {}
        except jax.errors.JaxRuntimeError:
            stats = {}
        if "bytes_limit" not in stats:
            return None
        rooms.append(stats["bytes_limit"])
    return min(rooms)


def planned_mesh(fsdp: int = 1, model: int = 1) -> AbstractMesh:
    """Returns a mesh that needs no devices, to plan with.

    Args:
      fsdp, model: see `mesh.make_mesh`; the other axes split no parameter of a tower.
    """
    sizes = {"fsdp": fsdp, "model": model}
    shape = tuple(sizes.get(axis, 1) for axis in meshes.AXES)
    auto = (AxisType.Auto,) * len(shape)
    return AbstractMesh(shape, meshes.AXES, axis_types=auto)


def bytes_per_device(tree: Any, mesh: Mesh | AbstractMesh) -> int:
    """Returns the bytes of float32 parameters on the device that holds most.

    Args:
      tree: Arrays or `jax.ShapeDtypeStruct`.
      mesh: The leaves are split over it by `rules.spec`.

    Raises:
      UserError: a leaf does not divide, see `rules.spec`.
    """
    total = 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        spec = rules.spec(rules.path_of(keys), leaf.shape, mesh)
        axes = [axis for axis in spec if axis is not None]
        parts = math.prod(mesh.shape[axis] for axis in axes)
        total += math.prod(leaf.shape) // parts
    return 4 * total
