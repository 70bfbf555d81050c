"""What differs from seed to seed of a sweep, stacked: images, shots, batches.

Every seed is a run of its own as `jaxanom train` would do it with that seed: the same
shots, views and batches. Images are encoded once; what is left of them are features.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxanom.contracts import Method
from jaxanom.data import catalog, pipeline, pools
from jaxanom.errors import UserError
from jaxanom.jobs import prepare
from jaxanom.methods import by_name
from jaxanom.parallel import mesh as meshes
from jaxanom.posterior import transport
from jaxanom.types import Array

PHASES = ("prior", "particles")


class Seeds(NamedTuple):
    """Arrays with a leading axis over seeds.

    Attributes:
      rows: Encoded training images, [S, n, ...]; `valid` holds float weights, how often
        phase "particles" draws a row relative to the mean.
      order: {phase: [S, T, B] int32}, the rows of every step's batch.
      test: Encoded test images, [S, m, ...].
      frozen: Entries of `frozen` that a seed has of its own.
    """

    rows: Mapping[str, Array]
    order: Mapping[str, Array]
    test: Mapping[str, Array]
    frozen: Mapping[str, Array]


def config_of(
    config: ml_collections.ConfigDict, seed: int
) -> ml_collections.ConfigDict:
    """Returns the config of one run: `seed` is added to each of its seeds.

    Procedural images are drawn anew; shots are drawn anew from any images.
    """

    def shift(section: ml_collections.ConfigDict) -> None:
        for key, value in section.items():
            if isinstance(value, ml_collections.ConfigDict):
                shift(value)
            elif key == "seed" or key.endswith("_seed"):
                section[key] = value + seed

    own = ml_collections.ConfigDict(config.to_dict())
    shift(own)
    return own


def load(
    config: ml_collections.ConfigDict, seeds: Sequence[int], updates: Sequence[str] = ()
) -> tuple[Method, Seeds]:
    """Opens, divides and encodes the data of every seed.

    Args:
      config: The sweep's config without its section `sweep`.
      seeds: At least one.
      updates: Transports that have to fit; found out before anything is encoded.

    Returns:
      (the method of the first seed, the seeds).

    Raises:
      UserError: See `prepare.prepare`; or seeds whose data differ in size.
    """
    method, items = None, []
    for seed in seeds:
        own = config_of(config, seed)
        dataset, division = prepare.open_data(own)
        if method is None:
            method = by_name.make(own, pools.training_part(dataset, division))
            for update in updates:
                phase = own.phases.particles.to_dict()
                if method.posterior.own_steps(update):
                    phase |= transport.WHOLE_MOVES  # of the sweep's own optimiser
                method.posterior.check(update, phase)
            encode = jax.jit(meshes.bound(method.encode))
        items.append(_one(own, method, encode, dataset, division))
    return method, _stacked(items)


def _one(config, method: Method, encode, dataset, division) -> Seeds:
    """Returns the data of one seed, without the leading axis."""
    frozen = method.posterior.frozen

    def unviewed(source: catalog.Source) -> dict[str, np.ndarray]:
        size = min(32, len(source))
        return pipeline.encoded(source, lambda rows: encode(frozen, rows), size).arrays

    sources = pools.sources(dataset, division, config.data.generated)
    mixtures = {phase: dict(config.mixture[phase]) for phase in PHASES}
    pools.check_mixtures(sources, mixtures, PHASES)
    used = prepare.used_pools(mixtures)
    pooled = {
        name: prepare.encoded(config, encode, frozen, source)
        for name, source in sources.items()
        if name in used and len(source)
    }
    counts = {name: len(source) for name, source in pooled.items()}
    parts = [source.arrays for source in pooled.values()]
    rows = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    own = {}
    if reads := method.posterior.from_training:
        training = unviewed(catalog.source(pools.training_part(dataset, division)))
        own = {name: training[entry] for name, entry in reads.items()}
    return Seeds(
        rows | {"valid": _weights(counts, mixtures["particles"])},
        _orders(config, counts, mixtures),
        unviewed(catalog.source(dataset, division.test)),
        own,
    )


def _orders(config, counts, mixtures) -> dict[str, np.ndarray]:
    """Draws the rows of every batch as the trainer's batches are drawn."""
    starts = np.cumsum([0, *counts.values()])
    numbers = {
        name: [{"row": np.int32(start + i)} for i in range(count)]
        for (name, count), start in zip(counts.items(), starts[:-1], strict=True)
    }
    batch_size = config.data.batch_size
    make_batches = pools.batch_maker(numbers, mixtures, batch_size, config.seed)
    orders = {}
    for phase in PHASES:
        steps = config.phases[phase].num_steps
        orders[phase] = np.zeros((steps, batch_size), np.int32)
        with contextlib.closing(make_batches(phase, 0)) as batches:
            for step, batch in zip(range(steps), batches, strict=False):
                orders[phase][step] = batch["row"]
    return orders


def _weights(counts: Mapping[str, int], mixture: Mapping[str, float]) -> np.ndarray:
    """Returns how often a row is drawn, relative to the mean over rows."""
    total = sum(mixture.values())
    shares = [
        np.full(count, mixture[name] / total / count) for name, count in counts.items()
    ]
    joined = np.concatenate(shares)
    return (joined * len(joined)).astype(np.float32)


def _stacked(items: Sequence[Seeds]) -> Seeds:
    shapes = {str(jax.tree.map(np.shape, item)) for item in items}
    if len(shapes) > 1:
        raise UserError(
            "config.sweep.seed: seeds divide the images into parts of different sizes, "
            "which cannot run as one program; set config.data.num_train and "
            "config.data.shots so that every class has as many"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)
