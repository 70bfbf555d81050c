"""A transport chosen by a value is that transport, alone and among many runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxanom.posterior import fields, svgd, transport, wgf

START = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
CHAINS = (
    lambda: optax.sgd(0.1),
    lambda: optax.chain(
        transport.of_flow(fields.Field(svgd.flow())), optax.sgd(0.1, momentum=0.9)
    ),
    lambda: optax.chain(
        transport.langevin(lambda k: 0.01, transport.noise_of(0)), optax.sgd(1.0)
    ),
    lambda: optax.chain(transport.of_flow(fields.Field(wgf.blob())), optax.adam(0.1)),
)


def walk(tx, start):
    """Three steps down |x - 1|^2."""
    params = {"x": jnp.asarray(start)}

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda x: x - 1.0, params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=3)
    return params["x"]


def test_many_runs_of_one_program_walk_as_each_would_alone():
    def chosen(number, start):
        return walk(transport.choose(number, [make() for make in CHAINS]), start)

    numbers = jnp.array([3, 0, 2, 1, 1])
    starts = jnp.stack([jnp.asarray(START) * (1 + run) for run in range(5)])
    found = jax.jit(jax.vmap(chosen))(numbers, starts)
    alone = [walk(CHAINS[n](), start) for n, start in zip(numbers, starts, strict=True)]
    # The same float32 operations, fused otherwise.
    np.testing.assert_allclose(found, np.stack(alone), rtol=1e-5, atol=1e-6)
    # Negative control: another transport ends elsewhere.
    other = walk(CHAINS[1](), starts[0])
    assert np.abs(np.asarray(found[0]) - np.asarray(other)).max() > 1e-2


def test_each_keeps_a_state_of_its_own():
    tx = transport.choose(jnp.int32(1), [optax.sgd(0.1, momentum=0.9) for _ in "ab"])
    params = {"x": jnp.ones(2)}
    state = tx.init(params)
    _, after = tx.update({"x": jnp.full(2, 3.0)}, state, params)
    same, moved = (jax.tree.leaves(part) for part in after)
    assert all(not leaf.any() for leaf in same), "the other one was not stepped"
    assert any(np.asarray(leaf == 3.0).any() for leaf in moved)
