"""`config.app` and a dataset -> what losses, transports and predictions share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom import sections
from jaxanom.data import catalog, generated, pipeline
from jaxanom.errors import UserError
from jaxanom.methods.app import classes, coupling, model, objective, predict
from jaxanom.models.checkpoints import sources
from jaxanom.models.clip import pair as clip_pair
from jaxanom.models.clip import shared_prefix
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Batch, Frozen, Params, PRNGKey

TEXT_FORMS = {"shared": shared_prefix.cut, "whole": shared_prefix.whole}


class Parts(NamedTuple):
    """The method in pieces; the number of particles is not among them.

    Attributes:
      named: the classes.
      network: text tower and task.
      prior: options of the prior.
      particles: options of the transport.
      answers: options of the prediction.
      pair: both towers of CLIP.
      num_data: n, images that phase "particles" draws from.
      init_std: of the first particles.
    """

    named: classes.Classes
    network: objective.Network
    prior: objective.Prior
    particles: coupling.Options
    answers: predict.Options
    pair: clip_pair.ClipPair
    num_data: int
    init_std: float


def assemble(config: Any, dataset: catalog.Dataset) -> Parts:
    """Reads `config.app` and opens the towers.

    Args:
      config: its `app`, `model`, `mixture.particles`, `data.generated` and the number
        of steps of `phases.prior` are read.
      dataset: the training part.

    Raises:
      UserError: an option, a class name or a backbone that does not fit.
    """
    settings = config.app
    named = classes.make(
        settings.task,
        dataset.categories,
        dataset.defect_types,
        settings.good_name,
        settings.bad_name,
        settings.defect_name,
    )
    particles = options_of(settings.particles)
    if settings.prior.train == "frozen_random" and config.phases.prior.num_steps:
        raise UserError(
            "config.app.prior.train='frozen_random' leaves the prior as drawn; set "
            "config.phases.prior.num_steps=0"
        )
    answers = predict.Options(
        **sections.given(
            settings.predict, predict.Options._fields, "config.app.predict"
        )
    )
    predict.check(answers)
    dtype = jnp.dtype(config.model.dtype)
    loading = sources.chosen(config.model)
    pair = clip_pair.load(config.model.directory, dtype, loading)
    num_data = max(_num_images(config, dataset), 1)
    return Parts(
        named=named,
        network=_network(settings, named, pair, dtype),
        prior=_prior(settings.prior, particles, num_data, len(named.names)),
        particles=particles,
        answers=answers,
        pair=pair,
        num_data=num_data,
        init_std=settings.init_std,
    )


def options_of(section: Any) -> coupling.Options:
    """Reads `config.app.particles`; UserError names an unknown key."""
    return coupling.Options(
        **sections.given(section, coupling.Options._fields, "config.app.particles")
    )


def params(parts: Parts, key: PRNGKey, num_particles: int) -> Params:
    """Draws particles and prior network; see `model.init`."""
    width = parts.pair.text_config.hidden_size
    found = model.init(
        key,
        num_particles,
        parts.network.num_vectors,
        width,
        parts.pair.feature_width,
        parts.init_std,
    )
    if parts.prior.center == "ema":
        found["center"] = {"average": jnp.zeros(width)}
    return found


def frozen(parts: Parts, dataset: catalog.Dataset | None = None) -> Frozen:
    """Returns what is not trained: towers, classes and, for `center`, image features.

    Args:
      parts: of `assemble`.
      dataset: the training part, whose clean images `prior.center="dataset"` averages;
        None leaves that entry, "train_features", to the caller.
    """
    found = {
        "text": parts.pair.text_params,
        "image": parts.pair.image_params,
        "logit_scale": parts.pair.logit_scale,
        "columns": jnp.asarray(parts.named.columns),
    }
    if parts.prior.center == "dataset" and dataset is not None:
        found["train_features"] = _features(dataset, parts.pair)
    return found


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
    if weights.get("generated") and directory.is_dir():
        rows = generated.read_manifest(directory)
        counts["generated"] = sum(row["image"] is not None for row in rows)
    return sum(count for name, count in counts.items() if weights.get(name))


def _prior(
    section: Any, particles: coupling.Options, num_images: int, num_classes: int
) -> objective.Prior:
    """Reads `config.app.prior`; S is the mean number of images per class."""
    weight = objective.prior_weight(
        section.lambda_rule,
        num_images / num_classes,
        section.reg,
        section.sigma2,
        particles.num_data or num_images,
    )
    prior = objective.Prior(
        support=section.support,
        center=section.center,
        center_rate=section.center_rate,
        layout=section.layout,
        train=section.train,
        weight=weight,
        weight_decay=section.weight_decay,
    )
    objective.check(prior)
    return prior


def _network(
    settings: Any, named: classes.Classes, pair: clip_pair.ClipPair, dtype: Any
) -> objective.Network:
    if settings.text_form not in TEXT_FORMS:
        raise UserError(
            f"config.app.text_form={settings.text_form!r}; choose one of "
            f"{tuple(TEXT_FORMS)}"
        )
    layout = classes.layout(
        named,
        settings.template,
        settings.num_vectors,
        pair.tokenizer,
        pair.text_config.max_position_embeddings,
    )
    tower = model.TextTower(
        config=pair.text_config,
        parts=TEXT_FORMS[settings.text_form](layout),
        dtype=dtype,
        prompt_chunk=settings.prompt_chunk,
        class_chunk=settings.class_chunk,
    )
    return objective.Network(tower, settings.num_vectors, classes.TASKS[settings.task])


def _features(dataset: catalog.Dataset, pair: clip_pair.ClipPair, batch_size: int = 32):
    """Encodes the clean training images once, [n, v]."""
    encode = jax.jit(
        meshes.bound(lambda params, image: pair.encode_image(params, image)[0])
    )
    source = catalog.source(dataset)
    rows = []
    for batch in pipeline.finite_batches(source, min(batch_size, len(source))):
        found = np.asarray(encode(pair.image_params, batch["image"]))
        rows.append(found[batch["valid"]])
    return jnp.asarray(np.concatenate(rows))
