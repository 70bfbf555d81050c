"""Bytes per device of leaves that are split, and of those that are not."""

import jax
import jax.numpy as jnp
import pytest

from jaxanom.parallel import memory
from jaxanom.parallel import mesh as meshes

TREE = {
    "attn": {
        "to_q": {"kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32)},
        "norm": {"scale": jax.ShapeDtypeStruct((512,), jnp.float32)},
    }
}
LARGE, SMALL = 256 * 512, 512


@pytest.mark.parametrize(
    ("fsdp", "model", "values"),
    [
        (1, 1, LARGE + SMALL),
        (4, 1, LARGE // 4 + SMALL),  # the scale is too small to be split
        (1, 2, LARGE // 2 + SMALL),
        (4, 2, LARGE // 8 + SMALL),
    ],
)
def test_split_leaves_count_in_part_and_replicated_ones_whole(fsdp, model, values):
    mesh = memory.planned_mesh(fsdp, model)
    assert memory.bytes_per_device(TREE, mesh) == 4 * values


def test_a_planned_mesh_counts_as_the_real_one():
    real = meshes.make_mesh(devices=jax.devices()[:1])
    planned = memory.planned_mesh()
    assert dict(planned.shape) == dict(real.shape)
    assert memory.bytes_per_device(TREE, real) == memory.bytes_per_device(TREE, planned)


def test_a_dimension_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"attn/to_q/kernel.*model=3"):
        memory.bytes_per_device(TREE, memory.planned_mesh(model=3))
