"""Policies change what is kept, never what is computed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import ad_checkpoint

from jaxanom.models.ops import remat


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        scores = nn.Dense(6, name="in")(x)
        mixed = jnp.einsum("bnd,bmd->bnm", scores, scores)  # a batched product
        return x + nn.Dense(4, name="out")(jnp.tanh(mixed @ scores))


X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
PARAMS = jax.jit(Block().init)(jax.random.key(0), X)


def loss(params, policy):
    return jnp.sum(remat.block(Block, policy)().apply(params, X) ** 2)


def num_kept(policy, capsys):
    """What the forward pass computes and keeps for the backward pass."""
    ad_checkpoint.print_saved_residuals(lambda params: loss(params, policy), PARAMS)
    lines = capsys.readouterr().out.splitlines()
    return sum("from the argument" not in line for line in lines)


@pytest.mark.parametrize("policy", remat.POLICIES)
def test_values_gradients_and_paths_are_those_of_no_policy(policy):
    wanted = jax.value_and_grad(loss)(PARAMS, "none")
    found = jax.value_and_grad(loss)(PARAMS, policy)
    # The same float32 operations; fused otherwise.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        wanted,
    )


def test_each_policy_keeps_less_than_the_one_before_it(capsys):
    kept = {name: num_kept(name, capsys) for name in remat.POLICIES}
    assert kept["none"] > kept["dots"] > kept["weight_dots"] > kept["full"]


def test_an_unknown_policy_is_refused_with_its_key():
    with pytest.raises(ValueError, match=r"remat='everything'.*config\.model\.remat"):
        remat.block(Block, "everything")
