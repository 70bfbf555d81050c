"""Splits what the compiler cannot: hand-written kernels, and loops over examples.

A kernel it refuses to split over devices; of a loop over examples it makes one in which
every device sees all of them. Both are told here which examples and heads are theirs.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxanom.parallel import mesh as meshes

EXAMPLES = meshes.BATCH_AXES
EXAMPLES_OF_PARTICLES = (meshes.PARTICLE_AXIS, *EXAMPLES)


def over_devices(
    function: Callable[..., Any], examples: tuple[str, ...] = EXAMPLES
) -> Callable[..., Any]:
    """Returns the function, split over the devices that its program is traced for.

    Args:
      function: arrays [B, S, H, D] of the same B and H -> one such array, or several.
      examples: axes of the mesh that may split B; "model" may split H. What does not
        divide evenly is computed by all.
    """

    def split(*arrays):
        mesh = meshes.traced_for()
        if mesh is None or all(mesh.shape[axis] == 1 for axis in (*examples, "model")):
            return function(*arrays)
        num_examples, _, num_heads, _ = arrays[0].shape
        rows = _dividing(num_examples, examples, mesh)
        spec = P(rows, None, _dividing(num_heads, ("model",), mesh))
        # What a kernel writes does not tell on which devices it may differ.
        return jax.shard_map(
            function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )(*arrays)

    return split


def _dividing(size: int, axes: tuple[str, ...], mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes, the first ones left out until they divide the size."""
    while size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[1:]
    return axes
