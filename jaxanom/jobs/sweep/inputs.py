"""What the programs of a sweep take: data, first particles, the trained prior."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxanom.jobs.sweep import grid, program, seeds
from jaxanom.methods.app import parts as app_parts
from jaxanom.training import optimizer
from jaxanom.types import Array, Frozen, Params


class Inputs(NamedTuple):
    """What all programs share.

    Attributes:
      config: without its section `sweep`.
      numbers: the seeds, in the order of all leading axes below.
      parts: the method in pieces.
      frozen: what no seed changes.
      seeds: data, stacked over seeds.
      prior: trained parameters besides the particles, stacked over seeds.
      keys: one a seed, of phase "particles".
    """

    config: ml_collections.ConfigDict
    numbers: tuple[int, ...]
    parts: app_parts.Parts
    frozen: Frozen
    seeds: seeds.Seeds
    prior: Params
    keys: Array


def make(config: ml_collections.ConfigDict, points: Sequence[grid.Point]) -> Inputs:
    """Encodes the images of all seeds and trains their prior networks in one program.

    Args:
      config: without its section `sweep`.
      points: whose seeds are meant.

    Raises:
      UserError: see `seeds.load`.
    """
    numbers = tuple(dict.fromkeys(point.seed for point in points))
    parts, frozen, stacked = seeds.load(config, numbers)
    roots = _roots(config, numbers)
    prior = _stack([app_parts.params(parts, root, 1) for root in roots])
    del prior["particles"]  # those of another number are drawn for each program
    of_phase = phase(config, "prior")
    if of_phase.num_steps:
        train = program.prior_program(parts, of_phase)
        prior["prior"] = train(prior["prior"], stacked, frozen, _keys(roots, 0))
    return Inputs(config, numbers, parts, frozen, stacked, prior, _keys(roots, 1))


def arguments(inputs: Inputs, num_particles: int) -> tuple[Any, ...]:
    """Returns what a program of N particles takes after its places."""
    roots = _roots(inputs.config, inputs.numbers)
    drawn = [app_parts.params(inputs.parts, root, num_particles) for root in roots]
    particles = _stack([tree["particles"] for tree in drawn])
    params = {**inputs.prior, "particles": particles}
    return params, inputs.seeds, inputs.frozen, inputs.keys


def places(inputs: Inputs, group: grid.Group, size: int) -> program.Places:
    """Numbers the points of a group; places left over repeat the last one."""
    points = [*group.points, *[group.points[-1]] * (size - len(group.points))]
    noise = inputs.config.app.particles.noise_seed
    return program.Places(
        np.array([inputs.numbers.index(p.seed) for p in points], np.int32),
        np.array([group.variants.index((p.update, p.rkhs)) for p in points], np.int32),
        np.array([p.step_size for p in points], np.float32),
        np.array([noise + p.seed for p in points], np.int32),
    )


def phase(config: Any, name: str) -> optimizer.OptimizerConfig:
    """Reads `config.phases.<name>`."""
    where = f"config.phases.{name}"
    return optimizer.read(config.phases[name], where)


def _roots(config: Any, numbers: Sequence[int]) -> list[Array]:
    return [jax.random.key(config.train.seed + number) for number in numbers]


def _keys(roots: Sequence[Array], index: int) -> Array:
    """Returns the keys of a phase, as the trainer splits them."""
    train = [jax.random.split(root)[1] for root in roots]
    return jnp.stack([jax.random.fold_in(key, index) for key in train])


def _stack(items: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)
