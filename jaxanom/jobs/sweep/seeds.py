"""What differs from seed to seed of a sweep, stacked: images, shots, batches.

Every seed is a run of its own as `jaxanom train` would do it with that seed: the same
shots, views and batches. Images are encoded once; what is left of them are features.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxanom.data import catalog, pipeline, pools
from jaxanom.errors import UserError
from jaxanom.jobs import prepare
from jaxanom.methods.app import parts as app_parts
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Frozen

PHASES = ("prior", "particles")


class Seeds(NamedTuple):
    """Arrays with a leading axis over seeds.

    Attributes:
      rows: encoded training images, [S, n, ...]; `valid` holds float weights, how often
        phase "particles" draws a row relative to the mean.
      order: {phase: [S, T, B] int32}, the rows of every step's batch.
      test: encoded test images, [S, m, ...].
      frozen: entries of `frozen` that a seed has of its own.
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
    found = ml_collections.ConfigDict(config.to_dict())
    found.seed += seed
    found.train.seed += seed
    found.data.seed += seed
    found.data.split_seed += seed
    found.app.particles.noise_seed += seed
    return found


def load(
    config: ml_collections.ConfigDict, seeds: Sequence[int]
) -> tuple[app_parts.Parts, Frozen, Seeds]:
    """Opens, divides and encodes the data of every seed.

    Args:
      config: of method "app".
      seeds: at least one.

    Returns:
      (the method in pieces, what is frozen in all seeds, the seeds).

    Raises:
      UserError: see `prepared.prepare`; or seeds whose data differ in size.
    """
    found, encode, frozen, items = None, None, None, []
    for seed in seeds:
        own = config_of(config, seed)
        dataset, division = prepare.open_data(own)
        training = pools.training_part(dataset, division)
        if found is None:
            found = app_parts.assemble(own, training)
            frozen, encode = (
                app_parts.frozen(found),
                jax.jit(meshes.bound(app_parts.encoder(found))),
            )
        items.append(_one(own, found, encode, frozen, dataset, division))
    return found, frozen, _stacked(items)


def _one(config, found, encode, frozen, dataset, division) -> Seeds:
    """Returns the data of one seed, without the leading axis."""
    sources = pools.sources(dataset, division, config.data.generated)
    mixtures = {phase: dict(config.mixture[phase]) for phase in PHASES}
    pools.check_mixtures(sources, mixtures, PHASES)
    used = prepare.used_pools(mixtures)
    pooled = {
        name: _arrays(prepare.encoded(config, encode, frozen, source))
        for name, source in sources.items()
        if name in used and len(source)
    }
    counts = {name: len(_any(rows)) for name, rows in pooled.items()}
    rows = {
        key: np.concatenate([part[key] for part in pooled.values()])
        for key in _first(pooled)
    }
    own = {}
    if found.prior.center == "dataset":
        training = pools.training_part(dataset, division)
        source = catalog.source(training)
        own["train_features"] = _unviewed(encode, frozen, source)["image_features"]
    return Seeds(
        rows | {"valid": _weights(counts, mixtures["particles"])},
        _orders(config, counts, mixtures),
        _unviewed(encode, frozen, catalog.source(dataset, division.test)),
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
    found = {}
    for phase in PHASES:
        steps = config.phases[phase].num_steps
        order = np.zeros((steps, batch_size), np.int32)
        with make_batches(phase, 0) as batches:
            for step, batch in zip(range(steps), batches, strict=False):
                order[step] = batch["row"]
        found[phase] = order
    return found


def _weights(counts: Mapping[str, int], mixture: Mapping[str, float]) -> np.ndarray:
    """Returns how often a row is drawn, relative to the mean over rows."""
    total = sum(mixture.values())
    shares = [
        np.full(count, mixture.get(name, 0.0) / total / count)
        for name, count in counts.items()
    ]
    joined = np.concatenate(shares)
    return (joined * len(joined)).astype(np.float32)


def _unviewed(encode, frozen, source, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Encodes images as they are."""
    size = min(batch_size, len(source))
    return _arrays(pipeline.encoded(source, lambda batch: encode(frozen, batch), size))


def _arrays(source: catalog.Source) -> dict[str, np.ndarray]:
    """Stacks the rows of an encoded source."""
    rows = pipeline.collate([source[row] for row in range(len(source))])
    return {key: rows[key] for key in rows if key != "index"}


def _stacked(items: Sequence[Seeds]) -> Seeds:
    shapes = {str(jax.tree.map(np.shape, item)) for item in items}
    if len(shapes) > 1:
        raise UserError(
            "config.sweep.seed: seeds divide the images into parts of different sizes, "
            "which cannot run as one program; set config.data.num_train and "
            "config.data.shots so that every class has as many"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)


def _any(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    return next(iter(rows.values()))


def _first(pooled: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    return list(next(iter(pooled.values())))
