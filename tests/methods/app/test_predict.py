"""Averages over particles, mixed with the prior, and their uncertainty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_app import BATCH, of, world

from jaxanom.methods.app import options, predict


def logits_of(answers, params=None):
    network, own, frozen, batch = world()
    return jax.jit(
        lambda p: predict.posterior_logits(
            network, p, frozen, batch["image_features"], batch["category_id"], answers
        )
    )(own if params is None else params)


def test_alpha_one_leaves_the_prior_out_and_saves_its_prompts():
    assert logits_of(of("predict", alpha=1.0)).prior is None
    found = logits_of(of("predict", alpha=0.9))
    mixed = predict.mixed_logits(found, of("predict", alpha=0.9))
    wanted = 0.9 * found.particles.mean(0) + 0.1 * found.prior
    np.testing.assert_allclose(mixed, wanted, rtol=1e-5)


@pytest.mark.parametrize("average", options.CHOICES["predict.average"])
@pytest.mark.parametrize("mix", options.CHOICES["predict.mix"])
def test_particles_that_agree_are_averaged_to_themselves(average, mix):
    """And mixed to themselves with a prior that agrees with them."""
    _, params, _, _ = world()
    one = params["particles"]["context"][:1]
    params = {**params, "particles": {"context": jnp.repeat(one, 3, axis=0)}}
    answers = of("predict", average=average, mix=mix, alpha=0.7)
    found = logits_of(answers, params)
    found = found._replace(prior=found.particles[0])
    probability = jax.nn.softmax(predict.mixed_logits(found, answers))
    wanted = jax.nn.softmax(found.particles[0])
    np.testing.assert_allclose(probability, wanted, atol=1e-5)
    measured = predict.uncertainty(found.particles)
    np.testing.assert_allclose(measured["mutual_information"], 0, atol=1e-5)
    np.testing.assert_allclose(measured["logit_variance"], 0, atol=1e-6)


def test_uncertainty_of_two_certain_particles_that_disagree():
    particles = 50.0 * jnp.asarray([[[1.0, 0.0]], [[0.0, 1.0]]])
    found = predict.uncertainty(particles)
    assert float(found["entropy"][0]) == pytest.approx(np.log(2), rel=1e-5)
    assert float(found["mutual_information"][0]) == pytest.approx(np.log(2), rel=1e-5)


def test_mixing_probabilities_is_their_weighted_mean():
    found = logits_of(of("predict", alpha=0.7))
    answers = of("predict", average="probs", mix="probs", alpha=0.7)
    probability = jnp.exp(predict.mixed_logits(found, answers))
    wanted = 0.7 * jax.nn.softmax(found.particles).mean(0)
    wanted = wanted + 0.3 * jax.nn.softmax(found.prior)
    np.testing.assert_allclose(probability, wanted, atol=1e-5)


def test_an_image_is_answered_alike_in_every_batch_but_not_when_reshuffled():
    network, params, frozen, batch = world()
    order = np.array([2, 0, 1, 5, 4, 3])

    def answer(rows, reshuffled):
        found = predict.posterior_logits(
            network,
            params,
            frozen,
            batch["image_features"][rows],
            batch["category_id"][rows],
            of("predict", reshuffled=reshuffled),
        )
        return np.asarray(found.prior)

    whole, turned = answer(np.arange(BATCH), False), answer(order, False)
    np.testing.assert_allclose(turned, whole[order], atol=1e-5)
    assert (
        np.abs(answer(order, True) - answer(np.arange(BATCH), True)[order]).max() > 1e-2
    )
