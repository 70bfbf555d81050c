"""Tokens spread over eight simulated devices; started by `test_in_own_process.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxanom.methods.adp.objective import TokenData
from jaxanom.methods.adp.token import inversion
from jaxanom.parallel import mesh as meshes

NUM_TOKENS, NUM_VECTORS, WIDTH, NUM_STEPS = 16, 2, 3, 50


def loss_fn(vectors, data, params, key):
    """A network of one matrix, with noise by key: what the towers are to a token."""
    noise = 0.1 * jax.random.normal(key, vectors.shape)
    found = jnp.tanh((vectors + noise) @ params["kernel"])
    error = jnp.mean((found - data.start) ** 2)
    return error, {"inversion": error}


def tokens():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(NUM_TOKENS, NUM_VECTORS, WIDTH)).astype(np.float32)
    rest = {name: jnp.zeros(NUM_TOKENS) for name in TokenData._fields}
    data = TokenData(**{**rest, "start": jnp.asarray(np.tanh(start[::-1]))})
    params = {"kernel": jnp.asarray(rng.normal(size=(WIDTH, WIDTH)), jnp.float32)}
    keys = inversion.token_keys(jax.random.key(1), NUM_TOKENS)
    return jnp.asarray(start), data, params, keys


def run(mesh=None):
    return inversion.invert_all(loss_fn, *tokens(), NUM_STEPS, 1e-2, mesh)


def test_eight_devices_learn_the_tokens_of_one():
    mesh = meshes.make_mesh(data=1, particle=8)
    found, trace = run(mesh)
    assert found.sharding.spec == P("particle")
    assert {shard.data.shape[0] for shard in found.addressable_shards} == {2}
    alone, alone_trace = run()
    # V2: float32, 50 Adam steps; products of other batch sizes may round differently.
    np.testing.assert_allclose(found, alone, atol=1e-4)
    np.testing.assert_allclose(trace.loss, alone_trace.loss, atol=1e-4)
    assert float(trace.loss[:, -1].mean()) < 0.8 * float(trace.loss[:, 0].mean())


def test_no_device_speaks_to_another():
    mesh = meshes.make_mesh(data=1, particle=8)
    split = jax.sharding.NamedSharding(mesh, P("particle"))
    start, data, params, keys = tokens()
    start, data, keys = jax.device_put((start, data, keys), split)

    def all_tokens(start, data, keys):
        one = lambda *row: inversion.invert(loss_fn, *row[:2], params, row[2], 3)  # noqa: E731
        return jax.vmap(one)(start, data, keys)

    text = jax.jit(all_tokens, out_shardings=split).lower(start, data, keys)
    text = text.compile().as_text()
    for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"):
        assert word not in text
