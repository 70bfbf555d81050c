"""Particles and the text tower over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_app import NUM_CLASSES, world

from jaxanom.methods.app import classes, model


def test_particles_do_not_depend_on_how_many_there_are():
    few, many = (
        model.init(jax.random.key(1), n, 2, 4, 32)["particles"]["context"]
        for n in (2, 5)
    )
    assert np.array_equal(few, many[:2])
    assert np.std(many) == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("chunks", [(0, 3), (2, 2)])
def test_chunks_change_neither_features_nor_gradients(chunks):
    network, params, frozen, _ = world(3)
    chunked = network.tower._replace(prompt_chunk=chunks[0], class_chunk=chunks[1])
    weights = np.random.default_rng(0).normal(size=(3, NUM_CLASSES, 6))

    def summed(tower, context):
        found = model.text_features(tower, frozen["text"], context)
        return jnp.sum(weights * found), found

    results = [
        jax.jit(jax.value_and_grad(functools.partial(summed, tower), has_aux=True))(
            params["particles"]["context"]
        )
        for tower in (network.tower, chunked)
    ]
    (_, features), grads = results[0]
    (_, other), other_grads = results[1]
    for wanted, found in ((features, other), (grads, other_grads)):
        # Float32 sums in another order, on the scale of the largest entry.
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, atol=2e-6 * scale)


def test_each_image_is_compared_with_its_own_categorys_sentences():
    named = classes.make(
        "defect",
        ("hex_nut", "pill"),
        ("good", "crack"),
        "flawless {category}",
        "damaged {category}",
        "{category} with {defect}",
    )
    assert named.names == (
        "flawless hex nut",
        "hex nut with crack",
        "flawless pill",
        "pill with crack",
    )
    logits = jnp.asarray([[[0.0, 1.0, 2.0, 3.0]] * 2])
    found = model.of_category(logits, jnp.asarray(named.columns), jnp.asarray([1, 0]))
    np.testing.assert_allclose(found, [[[2.0, 3.0], [0.0, 1.0]]])
    shared = classes.make(
        "defect", ("a", "b"), ("good", "crack"), "good", "bad", "{defect}"
    )
    assert shared.names == ("good", "crack")
    assert np.array_equal(shared.columns, [[0, 1], [0, 1]])
