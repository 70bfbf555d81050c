"""Both losses: what enters them and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_app import BATCH, loss_and_grads, prior_of, world

from jaxanom.methods.app import objective


def test_the_gradient_of_the_sum_is_the_stack_of_each_particles_own():
    _, params, _, batch = world()
    prior = prior_of(weight_decay=0.1)
    _, grads = loss_and_grads(prior, params, batch, 0.3)
    for i in range(3):
        alone = {
            **params,
            "particles": {"context": params["particles"]["context"][i:][:1]},
        }
        _, own = loss_and_grads(prior, alone, batch, 0.3)
        found = grads["particles"]["context"][i]
        np.testing.assert_allclose(found, own["particles"]["context"][0], atol=1e-5)


def test_the_prior_pulls_the_token_mean_or_every_token():
    context = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    center = jnp.ones(4)
    shift = jnp.asarray([1.0, -1.0, 0.0])[None, :, None]  # keeps the mean over tokens
    for support, moves in (("token_mean", False), ("per_token", True)):
        before, after = (
            objective.energy(c, center, support) for c in (context, context + shift)
        )
        assert np.allclose(before, after, rtol=1e-5) != moves
    grads = jax.grad(lambda c: objective.energy(c, center, "token_mean").sum())(context)
    wanted = 2 * (context.mean(1) - center) / 3
    np.testing.assert_allclose(grads, np.repeat(wanted[:, None], 3, 1), rtol=1e-5)


def test_only_joint_training_moves_the_prior_network():
    _, params, _, batch = world()
    for train, moves in (("separate", False), ("joint", True)):
        prior = prior_of(train=train)
        _, grads = loss_and_grads(prior, params, batch, 0.3)
        leaves = jax.tree.leaves(grads["prior"])
        assert any(np.any(np.asarray(leaf) != 0) for leaf in leaves) == moves
        assert ("prior/.*" in objective.trainable(prior)) == moves


def test_a_dataset_center_does_not_move_with_the_batch():
    _, params, _, batch = world()
    other = {**batch, "image_features": batch["image_features"][::-1] * 0 + 1.0}
    for center, same in (("dataset", True), ("batch", False)):
        prior = prior_of(center=center)
        energies = [
            float(loss_and_grads(prior, params, rows, 1.0)[0][1]["prior_energy"])
            for rows in (batch, other)
        ]
        assert (energies[0] == pytest.approx(energies[1], rel=1e-6)) == same


def test_a_moving_average_is_fitted_and_not_felt_by_the_particles():
    _, params, _, batch = world()
    average = jnp.full(8, 0.5)
    params = {**params, "center": {"average": average}}
    (_, metrics), grads = loss_and_grads(prior_of(center="ema"), params, batch, 0.7)
    mean = objective.batch_center(params, batch["image_features"], batch["valid"])
    np.testing.assert_allclose(grads["center"]["average"], average - mean, rtol=1e-5)
    context = params["particles"]["context"]
    wanted = objective.energy(context, average, "token_mean").sum()
    assert float(metrics["prior_energy"]) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("make", ["prior_loss", "particle_loss"])
def test_a_single_class_is_not_trained_on(make):
    network, params, frozen, batch = world()
    weight = (1.0,) if make == "particle_loss" else ()
    loss_fn = getattr(objective, make)(network, prior_of(), *weight)
    one = {**frozen, "columns": frozen["columns"][:, :1]}
    with pytest.raises(ValueError, match=r"app\.task has a single class"):
        jax.eval_shape(lambda p: loss_fn(p, one, batch, None), params)


def test_padding_rows_change_no_loss():
    _, params, _, batch = world()
    padded = {
        "image_features": jnp.concatenate([batch["image_features"], jnp.ones((2, 6))]),
        "category_id": jnp.concatenate([batch["category_id"], jnp.zeros(2, int)]),
        "valid": jnp.arange(BATCH + 2) < BATCH,
    }
    first, second = (
        loss_and_grads(prior_of(), params, rows, 0.3)[0][0] for rows in (batch, padded)
    )
    assert float(first) == pytest.approx(float(second), rel=1e-6)


def test_the_weight_of_the_prior_by_each_rule():
    def weight(shots, num_data, **changes):
        return objective.prior_weight(prior_of(**changes), shots, num_data)

    assert weight(16, 320) == 1 / 16
    assert weight(4, 20, lambda_rule="shots_squared") == 1 / 16
    # sigma^2 = 1 / (2 C) is the shots rule: n = S C.
    found = weight(16, 320, lambda_rule="sigma2", sigma2=1 / 40)
    assert found == pytest.approx(1 / 16)
