"""APP: a particle posterior over prompts with a data-dependent prior (2401.06799).

Two phases: "prior" fits the network that maps images to prompt vectors; "particles"
moves N sets of prompt vectors towards the posterior around it. Classes are image
categories, defect types, or the two states of an object (`config.app.task`).

Where the paper (as far as it could be seen) and the released code differ:

| paper                      | released code             | here                   |
|----------------------------|---------------------------|------------------------|
| SVGD, particles repel      | independent SGD of each   | `particles.update`     |
| Gaussian prior of theta    | on the mean over tokens   | `prior.support`        |
| variance sigma^2           | reg / S or reg / S^2      | `prior.lambda_rule`    |
| prior of each image        | a reshape mixes images    | `prior.layout`         |
| posterior of n data        | mean cross-entropy, no n  | `particles.num_data`   |
| the prior's network learns | before, then frozen       | `prior.train`          |
| posterior average          | mean logits, and prior's  | `predict.*`            |
| -                          | weight decay, a 2nd prior | `prior.weight_decay`   |

Defaults follow the paper's method with the released loss; `update="map"` and
`layout="reference_reshuffle"` follow the code, which tests/parity/app pins. With many
dimensions and few particles SVGD's spread is too small: do not read it as calibrated.

Exact savings: sentences end at their end token and share what stands before the class
name (`text_form="shared"`); images are encoded once.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog, pipeline
from jaxanom.methods.app import classes, coupling, model, objective, predict
from jaxanom.models import clip_pair, shared_prefix
from jaxanom.types import Batch, Frozen, Params, PRNGKey

TEXT_FORMS = {"shared": shared_prefix.cut, "whole": shared_prefix.whole}


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the method from `config.app`.

    Args:
      config: its `app`, `model`, `phases` and `mesh` are read.
      dataset: the training part; its categories and defect types name the classes, its
        size is n.

    Raises:
      ValueError: an option, a class name or a backbone that does not fit.
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
    particles = coupling.Options(**_section(settings.particles, coupling.Options))
    coupling.check(particles, config.phases.particles)
    if settings.prior.train == "frozen_random" and config.phases.prior.num_steps:
        raise ValueError(
            "config.app.prior.train='frozen_random' leaves the prior as drawn; set "
            "config.phases.prior.num_steps=0"
        )
    answers = predict.Options(**_section(settings.predict, predict.Options))
    predict.check(answers)
    dtype = jnp.dtype(config.model.dtype)
    pair = clip_pair.load(config.model.directory, dtype)
    num_data = max(len(dataset.records), 1)
    prior = _prior(settings.prior, particles, num_data, len(named.targets))
    network = _network(settings, named, pair, dtype)
    num_particles, init_std = settings.num_particles, settings.init_std
    need_images = prior.center == "dataset"

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        width = pair.text_config.hidden_size
        params = model.init(
            key,
            num_particles,
            network.num_vectors,
            width,
            pair.feature_width,
            init_std,
        )
        if prior.center == "ema":
            params["center"] = {"average": jnp.zeros(width)}
        frozen = {
            "text": pair.text_params,
            "image": pair.image_params,
            "logit_scale": pair.logit_scale,
            "columns": jnp.asarray(named.columns),
        }
        if need_images:
            frozen["train_features"] = _features(dataset, pair)
        return params, frozen

    def encode(frozen: Frozen, batch: Batch) -> Batch:
        features, _ = pair.encode_image(frozen["image"], batch["image"])
        kept = ("label", "category_id", "defect_id", "valid")
        return {"image_features": features, **{name: batch[name] for name in kept}}

    tower = network.tower
    moves = coupling.make(particles, num_data, tower, config.mesh)
    return Method(
        init=init,
        phases=(
            Phase("prior", objective.prior_loss(network, prior), ("prior/.*",)),
            Phase(
                "particles",
                objective.particle_loss(network, prior),
                objective.trainable(prior),
                moves,
            ),
        ),
        encode=encode,
        predict=predict.make_predict(
            network,
            lambda frozen, image: pair.encode_image(frozen["image"], image),
            answers,
        ),
        target=network.target,
    )


def _section(section: Any, kind: type) -> dict[str, Any]:
    """Returns the keys of a config section; ValueError names an unknown one."""
    given = {name: section[name] for name in section}
    unknown = sorted(given.keys() - set(kind._fields))
    if unknown:
        raise ValueError(
            f"config.app has unknown keys {unknown}; known there are "
            f"{list(kind._fields)}"
        )
    return given


def _prior(
    section: Any, particles: coupling.Options, num_images: int, num_classes: int
) -> objective.Prior:
    """Reads `config.app.prior`; S is the number of images per class."""
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
        raise ValueError(
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
    encode = jax.jit(lambda params, image: pair.encode_image(params, image)[0])
    source = catalog.source(dataset)
    rows = []
    for batch in pipeline.finite_batches(source, min(batch_size, len(source))):
        found = np.asarray(encode(pair.image_params, batch["image"]))
        rows.append(found[batch["valid"]])
    return jnp.asarray(np.concatenate(rows))
