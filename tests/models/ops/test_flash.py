"""The TPU kernel: its numbers in the interpreter, its program from the TPU compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxanom import flops
from jaxanom.models.ops import attention
from jaxanom.parallel import collectives
from jaxanom.parallel import mesh as meshes


def draw(seed, num_query, num_key, num_batch=2, num_heads=1, width=8):
    rng = np.random.default_rng(seed)
    sizes = (num_query, num_key, num_key, num_query)
    return tuple(
        jnp.asarray(rng.normal(size=(num_batch, size, num_heads, width)), jnp.float32)
        for size in sizes
    )


def with_gradients(form):
    def loss(query, key, value, target):
        out = attention.dot_product(query, key, value, implementation=form)
        return jnp.sum(out * target), out

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)


@pytest.mark.parametrize("num_query, num_key", [(128, 256), (130, 150)])
def test_output_and_gradients_are_those_of_the_products(num_query, num_key):
    inputs = draw(0, num_query, num_key)
    with pltpu.force_tpu_interpret_mode():
        found = with_gradients("flash")(*inputs)
    wanted = with_gradients("matmul")(*inputs)
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert float(jnp.abs(other).max()) > 0.1
        # float32 sums of 256 terms, in another order.
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_padded_keys_would_change_it():
    # Negative control of the test above: 22 of 150 keys more, all zero.
    query, key, value, _ = draw(0, 130, 128)
    longer = [jnp.pad(x, ((0, 0), (0, 22), (0, 0), (0, 0))) for x in (key, value)]
    wanted = attention.dot_product(query, key, value)
    assert float(jnp.abs(attention.dot_product(query, *longer) - wanted).max()) > 0.01


def test_vmap_adds_examples():
    query, key, value, target = draw(1, 128, 128, num_batch=3)

    def mapped(form):
        def one(query, value, target):  # the key is the same for all
            arrays = (query[None], key[:1], value[None], target[None])
            return with_gradients(form)(*arrays)

        return jax.vmap(one)(query, value, target)

    with pltpu.force_tpu_interpret_mode():
        found = mapped("flash")
    for one, other in zip(
        *map(jax.tree.leaves, (found, mapped("matmul"))), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_its_operations_are_counted():
    shape = jax.ShapeDtypeStruct((2, 256, 3, 16), jnp.float32)

    def counted(form):
        def attend(*args):
            return attention.dot_product(*args, implementation=form)

        return flops.count(attend, shape, shape, shape)

    found = counted("flash")
    assert not found.unknown and found.total == counted("matmul").total > 0


@pytest.mark.parametrize("split", [(1, 1, 1), (2, 4, 2)])
@pytest.mark.parametrize(
    "positions, heads, width, dtype",
    [(4096, 8, 40, "bfloat16"), (1370, 16, 64, "bfloat16"), (4096, 2, 512, "float32")],
)
def test_the_tpu_compiler_takes_it(v5e, split, positions, heads, width, dtype):
    mesh = meshes.make_mesh(*split, devices=v5e[: np.prod(split)])
    rows = NamedSharding(mesh, P(meshes.BATCH_AXES, None, "model", None))
    shape = jax.ShapeDtypeStruct((8, positions, heads, width), dtype, sharding=rows)

    def compiled(form):
        def loss(*args):
            out = attention.dot_product(*args, implementation=form)
            return jnp.sum(out.astype(jnp.float32) ** 2)

        gradient = meshes.bound(jax.grad(loss, argnums=(0, 1, 2)), mesh)
        return jax.jit(gradient).lower(shape, shape, shape).compile()

    chosen, plain = compiled(None), compiled("matmul")
    # Forward, then forward again, by query, and by key and value.
    assert chosen.as_text().count("tpu_custom_call") == 4
    assert "tpu_custom_call" not in plain.as_text()
    assert collectives.received_bytes(chosen.as_text(), mesh.size) == 0
    used, whole = (
        program.memory_analysis().temp_size_in_bytes for program in (chosen, plain)
    )
    assert used < whole / 2, "the matrix is never written"
