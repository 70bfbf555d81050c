"""Flows, samplers and integrators as the config names them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_app import loss_and_grads, particles_of, prior_of, world

from jaxanom.methods.app import coupling, model, objective, options
from jaxanom.posterior import transport

SPACES = options.CHOICES["particles.space"]


FLOWS, SAMPLERS = transport.FLOWS, transport.SAMPLERS


def step_of(moves, params, grads, frozen):
    network = world()[0]
    tx = coupling.make(moves, 20, network.tower, None)
    tx = optax.with_extra_args_support(tx)
    only = {"particles": params["particles"]}
    updates, _ = tx.update(
        {"particles": grads["particles"]}, tx.init(only), only, frozen=frozen
    )
    return updates["particles"]["context"]


@pytest.mark.parametrize("update", [u for u in FLOWS if u != "map"])
@pytest.mark.parametrize("space", SPACES)
def test_one_particle_follows_its_gradient_in_every_flow_and_space(update, space):
    _, params, frozen, batch = world(1)
    _, grads = loss_and_grads(prior_of(), params, batch, num_particles=1)
    moves = particles_of(update=update, space=space)
    found = step_of(moves, params, grads, frozen)
    np.testing.assert_allclose(found, grads["particles"]["context"], atol=1e-6)


@pytest.mark.parametrize("rule", options.CHOICES["particles.bandwidth_rule"])
def test_every_bandwidth_rule_pushes(rule):
    _, params, frozen, _ = world()
    zero = jax.tree.map(jnp.zeros_like, params)
    moves = particles_of(bandwidth_rule=rule, temperature=20.0)
    step = step_of(moves, params, zero, frozen)
    fixed = step_of(moves._replace(bandwidth=1.0), params, zero, frozen)
    assert np.any(np.asarray(step) != 0) and np.all(np.isfinite(step))
    assert not np.allclose(step, fixed)


@pytest.mark.parametrize("space", SPACES)
def test_the_push_parts_particles_in_the_space_it_is_found_in(space):
    network, params, frozen, _ = world()
    zero = jax.tree.map(jnp.zeros_like, params)
    moves = particles_of(update="gfsd", space=space, temperature=20.0)
    step = step_of(moves, params, zero, frozen)
    moved = params["particles"]["context"] - 0.01 * step

    def seen(context):
        if space == "token_mean":
            return context.mean(1)
        if space == "text_features":
            found = model.text_features(network.tower, frozen["text"], context)
            return found.reshape(3, -1)
        return context.reshape(3, -1)

    def spread(context):
        x = seen(context)
        return float(jnp.mean(jnp.linalg.norm(x[:, None] - x[None], axis=-1)))

    assert spread(moved) > spread(params["particles"]["context"])


def test_temperature_is_shared_among_the_data():
    """20 data at T = 20 push as one datum does."""
    _, params, frozen, _ = world()
    zero = jax.tree.map(jnp.zeros_like, params)
    first = step_of(particles_of(temperature=20.0), params, zero, frozen)
    second = step_of(particles_of(num_data=1.0), params, zero, frozen)
    third = step_of(particles_of(), params, zero, frozen)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    np.testing.assert_allclose(third, second / 20, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("update", SAMPLERS)
def test_samplers_make_finite_moves_of_their_own(update):
    _, params, frozen, batch = world()
    _, grads = loss_and_grads(prior_of(), params, batch, 0.1)
    step = step_of(particles_of(update=update), params, grads, frozen)
    assert np.all(np.isfinite(step)) and np.any(np.asarray(step) != 0)
    other = step_of(particles_of(update=update, noise_seed=1), params, grads, frozen)
    assert not np.allclose(step, other)


@pytest.mark.parametrize("update", ["svgd", "map"])
@pytest.mark.parametrize("integrator", options.CHOICES["particles.integrator"])
def test_every_integrator_trains(update, integrator):
    network, params, frozen, batch = world()
    loss_fn = objective.particle_loss(network, prior_of(), 0.1)
    moves = particles_of(update=update, integrator=integrator, step_size=0.02)
    rate = 0.02 if integrator == "plain" else 1.0
    tx = optax.chain(coupling.make(moves, 20, network.tower, None), optax.sgd(rate))
    particles = {"particles": params["particles"]}

    def step(carry, _):
        particles, state = carry
        loss, grads = jax.value_and_grad(
            lambda p: loss_fn({**params, **p}, frozen, batch, None)[0]
        )(particles)
        updates, state = tx.update(grads, state, particles)
        return (optax.apply_updates(particles, updates), state), loss

    start = (particles, tx.init(particles))
    losses = np.asarray(jax.jit(lambda: jax.lax.scan(step, start, length=20)[1])())
    assert losses[-1] < losses[0] - 0.05 and np.all(np.isfinite(losses))
