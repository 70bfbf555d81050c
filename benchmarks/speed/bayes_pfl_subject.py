"""Random weights and inputs of Bayes-PFL at published sizes, for `bayes_pfl`."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.bayes_pfl import base
from jaxanom.methods import bayes_pfl
from jaxanom.methods.bayes_pfl import distributions, model, objective, sentences
from jaxanom.methods.bayes_pfl import options as settings
from jaxanom.models.clip import towers as clip
from jaxanom.models.ops import initialise

NAMES = ((2301,), (4517, 8206), (905,))
"""Token ids of three class names, of one and two words."""


class Size(NamedTuple):
    """Of the towers and the image."""

    vision: dict[str, int]
    text: dict[str, int]
    width: int
    image_size: int
    layers: tuple[int, ...]
    draws: int = 10


def tower(width: int, layers: int, heads: int) -> dict[str, int]:
    """Returns the sizes of one tower."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


LAYERS = (6, 12, 18, 24)
SIZES = {
    "published": Size(tower(1024, 24, 16), tower(768, 12, 12), 768, 518, LAYERS),
    "half": Size(tower(512, 24, 8), tower(384, 12, 6), 384, 518, LAYERS),
    "short": Size(tower(512, 6, 8), tower(384, 4, 6), 384, 336, (2, 3, 5, 6)),
    "small": Size(tower(32, 4, 2), tower(16, 2, 2), 16, 56, (1, 2, 3, 4), 2),
}


class Subject(NamedTuple):
    """Weights and inputs that every case is given.

    Attributes:
      size: Its sizes.
      clip_config: The config of both towers.
      clip_params, params: Frozen and trained weights.
      batch: Rows to train on.
      noise, noise_test: Draws for a step, and for one evaluated image.
      entry: The bank entry that was drawn.
    """

    size: Size
    clip_config: clip.ClipConfig
    clip_params: Any
    params: Any
    batch: dict[str, Any]
    noise: distributions.Noise
    noise_test: distributions.Noise
    entry: int = 1


class Built(NamedTuple):
    """One of our modes: its modules and frozen input."""

    network: model.Network
    towers: objective.Towers
    frozen: Any


def make_subject(size: Size, batch_size: int, seed: int = 0) -> Subject:
    """Draws weights, images, masks and noise."""
    image = {"patch_size": 14, "image_size": 336 if size.image_size > 336 else 28}
    config = clip.ClipConfig(
        clip.TextConfig(hidden_act="gelu", projection_dim=size.width, **size.text),
        clip.VisionConfig(
            hidden_act="gelu", projection_dim=size.width, **image, **size.vision
        ),
        projection_dim=size.width,
    )
    example = jnp.zeros((1, image["image_size"], image["image_size"], 3))
    clip_params = initialise.parameters(
        clip.CLIP(config),
        jax.random.key(seed),
        jnp.zeros((1, 77), jnp.int32),
        example,
        overrides={
            ".*class_embedding": initialise.normal(0.02),
            "logit_scale": initialise.constant(2.6),
        },
    )
    network = model.Network(
        options_of(size, "plain"), size.width, size.vision["hidden_size"] // 2
    )
    params = model.init(network, size.vision["hidden_size"], jax.random.key(seed + 1))
    rng = np.random.default_rng(seed)
    shape = (batch_size, size.image_size, size.image_size)
    mask = np.zeros(shape, np.float32)
    mask[::2, shape[1] // 4 : shape[1] // 2, shape[2] // 3 : shape[2] // 2] = 1
    key = jax.random.key(seed + 2)
    return Subject(
        size,
        config,
        clip_params,
        params,
        {
            "image": rng.random((*shape, 3), np.float32),
            "mask": mask,
            "label": mask.max((1, 2)).astype(np.int32),
            "category_id": np.arange(batch_size, dtype=np.int32) % len(NAMES),
            "valid": np.ones(batch_size, bool),
        },
        distributions.noise(key, batch_size, 1, size.width),
        distributions.noise(key, 1, size.draws, size.width),
    )


def options_of(size: Size, mode: str) -> settings.Options:
    """Returns the method's options in a mode."""
    options = settings.read_options(base.config().bayes_pfl)
    return options._replace(
        layers=size.layers,
        draws_test=size.draws,
        sigma=0.0,
        shortcuts=mode != "plain",
        text_chunk=20,
    )


def build(subject: Subject, mode: str) -> Built:
    """Makes the modules of a mode; the weights are shared, not copied."""
    size, options = subject.size, options_of(subject.size, mode)
    towers = bayes_pfl.build_towers(subject.clip_config, options, "float32")
    network = model.Network(options, size.width, size.vision["hidden_size"] // 2)
    special = SimpleNamespace(bos_id=49406, eos_id=49407, pad_id=0)
    words = sentences.names(
        NAMES,
        special,
        subject.clip_params["text_model"]["embeddings"]["token_embedding"]["embedding"],
        options.num_context + options.num_states,
        None if options.shortcuts else 77,
    )
    return Built(
        network, towers, {"clip": subject.clip_params, "names": words._asdict()}
    )
