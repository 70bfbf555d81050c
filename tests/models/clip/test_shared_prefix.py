"""Prompts that begin alike: encoded once, equal to the plain tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.models.clip import prompts, shared_prefix, towers
from jaxanom.models.ops import initialise

CONFIG = towers.TextConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    projection_dim=12,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=20,
    bos_token_id=38,
    eos_token_id=39,
    pad_token_id=0,
)
NAMES = [[3], [4, 5, 6], [7, 8]]


class Special:
    bos_id, eos_id, pad_id = 38, 39, 0


@functools.cache
def tower():
    module = towers.TextTower(CONFIG)
    ids = jnp.zeros((1, 4), jnp.int32)
    return module, initialise.parameters(module, jax.random.key(0), ids)


@pytest.fixture(autouse=True)
def made():
    tower()  # its values are drawn on the host, not while something is traced


def layout(template=(~0, ~1, ~2, ~3, prompts.NAME, 9), names=NAMES, length=20):
    return prompts.make_layout(template, names, Special, 4, length)


def vectors(num=2, seed=1):
    drawn = np.random.default_rng(seed).normal(0, 0.5, (num, 4, CONFIG.hidden_size))
    return jnp.asarray(drawn, jnp.float32)


def plain(prompt_vectors, laid):
    """The tower itself on whole, padded sentences: nothing cut, nothing shared."""
    module, params = tower()
    table = params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    prompt = prompts.assemble(laid, table, prompt_vectors)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), prompt)
    found = module.apply({"params": params}, **flat._asdict()).text_features
    return found.reshape(prompt_vectors.shape[0], -1, CONFIG.projection_dim)


def shared(prompt_vectors, laid, form=shared_prefix.cut):
    _, params = tower()
    return shared_prefix.text_features(params, CONFIG, form(laid), prompt_vectors)


TEMPLATES = {
    "name last": (~0, ~1, ~2, ~3, prompts.NAME, 9),
    "name in the middle": (~0, ~1, prompts.NAME, ~2, ~3),
    "name first": (prompts.NAME, ~0, ~1, ~2, ~3),
    "no name": (~0, ~1, ~2, ~3),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_features_and_gradients_are_those_of_the_plain_tower(template):
    laid = layout(TEMPLATES[template])
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 12)), jnp.float32)

    def summed(encode):
        return jax.jit(
            jax.value_and_grad(
                lambda v: (jnp.sum(weights * (out := encode(v, laid))), out),
                has_aux=True,
            )
        )

    (_, found), grads = summed(shared)(vectors())
    (_, wanted), wanted_grads = summed(plain)(vectors())
    # Sums in another order: 1e-7 of features of size 1, of gradients of size 10.
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    scale = float(jnp.abs(wanted_grads).max())
    np.testing.assert_allclose(grads / scale, wanted_grads / scale, atol=1e-6)
    whole = jax.jit(lambda v: shared(v, laid, shared_prefix.whole))(vectors())
    np.testing.assert_allclose(whole, wanted, atol=1e-6)


def test_what_is_shared_ends_where_classes_differ():
    parts = shared_prefix.cut(layout())
    assert parts.prefix.input_ids.shape == (5,)  # start and four vectors
    # The longest name, the full stop and the end: 5 of 15 columns are left.
    assert parts.suffix.input_ids.shape == (3, 5)
    assert np.array_equal(parts.suffix.eos_positions, [2, 4, 3])
    one = shared_prefix.cut(layout(names=NAMES[:1]))
    assert one.suffix.input_ids.shape == (1, 1)  # the end token alone


def test_what_follows_the_end_token_changes_nothing():
    laid = layout()
    ids = laid.input_ids.copy()
    ids[ids == 0] = 11
    padded = laid.replace(input_ids=np.where(laid.slots >= 0, laid.input_ids, ids))
    found = plain(vectors(), padded)
    np.testing.assert_allclose(found, plain(vectors(), laid), atol=1e-6)


def test_a_changed_name_does_change_its_class_alone():
    """Negative control: reused keys and values must not mix classes up."""
    found = shared(vectors(), layout())
    other = shared(vectors(), layout(names=[[3], [4, 5, 12], [7, 8]]))
    gaps = jnp.abs(found - other).max((0, 2))
    assert gaps[1] > 1e-3
    assert gaps[0] < 1e-6 and gaps[2] < 1e-6


def test_shared_prompts_cost_a_fraction_of_the_operations():
    def flops(encode, laid):
        compiled = jax.jit(lambda v: encode(v, laid)).lower(vectors()).compile()
        return compiled.cost_analysis()["flops"]

    many = layout(names=[[3 + i % 30] for i in range(12)])
    # 5 tokens once and 12 times 3, against 12 times 20; projections are common to both.
    assert flops(shared, many) < 0.35 * flops(plain, many)


def test_sentences_longer_than_the_tower_are_refused():
    laid = layout(names=[[3] * 20], length=30)
    with pytest.raises(ValueError, match="max_position_embeddings=20"):
        shared(vectors(), laid)
