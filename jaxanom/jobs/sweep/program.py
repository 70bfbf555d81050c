"""One program for many runs: trained, predicted and measured side by side."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxanom import trees
from jaxanom.methods.app import coupling, objective, predict
from jaxanom.methods.app.parts import Parts
from jaxanom.parallel import mesh as meshes
from jaxanom.posterior import kernels, ksd, transport
from jaxanom.posterior import pairs as pairing
from jaxanom.training import optimizer, state, step
from jaxanom.types import Array, Batch, Frozen, Params


class Places(NamedTuple):
    """Points of a group as numbers, [R] each.

    Attributes:
      seed: int32, place of the seed in `Seeds`.
      variant: int32, place among the group's (update, rkhs) pairs.
      step_size: float32, factor.
      noise_seed: int32, of samplers.
    """

    seed: Array
    variant: Array
    step_size: Array
    noise_seed: Array


class Outcome(NamedTuple):
    """What a run ends with; a leading axis over runs.

    Attributes:
      log_probability: [m, T] of the test images' classes.
      mutual_information: [m] nats.
      discrepancy: kernelised Stein discrepancy to the posterior, see `discrepancy`.
      spread: mean distance of two particles.
      train_ce: mean over particles of the training images' cross-entropy.
      skipped: steps whose loss was not finite.
      path: [1 + num_snapshots, P, D], the particles from start to end.
    """

    log_probability: Array
    mutual_information: Array
    discrepancy: Array
    spread: Array
    train_ce: Array
    skipped: Array
    path: Array


class Settings(NamedTuple):
    """What a program is made for.

    Attributes:
      particles: `config.phases.particles`.
      mesh_config: `config.mesh`.
      variants: (update, rkhs) pairs.
      num_snapshots: of the path; they divide the number of steps.
    """

    particles: optimizer.OptimizerConfig
    mesh_config: Any
    variants: Sequence[tuple[str, str]]
    num_snapshots: int


def prior_program(
    parts: Parts, config: optimizer.OptimizerConfig
) -> Callable[..., Params]:
    """Builds stage 1 of all seeds; its result serves every number of particles.

    Args:
      parts: of the method.
      config: `config.phases.prior`.

    Returns:
      Jitted (prior networks, Seeds, frozen, keys) -> trained prior networks; all but
      `frozen` have a leading axis over seeds.
    """
    tx = optimizer.make(config)
    epoch = step.pure_epoch(objective.prior_loss(parts.network, parts.prior), tx)

    def one(prior, seed, frozen, key):
        rows = {**seed.rows, "valid": seed.rows["valid"] > 0}
        carried = state.init({"prior": prior}, tx, key, averaged=False)
        whole = {**frozen, **seed.frozen}
        carried, _ = epoch(carried, {}, whole, rows, seed.order["prior"])
        return carried.params["prior"]

    return jax.jit(meshes.bound(jax.vmap(one, in_axes=(0, 0, None, 0))))


def particle_program(parts: Parts, settings: Settings) -> Callable[..., Outcome]:
    """Builds stage 2 and its measures for all points of a group.

    Returns:
      Jitted (Places, stacked parameters, Seeds, frozen, keys) -> Outcome, all with a
      leading axis over runs; parameters and keys have one over seeds.
    """
    loss_fn = objective.particle_loss(parts.network, parts.prior)
    patterns = objective.trainable(parts.prior)

    def one(place, params, seeds, frozen, keys):
        params, seed, key = jax.tree.map(
            lambda leaf: leaf[place.seed], (params, seeds, keys)
        )
        whole = {**frozen, **seed.frozen}
        trained, fixed = trees.split(params, patterns)
        tx = _chain(parts, settings, place)
        epoch = step.pure_epoch(loss_fn, tx)
        every = {**seed.rows, "valid": seed.rows["valid"] > 0}

        def part(carried, order):
            carried, _ = epoch(carried, fixed, whole, every, order)
            return carried, _flat(carried.params)

        order = seed.order["particles"]
        order = order.reshape(settings.num_snapshots, -1, order.shape[-1])
        carried = state.init(trained, tx, key, averaged=False)
        last, path = jax.lax.scan(part, carried, order)
        params = trees.merge(last.params, fixed)
        start = _flat(trained)[None]
        return Outcome(
            **_predicted(parts, params, whole, seed.test),
            **_measured(parts, loss_fn, params, whole, seed.rows),
            skipped=last.skipped,
            path=jnp.concatenate([start, path]),
        )

    many = jax.vmap(one, in_axes=(0, None, None, None, None))
    return jax.jit(meshes.bound(many))


def _chain(parts: Parts, settings: Settings, place: Places):
    """The optimiser of one run: step size and transport are values."""

    def chain(update, rkhs):
        options = parts.particles._replace(
            update=update,
            rkhs=rkhs if update in coupling.COUPLED else parts.particles.rkhs,
            step_size=parts.particles.step_size * place.step_size,
            noise_seed=place.noise_seed,
        )
        config = settings.particles
        if update in coupling.SAMPLERS:
            config = dataclasses.replace(config, **coupling.OF_SAMPLERS)
        else:
            rates = (config.learning_rate, config.first_rate)
            rates = [rate * place.step_size for rate in rates]
            config = dataclasses.replace(
                config, learning_rate=rates[0], first_rate=rates[1]
            )
        moves = coupling.make(
            options, parts.num_data, parts.network.tower, settings.mesh_config
        )
        return optimizer.make(config, moves)

    return transport.choose(
        place.variant, [chain(*variant) for variant in settings.variants]
    )


def _flat(params: Params) -> Array:
    return trees.ravel_particles(params["particles"])[0]


def _predicted(parts: Parts, params: Params, frozen: Frozen, test: Batch):
    """Returns the predictive distribution of the test images."""
    logits = predict.posterior_logits(
        parts.network,
        params,
        frozen,
        test["image_features"],
        test["category_id"],
        parts.answers,
    )
    mixed = predict.mixed_logits(logits, parts.answers)
    unsure = predict.uncertainty(logits.particles)
    return {
        "log_probability": jax.nn.log_softmax(mixed),
        "mutual_information": unsure["mutual_information"],
    }


def _measured(parts: Parts, loss_fn, params: Params, frozen: Frozen, rows: Batch):
    """Returns how particles lie, to one another and to the posterior."""
    particles = params["particles"]

    def loss_of(particles):
        return loss_fn({**params, "particles": particles}, frozen, rows, None)

    grads, metrics = jax.grad(loss_of, has_aux=True)(particles)
    x, grad = trees.ravel_particles(particles)[0], trees.ravel_particles(grads)[0]
    temperature = coupling.temperature(parts.particles, parts.num_data)
    found = jnp.full((), jnp.nan)
    if temperature:
        found = discrepancy(x, -grad / temperature, parts.init_std)
    return {
        "discrepancy": found,
        "spread": pairing.mean_distance(x),
        "train_ce": metrics["ce"],
    }


def discrepancy(particles: Array, grad_log_p: Array, init_std: float) -> Array:
    """Square root of the V-statistic of KSD with an IMQ kernel, a scalar.

    Its squared width is that distance at which two particles are drawn, 2 D std^2: the
    same for every number of particles and transport, so that values compare.

    Args:
      particles: [P, D].
      grad_log_p: [P, D], of the whole posterior.
      init_std: of the first particles.
    """
    width = 2 * particles.shape[1] * init_std**2
    matrix = ksd.stein_matrix(particles, grad_log_p, width, kernels.imq())
    return jnp.sqrt(jnp.maximum(ksd.statistics(matrix)[0], 0.0))
