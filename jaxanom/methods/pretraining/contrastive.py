"""CLIP from scratch on captions (arXiv 2103.00020) that are shared between images."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxanom import sections
from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.losses import contrastive
from jaxanom.methods.pretraining import captions
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.clip import towers
from jaxanom.models.clip.tokenizer import Tokenizer
from jaxanom.models.ops import initialise
from jaxanom.types import Array


class Options(NamedTuple):
    """Section `pretraining`; configs/pretraining/base.py explains it."""

    tower: str
    tokenizer: str
    hidden_size: int
    num_heads: int
    num_text_layers: int
    num_image_layers: int
    patch_size: int
    text_length: int
    state_fraction: float
    dense_weight: float


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds CLIP's training; phase "clip".

    Every image is paired with a caption of its defect or, as often as `state_fraction`
    says, of its state alone. A caption counts as a positive of every image of the batch
    that it is true of. The dense term asks each patch token, projected like the pooled
    one, whether it lies nearer to "flawless" or to "damaged".
    """
    settings = sections.read(config.pretraining, Options, "config.pretraining")
    tokenizer = Tokenizer(settings.tokenizer)
    module = towers.CLIP(_sizes(settings, tokenizer, dataset.image_size[0]))
    table = captions.table(dataset.categories, dataset.defect_types)
    ids = tokenizer.encode(list(table.texts), settings.text_length)
    patch = settings.patch_size

    def loss_fn(params, frozen, batch, key):
        variables = {"params": params}
        key_state, key_template, key_flip = jax.random.split(key, 3)
        rows = batch["label"].shape[0]
        category, label = batch["category_id"], batch["label"]
        general = jax.random.bernoulli(key_state, settings.state_fraction, (rows,))
        draw = jax.random.randint(key_template, (rows,), 0, 1 << 16)
        numbers = jnp.where(
            general,
            frozen["state"][category, label, draw % table.state.shape[2]],
            frozen["specific"][
                category, batch["defect_id"], draw % table.specific.shape[2]
            ],
        )
        image, mask = _flip(key_flip, batch["image"], batch["mask"])
        pictures = module.apply(variables, image, method="encode_image")
        texts = module.apply(variables, frozen["ids"][numbers], method="encode_text")
        scale = jnp.exp(jnp.minimum(params["logit_scale"], np.log(100.0)))
        loss, metrics = contrastive.loss(
            pictures.image_features,
            texts.text_features,
            scale,
            positives(category, label, batch["defect_id"], general),
        )
        if settings.dense_weight:
            states = frozen["ids"][frozen["state"][:, :, 0].reshape(-1)]
            named = module.apply(variables, states, method="encode_text").text_features
            named = towers.normalise(named).reshape(-1, 2, named.shape[-1])[category]
            tokens = module.apply(
                variables,
                pictures.patch_tokens,
                method=lambda tower, tokens: tower.image.project_tokens(tokens),
            )
            dense = _dense_loss(towers.normalise(tokens), named, scale, mask, patch)
            metrics["dense"] = dense
            loss = loss + settings.dense_weight * dense
        return loss, metrics

    def init(key):
        size = dataset.image_size[0]
        params = initialise.parameters(
            module,
            key,
            jnp.zeros((1, settings.text_length), jnp.int32),
            jnp.zeros((1, size, size, 3)),
            overrides={
                ".*class_embedding": initialise.normal(0.02),
                "logit_scale": initialise.constant(float(np.log(1 / 0.07))),
            },
        )
        frozen = {
            "ids": jnp.asarray(ids),
            "state": jnp.asarray(table.state),
            "specific": jnp.asarray(table.specific),
        }
        return params, frozen

    def export(params, frozen, directory, batch):
        del frozen, batch
        sizes = dataclasses.asdict(module.config)
        pretrained.save_component(directory, "clip", sizes, params, "clip", np.float16)

    phases = (Phase("clip", loss_fn),)
    return Method(init=init, phases=phases, export=export, learns_pixels=True)


def positives(category: Array, label: Array, defect_id: Array, general: Array) -> Array:
    """Says which captions are true of which images.

    Args:
      category, label, defect_id: [B] int32, what the images show.
      general: [B] bool; True where row j's caption names the state alone.

    Returns:
      [B, B] bool, entry (i, j): the caption of row j is true of image i.
    """
    agrees = jnp.where(
        general[None, :],
        label[:, None] == label[None, :],
        defect_id[:, None] == defect_id[None, :],
    )
    return (category[:, None] == category[None, :]) & agrees


def _sizes(
    settings: Options, tokenizer: Tokenizer, image_size: int
) -> towers.ClipConfig:
    shared = {
        "hidden_size": settings.hidden_size,
        "intermediate_size": 4 * settings.hidden_size,
        "num_attention_heads": settings.num_heads,
        "projection_dim": settings.hidden_size,
    }
    return towers.ClipConfig(
        text_config=towers.TextConfig(
            vocab_size=tokenizer.vocab_size,
            max_position_embeddings=settings.text_length,
            num_hidden_layers=settings.num_text_layers,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.eos_id,
            **shared,
        ),
        vision_config=towers.VisionConfig(
            num_hidden_layers=settings.num_image_layers,
            image_size=image_size,
            patch_size=settings.patch_size,
            **shared,
        ),
        projection_dim=settings.hidden_size,
    )


def _flip(key, image, mask):
    """Mirrors half of the rows left to right, image and mask alike."""
    flip = jax.random.bernoulli(key, 0.5, (image.shape[0],))
    return (
        jnp.where(flip[:, None, None, None], image[:, :, ::-1], image),
        jnp.where(flip[:, None, None], mask[:, :, ::-1], mask),
    )


def _dense_loss(tokens, named, scale, mask, patch):
    """Cross-entropy of each patch against the share of it that the mask covers.

    Args:
      tokens: [B, N, D] unit vectors.
      named: [B, 2, D] unit vectors, flawless and damaged.
      scale: Factor of the cosine.
      mask: [B, H, W].
      patch: Pixels per side.
    """
    rows, height, width = mask.shape
    cells = mask.reshape(rows, height // patch, patch, width // patch, patch)
    share = jnp.minimum(1.0, 4.0 * cells.mean((2, 4))).reshape(rows, -1)  # [B, N]
    cosine = jnp.einsum("bnd,bkd->bnk", tokens, named)
    logits = scale * (cosine[..., 1] - cosine[..., 0])
    losses = optax.sigmoid_binary_cross_entropy(logits, share)
    # Defective patches are few; give them half of the weight.
    inside = jnp.sum(losses * share) / jnp.maximum(jnp.sum(share), 1.0)
    outside = jnp.sum(losses * (1 - share)) / jnp.sum(1 - share)
    return 0.5 * (inside + outside)
