"""One program for many runs: trained, predicted and measured side by side."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxanom import trees
from jaxanom.contracts import Method, Phase, Posterior
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
      noise_seed: int32, added to the samplers' own.
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
      discrepancy: Kernelised Stein discrepancy to the posterior, see `discrepancy`.
      spread: Mean distance of two particles.
      train_ce: Mean over particles of the training images' cross-entropy.
      skipped: Steps whose loss was not finite.
      path: [1 + num_snapshots, P, D], the particles from start to end.
    """

    log_probability: Array
    mutual_information: Array
    discrepancy: Array
    spread: Array
    train_ce: Array
    skipped: Array
    path: Array


def prior_program(
    method: Method, config: optimizer.OptimizerConfig
) -> Callable[..., Params]:
    """Builds stage 1 of all seeds; its result serves every number of particles.

    Args:
      method: Its phase "prior" is run.
      config: `config.phases.prior`.

    Returns:
      Jitted (prior networks, Seeds, frozen, keys) -> trained prior networks; all but
      `frozen` have a leading axis over seeds.
    """
    tx = optimizer.make(config)
    epoch = step.pure_epoch(_phase(method, "prior").loss_fn, tx)

    def one(prior, seed, frozen, key):
        rows = {**seed.rows, "valid": seed.rows["valid"] > 0}
        carried = state.init({"prior": prior}, tx, key, averaged=False)
        whole = {**frozen, **seed.frozen}
        carried, _ = epoch(carried, {}, whole, rows, seed.order["prior"])
        return carried.params["prior"]

    return jax.jit(meshes.bound(jax.vmap(one, in_axes=(0, 0, None, 0))))


def particle_program(
    method: Method,
    config: optimizer.OptimizerConfig,
    variants: Sequence[tuple[str, str]],
    num_snapshots: int,
) -> Callable[..., Outcome]:
    """Builds stage 2 and its measures for all points of a group.

    Args:
      method: Its phase "particles" is run.
      config: `config.phases.particles`.
      variants: (update, rkhs) pairs.
      num_snapshots: Places along the path; they divide the number of steps.

    Returns:
      Jitted (Places, stacked parameters, Seeds, frozen, keys) -> Outcome, all with a
      leading axis over runs; parameters and keys have one over seeds.
    """
    phase, posterior = _phase(method, "particles"), method.posterior

    def one(place, params, seeds, frozen, keys):
        params, seed, key = jax.tree.map(
            lambda leaf: leaf[place.seed], (params, seeds, keys)
        )
        whole = {**frozen, **seed.frozen}
        trained, fixed = trees.split(params, phase.trainable)
        chains = [_chain(posterior, config, place, *variant) for variant in variants]
        tx = transport.choose(place.variant, chains)
        epoch = step.pure_epoch(phase.loss_fn, tx)
        every = {**seed.rows, "valid": seed.rows["valid"] > 0}

        def part(carried, order):
            carried, _ = epoch(carried, fixed, whole, every, order)
            return carried, _flat(carried.params)

        order = seed.order["particles"]
        order = order.reshape(num_snapshots, -1, order.shape[-1])
        carried = state.init(trained, tx, key, averaged=False)
        last, path = jax.lax.scan(part, carried, order)
        params = trees.merge(last.params, fixed)
        start = _flat(trained)[None]
        log_probability, mutual_information = posterior.answer(params, whole, seed.test)
        return Outcome(
            log_probability,
            mutual_information,
            *_measured(posterior, phase.loss_fn, params, whole, seed.rows),
            skipped=last.skipped,
            path=jnp.concatenate([start, path]),
        )

    many = jax.vmap(one, in_axes=(0, None, None, None, None))
    return jax.jit(meshes.bound(many))


def _phase(method: Method, name: str) -> Phase:
    return next(phase for phase in method.phases if phase.name == name)


def _chain(posterior: Posterior, config, place: Places, update: str, rkhs: str):
    """The optimiser of one variant: step size and noise are values."""
    if posterior.own_steps(update):
        config = dataclasses.replace(config, **transport.WHOLE_MOVES)
    else:
        config = dataclasses.replace(
            config,
            learning_rate=config.learning_rate * place.step_size,
            first_rate=config.first_rate * place.step_size,
        )
    moves = posterior.moves(update, rkhs, place.step_size, place.noise_seed)
    return optimizer.make(config, moves)


def _flat(params: Params) -> Array:
    return trees.ravel_particles(params["particles"])[0]


def _measured(
    posterior: Posterior, loss_fn, params: Params, frozen: Frozen, rows: Batch
) -> tuple[Array, Array, Array]:
    """Returns discrepancy, spread and cross-entropy of the training images."""
    particles = params["particles"]

    def loss_of(particles):
        return loss_fn({**params, "particles": particles}, frozen, rows, None)

    grads, metrics = jax.grad(loss_of, has_aux=True)(particles)
    x, grad = trees.ravel_particles(particles)[0], trees.ravel_particles(grads)[0]
    distance = jnp.full((), jnp.nan)
    if posterior.temperature:
        grad_log_p = -grad / posterior.temperature
        distance = discrepancy(x, grad_log_p, posterior.init_std)
    return distance, pairing.mean_distance(x), metrics["ce"]


def discrepancy(particles: Array, grad_log_p: Array, init_std: float) -> Array:
    """Square root of the V-statistic of KSD with an IMQ kernel, a scalar.

    Its squared width is that distance at which two particles are drawn, 2 D std^2: the
    same for every number of particles and transport, so that values compare.

    Args:
      particles: [P, D].
      grad_log_p: [P, D], the whole posterior's.
      init_std: Deviation of the first particles' entries.
    """
    width = 2 * particles.shape[1] * init_std**2
    matrix = ksd.stein_matrix(particles, grad_log_p, width, kernels.imq())
    return jnp.sqrt(jnp.maximum(ksd.statistics(matrix)[0], 0.0))
