"""`config.app` and a dataset -> what losses, transports and predictions share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxanom.data import catalog, generated, pipeline
from jaxanom.errors import UserError
from jaxanom.methods.app import classes, model, objective
from jaxanom.methods.app import options as settings
from jaxanom.models.checkpoints import sources
from jaxanom.models.clip import pair as clip_pair
from jaxanom.models.clip import shared_prefix
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Batch, Frozen, Params, PRNGKey


class Parts(NamedTuple):
    """The method in pieces; the number of particles is not among them.

    Attributes:
      options: `config.app`.
      named: The classes.
      network: Text tower and task.
      weight: lambda, the prior's weight in the loss.
      pair: Both towers of CLIP.
      num_data: n, images that phase "particles" draws from.
    """

    options: settings.Options
    named: classes.Classes
    network: objective.Network
    weight: float
    pair: clip_pair.ClipPair
    num_data: int


def assemble(config: Any, dataset: catalog.Dataset) -> Parts:
    """Reads `config.app` and opens the towers.

    Args:
      config: Its `app`, `model`, `mixture.particles`, `data.generated` and the number
        of steps of `phases.prior` are read.
      dataset: The training part.

    Raises:
      UserError: An option, a class name or a backbone that does not fit.
    """
    options = settings.read(config.app)
    named = classes.make(
        options.task,
        dataset.categories,
        dataset.defect_types,
        options.good_name,
        options.bad_name,
        options.defect_name,
    )
    if options.prior.train == "frozen_random" and config.phases.prior.num_steps:
        raise UserError(
            "config.app.prior.train='frozen_random' leaves the prior as drawn; set "
            "config.phases.prior.num_steps=0"
        )
    dtype = jnp.dtype(config.model.dtype)
    loading = sources.chosen(config.model)
    pair = clip_pair.load(config.model.directory, dtype, loading)
    num_data = max(_num_images(config, dataset), 1)
    weight = objective.prior_weight(
        options.prior,
        num_data / len(named.names),  # S, in the mean over classes
        options.particles.num_data or num_data,
    )
    network = _network(options, named, pair, dtype)
    return Parts(options, named, network, weight, pair, num_data)


def params(parts: Parts, key: PRNGKey, num_particles: int) -> Params:
    """Draws particles and prior network; see `model.init`."""
    width = parts.pair.text_config.hidden_size
    drawn = model.init(
        key,
        num_particles,
        parts.options.num_vectors,
        width,
        parts.pair.feature_width,
        parts.options.init_std,
    )
    if parts.options.prior.center == "ema":
        drawn["center"] = {"average": jnp.zeros(width)}
    return drawn


def frozen(parts: Parts) -> Frozen:
    """Returns what is not trained and no image changes: towers and classes."""
    return {
        "text": parts.pair.text_params,
        "image": parts.pair.image_params,
        "logit_scale": parts.pair.logit_scale,
        "columns": jnp.asarray(parts.named.columns),
    }


def train_features(parts: Parts, dataset: catalog.Dataset) -> Frozen:
    """Returns the features [n, v] that `prior.center="dataset"` averages, if it does.

    Args:
      parts: The method in pieces.
      dataset: The training part, whose clean images are encoded once.
    """
    if parts.options.prior.center != "dataset":
        return {}
    encode, source = jax.jit(meshes.bound(encoder(parts))), catalog.source(dataset)
    rows = pipeline.encoded(
        source, lambda rows: encode(frozen(parts), rows), min(32, len(source))
    )
    return {"train_features": jnp.asarray(rows.arrays["image_features"])}


def encoder(parts: Parts) -> Callable[[Frozen, Batch], Batch]:
    """Returns `Method.encode`: images to features, with their labels."""

    def encode(frozen: Frozen, batch: Batch) -> Batch:
        features, _ = parts.pair.encode_image(frozen["image"], batch["image"])
        kept = ("label", "category_id", "defect_id", "valid")
        return {"image_features": features, **{name: batch[name] for name in kept}}

    return encode


def _num_images(config: Any, dataset: catalog.Dataset) -> int:
    """Counts the images of the pools with a weight in `config.mixture.particles`."""
    weights = config.mixture.particles
    kinds = [record.defect_type for record in dataset.records]
    counts = {"normal": kinds.count(catalog.GOOD), "generated": 0}
    counts["defect"] = len(kinds) - counts["normal"]
    directory = Path(config.data.generated).expanduser()
    # Predictions do not need n, and may be made where the set is not.
    if weights["generated"] and directory.is_dir():
        rows = generated.read_manifest(directory)
        counts["generated"] = sum(row["image"] is not None for row in rows)
    return sum(count for name, count in counts.items() if weights[name])


def _network(
    options: settings.Options,
    named: classes.Classes,
    pair: clip_pair.ClipPair,
    dtype: Any,
) -> objective.Network:
    layout = classes.layout(
        named,
        options.template,
        options.num_vectors,
        pair.tokenizer,
        pair.text_config.max_position_embeddings,
    )
    tower = model.TextTower(
        config=pair.text_config,
        parts=shared_prefix.cut(layout),
        dtype=dtype,
        prompt_chunk=options.prompt_chunk,
        class_chunk=options.class_chunk,
    )
    target = settings.TASKS[options.task]
    return objective.Network(tower, options.num_vectors, target)
