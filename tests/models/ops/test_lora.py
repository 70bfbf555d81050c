"""Low-rank updates, arXiv 2106.09685."""

import jax
import numpy as np
import pytest

from jaxanom import trees
from jaxanom.models.ops import lora


def unet_like():
    rng = np.random.default_rng(0)

    def kernel(*shape):
        return {"kernel": rng.normal(size=shape).astype(np.float32)}

    attention = lambda width: {  # noqa: E731
        "to_q": kernel(8, 8),
        "to_k": kernel(width, 8),
        "to_v": kernel(width, 8),
        "to_out_0": kernel(8, 8) | {"bias": np.ones(8, np.float32)},
    }
    block = {"attn1": attention(8), "attn2": attention(6), "ff": kernel(8, 16)}
    return {"down": {"transformer": block, "conv": kernel(3, 3, 8, 8)}}


def test_every_attention_kernel_gets_an_update_and_nothing_else_does():
    update = lora.init(unet_like(), 2, jax.random.key(0))
    names = {path.rpartition("/")[0] for path in trees.flatten(update)}
    assert names == {
        f"down/transformer/{attention}/{part}/kernel"
        for attention in ("attn1", "attn2")
        for part in ("to_q", "to_k", "to_v", "to_out_0")
    }


def test_a_real_unet_has_the_paths_that_the_pattern_looks_for(tiny_backbone):
    from jaxanom.models import backbones

    params = backbones.load_unet(tiny_backbone).params
    attentions = {p for p in trees.flatten(params) if "/attn" in p and "kernel" in p}
    update = lora.init(params, 1, jax.random.key(0))
    assert {p.rpartition("/")[0] for p in trees.flatten(update)} == attentions


def test_it_starts_as_the_identity_bit_for_bit():
    params = unet_like()
    update = lora.init(params, 3, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, update, 5.0), params)


def test_merging_adds_scale_times_down_times_up_of_the_asked_rank():
    params = unet_like()
    update = trees.flatten(lora.init(params, 2, jax.random.key(2)))
    rng = np.random.default_rng(3)
    update = {
        path: rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in update.items()
    }
    merged = trees.flatten(lora.merge(params, trees.unflatten(update), 0.5))
    for path, leaf in trees.flatten(params).items():
        change = np.asarray(merged[path]) - leaf
        if f"{path}/down" in update:
            wanted = 0.5 * update[f"{path}/down"] @ update[f"{path}/up"]
            np.testing.assert_allclose(change, wanted, atol=1e-5)  # float32 sums
            assert np.linalg.matrix_rank(change, tol=1e-4) == 2
        else:
            assert not change.any()


def test_a_leaf_keeps_its_draw_when_the_key_does():
    first, second, other = (
        trees.flatten(lora.init(unet_like(), 2, jax.random.key(key)))
        for key in (0, 0, 1)
    )
    path = "down/transformer/attn1/to_q/kernel/down"
    np.testing.assert_array_equal(first[path], second[path])
    assert np.any(first[path] != other[path])
    assert np.any(first[path] != first[path.replace("to_q", "to_out_0")])


def test_a_rank_below_one_and_a_tree_without_attention_are_refused():
    with pytest.raises(ValueError, match="lora_rank >= 1"):
        lora.init(unet_like(), 0, jax.random.key(0))
    with pytest.raises(ValueError, match=r"no .* kernel matches"):
        lora.init({"conv": {"kernel": np.ones((3, 3))}}, 1, jax.random.key(0))
