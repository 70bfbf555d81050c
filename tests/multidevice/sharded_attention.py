"""How attention is split, on eight devices; started by `test_in_own_process.py`.

Eight TPUs cannot be interpreted here, so their kernel is stood in for by its formula.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import flash_attention as library
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxanom.models.ops import attention, flash
from jaxanom.parallel import collectives
from jaxanom.parallel import mesh as meshes

SEEN = []


def formula(query, key, value, segment_ids, sm_scale, block_sizes):
    """What the kernel computes, [B, H, S, D]; notes the shape one device was given."""
    SEEN.append(query.shape)
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key) * sm_scale
    if segment_ids is not None:
        other = segment_ids.q[:, None, :, None] != segment_ids.kv[:, None, None, :]
        logits = jnp.where(other, -jnp.inf, logits)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(logits), value)


@pytest.fixture(autouse=True)
def without_a_tpu(monkeypatch):
    SEEN.clear()
    monkeypatch.setattr(library, "flash_attention", formula)
    monkeypatch.setattr(library, "BlockSizes", lambda **sizes: None)


def draw(shape):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4)]


def with_gradients(attend):
    def loss(query, key, value, target):
        out = attend(query, key, value)
        return jnp.sum(out * target), out

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)


def plain(*arrays):
    return attention.dot_product(*arrays, implementation="matmul")


@pytest.mark.parametrize(
    "sizes, shape, part",
    [
        ((2, 2, 2, 1), (8, 130, 2, 8), (2, 1, 256, 8)),
        ((2, 4, 1, 1), (8, 130, 2, 8), (1, 2, 256, 8)),
        ((2, 2, 2, 1), (6, 130, 3, 8), (3, 3, 256, 8)),  # by fsdp alone
        ((1, 1, 1, 8), (8, 130, 2, 8), (1, 2, 256, 8)),
    ],
)
def test_examples_and_heads_are_split(sizes, shape, part):
    mesh, arrays = meshes.make_mesh(*sizes), draw(shape)
    found = jax.jit(meshes.bound(with_gradients(flash.attend), mesh))(*arrays)
    assert set(SEEN) == {part}
    wanted = with_gradients(plain)(*arrays)
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)  # float32, 130 terms


@pytest.mark.parametrize(
    "sizes, shape", [((2, 2, 2, 1), (8, 70, 2, 8)), ((2, 2, 2, 1), (6, 70, 3, 8))]
)
def test_loops_over_examples_are_split_and_keep_their_gradients(sizes, shape):
    mesh, arrays = meshes.make_mesh(*sizes), draw(shape)

    def lean(*arrays):
        return attention.dot_product(*arrays, implementation="lean")

    found = jax.jit(meshes.bound(with_gradients(lean), mesh))(*arrays)
    wanted = with_gradients(plain)(*arrays)
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)  # float32, 70 terms


def test_nothing_is_sent_where_the_rows_are_already():
    mesh = meshes.make_mesh(2, 2, 2)
    places = NamedSharding(mesh, P(meshes.BATCH_AXES, None, "model"))
    shape = jax.ShapeDtypeStruct((8, 130, 2, 8), jnp.float32, sharding=places)

    def received(attend, told=True):
        function = meshes.bound(attend, mesh) if told else attend
        program = jax.jit(function).lower(shape, shape, shape)
        return collectives.received_bytes(program.compile().as_text(), mesh.size)

    def lean(*arrays):
        return attention.dot_product(*arrays, implementation="lean")

    assert received(flash.attend) == received(lean) == 0
    # Negative control: where nobody says that the loop splits, all devices run all.
    assert received(lean, told=False) >= 3 * 8 * 130 * 2 * 8 * 4 / 2


def test_mapped_tokens_become_examples_and_stay_where_they_are():
    mesh = meshes.make_mesh(data=1, particle=8)
    arrays = draw((16, 3, 130, 2, 8))
    split = jax.device_put(arrays, NamedSharding(mesh, P("particle")))
    program = jax.jit(meshes.bound(jax.vmap(with_gradients(flash.attend)), mesh))
    compiled = program.lower(*split).compile()
    assert (6, 2, 256, 8) in SEEN  # two tokens of three examples each
    assert collectives.received_bytes(compiled.as_text(), mesh.size) == 0
    wanted = jax.vmap(with_gradients(plain))(*arrays)
    found = compiled(*split)
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
