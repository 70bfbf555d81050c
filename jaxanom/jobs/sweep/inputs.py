"""What the programs of a sweep take: data, first particles, the trained prior."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxanom.contracts import Method
from jaxanom.jobs.sweep import grid, program, seeds
from jaxanom.training import optimizer
from jaxanom.types import Array, Params


class Inputs(NamedTuple):
    """What all programs share.

    Attributes:
      config: The sweep's config without its section `sweep`.
      numbers: The seeds, in the order of all leading axes below.
      method: What runs; its particles' transport is left open.
      seeds: Data, stacked over seeds.
      prior: Trained parameters besides the particles, stacked over seeds.
      keys: One a seed, of phase "particles".
    """

    config: ml_collections.ConfigDict
    numbers: tuple[int, ...]
    method: Method
    seeds: seeds.Seeds
    prior: Params
    keys: Array


def make(config: ml_collections.ConfigDict, points: Sequence[grid.Point]) -> Inputs:
    """Encodes the images of all seeds and trains their prior networks in one program.

    Args:
      config: The sweep's config without its section `sweep`.
      points: The runs whose seeds are meant.

    Raises:
      UserError: See `seeds.load`.
    """
    numbers = tuple(dict.fromkeys(point.seed for point in points))
    updates = tuple(dict.fromkeys(point.update for point in points))
    method, stacked = seeds.load(config, numbers, updates)
    roots = _roots(config, numbers)
    prior = _stack([method.posterior.draw(root, 1) for root in roots])
    del prior["particles"]  # those of another number are drawn for each program
    of_phase = phase(config, "prior")
    if of_phase.num_steps:
        train = program.prior_program(method, of_phase)
        frozen = method.posterior.frozen
        prior["prior"] = train(prior["prior"], stacked, frozen, _keys(roots, 0))
    return Inputs(config, numbers, method, stacked, prior, _keys(roots, 1))


def arguments(inputs: Inputs, num_particles: int) -> tuple[Any, ...]:
    """Returns what a program of N particles takes after its places."""
    posterior = inputs.method.posterior
    roots = _roots(inputs.config, inputs.numbers)
    drawn = [posterior.draw(root, num_particles)["particles"] for root in roots]
    params = {**inputs.prior, "particles": _stack(drawn)}
    return params, inputs.seeds, posterior.frozen, inputs.keys


def places(inputs: Inputs, group: grid.Group, size: int) -> program.Places:
    """Numbers the points of a group; places left over repeat the last one."""
    points = [*group.points, *[group.points[-1]] * (size - len(group.points))]
    return program.Places(
        np.array([inputs.numbers.index(p.seed) for p in points], np.int32),
        np.array([group.variants.index((p.update, p.rkhs)) for p in points], np.int32),
        np.array([p.step_size for p in points], np.float32),
        # The method is that of the first seed.
        np.array([p.seed - inputs.numbers[0] for p in points], np.int32),
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
