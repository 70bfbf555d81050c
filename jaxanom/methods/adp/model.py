"""The frozen towers ADP reads, and what of them depends on the personal token.

Token vectors are put into the text tower's input after the embedding lookup
(`models/clip/prompts.py`). CLIP's own text tower reads them for features; the text
tower the UNet was trained with reads them for contexts. Both must have one token table.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.methods.adp.memory import crops
from jaxanom.models import backbones
from jaxanom.models.checkpoints import sources
from jaxanom.models.clip import prompts
from jaxanom.models.clip import towers as clip
from jaxanom.models.clip.tokenizer import Tokenizer
from jaxanom.models.latent import vae
from jaxanom.models.ops import remat
from jaxanom.types import Array, Params


class Towers(NamedTuple):
    """Modules; their weights travel in `frozen["towers"]` under the same names.

    Attributes:
      clip_image, clip_text: CLIP's towers, both read `towers["clip"]`.
      text: the UNet's text tower, without projection, reads `towers["text"]`.
      vae: autoencoder, reads `towers["vae"]`.
      unet: (params, latents, timesteps, context) -> noise_pred, reads `towers["unet"]`.
      unet_module: the network itself, whose features channel C5 looks at.
      tokenizer: That of both text towers.
      text_length: L of the UNet's contexts.
      alphas_cumprod: [T] float64.
      is_velocity: what the UNet was trained to predict.
      size: side of the images the autoencoder is given.
    """

    clip_image: clip.ImageTower
    clip_text: clip.TextTower
    text: nn.Module
    vae: nn.Module
    unet: Callable[..., Array]
    unet_module: nn.Module
    tokenizer: Tokenizer
    text_length: int
    alphas_cumprod: np.ndarray
    is_velocity: bool
    size: int

    @property
    def clip_length(self) -> int:
        """Longest sentence of CLIP's text tower."""
        return self.clip_text.config.max_position_embeddings

    @property
    def clip_size(self) -> int:
        """Side of the images CLIP is given."""
        return self.clip_image.config.image_size

    @property
    def grid(self) -> int:
        """Patches along a side of CLIP's input."""
        return self.clip_size // self.clip_image.config.patch_size


def load(settings: Any, size: int) -> tuple[Towers, Params]:
    """Loads the towers of `config.model`.

    Args:
      settings: `config.model`.
      size: side of the images for the autoencoder; 0 is what it was trained on.

    Returns:
      (towers, their weights by name).

    Raises:
      UserError: a tower is missing, or two do not fit each other.
    """
    source = settings.directory
    loading = sources.chosen(settings)
    whole = backbones.load_clip(settings.clip or source, loading)
    text = backbones.load_text_encoder(settings.text_encoder or source, loading)
    autoencoder = backbones.load_autoencoder(settings.autoencoder or source, loading)
    network = backbones.load_unet(settings.unet or source, loading)
    scheduler = settings.scheduler or source
    dtype = jnp.dtype(settings.dtype)
    config = whole.module.config
    tables = [
        params["text_model"]["embeddings"]["token_embedding"]["embedding"].shape
        for params in (whole.params, text.params)
    ]
    if tables[0] != tables[1]:
        raise UserError(
            f"CLIP's token table is {tables[0]} and the UNet's text tower's "
            f"{tables[1]}: a token learnt through one means nothing to the other; set "
            "config.model.clip and config.model.text_encoder to one family, such as "
            "CLIP ViT-L/14 and Stable Diffusion 1.5"
        )
    if network.module.config.cross_attention_dim != text.width:
        raise UserError(
            f"the text tower is {text.width} wide and the UNet reads contexts of "
            f"{network.module.config.cross_attention_dim}; set "
            "config.model.text_encoder"
        )
    size = size or getattr(autoencoder.module.config, "sample_size", 64)
    backbones.latent_grid(autoencoder, (size, size))
    width = {"projection_dim": config.projection_dim}
    towers = Towers(
        clip_image=clip.ImageTower(
            dataclasses.replace(config.vision_config, **width), dtype=dtype
        ),
        clip_text=clip.TextTower(
            dataclasses.replace(config.text_config, **width), dtype=dtype
        ),
        text=text.module.clone(dtype=dtype),
        vae=autoencoder.module,
        unet=backbones.noise_apply(
            network.module.clone(dtype=dtype, remat=remat.resolve(settings.remat)),
            scheduler,
        ),
        unet_module=network.module.clone(dtype=dtype),
        tokenizer=text.tokenizer,
        text_length=text.length,
        alphas_cumprod=backbones.load_alphas(scheduler),
        is_velocity=backbones.load_schedule(scheduler).prediction_type != "epsilon",
        size=size,
    )
    params = {
        "clip": whole.params,
        "text": text.params,
        "vae": autoencoder.params,
        "unet": network.params,
    }
    # On the device once: the jitted encoders are called many times.
    return towers, jax.tree.map(jnp.asarray, params)


def token_table(params: Params) -> Array:
    """Returns CLIP's token table [V, D]."""
    return params["clip"]["text_model"]["embeddings"]["token_embedding"]["embedding"]


def largest_norm(table: Array, percentile: float = 99.9) -> float:
    """Returns the vocabulary's percentile of vector lengths: none is let beyond it."""
    return float(np.percentile(np.linalg.norm(np.asarray(table), axis=-1), percentile))


def bounded(vectors: Array, limit: float) -> Array:
    """Scales token vectors [..., D] that are longer than `limit` back to it.

    Inside the forward pass rather than after an update, so that any optimiser, the
    common trainer's too, stays within the bound.
    """
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors * jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))


def text_features(
    towers: Towers, params: Params, layout: prompts.Layout, vectors: Array
) -> Array:
    """Encodes sentences around S*, [...] of them, to unit features [..., K] float32.

    Args:
      towers, params: see `load`.
      layout: over [..., L].
      vectors: [N, D].
    """
    flat = _flat(layout)
    prompt = prompts.assemble(flat, token_table(params), vectors)
    output = towers.clip_text.apply({"params": params["clip"]}, **prompt._asdict())
    features = clip.normalise(output.text_features)
    return features.reshape(*layout.eos_positions.shape, -1)


def contexts(
    towers: Towers, params: Params, layout: prompts.Layout, vectors: Array
) -> Array:
    """Encodes captions around S* for the UNet, [...] of them: [..., L, D] float32."""
    flat = _flat(layout)
    prompt = prompts.assemble(flat, token_table(params), vectors)
    output = towers.text.apply({"params": params["text"]}, **prompt._asdict())
    states = output.last_hidden_state
    return states.reshape(*layout.input_ids.shape, -1)


def _flat(layout: prompts.Layout) -> prompts.Layout:
    length = layout.input_ids.shape[-1]
    return layout.replace(
        input_ids=jnp.asarray(layout.input_ids).reshape(-1, length),
        slots=jnp.asarray(layout.slots).reshape(-1, length),
        eos_positions=jnp.asarray(layout.eos_positions).reshape(-1),
    )


def rows(layout: prompts.Layout, index: Any) -> prompts.Layout:
    """Picks sentences of a layout by a (traced) index over its leading axes."""
    return layout.replace(
        input_ids=jnp.asarray(layout.input_ids)[index],
        slots=jnp.asarray(layout.slots)[index],
        eos_positions=jnp.asarray(layout.eos_positions)[index],
    )


def prototype(features: Array) -> Array:
    """Averages unit features [S, M, K] over states and templates: [K], length one."""
    return clip.normalise(jnp.mean(features, axis=(0, 1)))


def class_vectors(
    params: Params, tokenizer: Tokenizer, class_name: str, num_vectors: int, seed: int
) -> Array:
    """Returns where S* starts, [N, D]: the class word's first piece, then noisy copies.

    Raises:
      UserError: the name has no token.
    """
    ids = tokenizer.words([class_name])[0]
    if not ids:
        raise UserError(f"the category name {class_name!r} holds no word; rename it")
    table = np.asarray(token_table(params), np.float32)
    first = table[ids[0]]
    noise = np.random.default_rng(seed).standard_normal((num_vectors, len(first)))
    noise[0] = 0.0
    return jnp.asarray(first + 0.01 * noise, jnp.float32)


def moments(towers: Towers, params: Params, image: Array) -> vae.Moments:
    """Encodes images [B, H, W, 3] of any size to moments on the latent grid."""
    small = crops.resize(image, towers.size)
    return towers.vae.apply({"params": params["vae"]}, small, method="encode")


def decode(towers: Towers, params: Params, latents: Array) -> Array:
    """Decodes latents [B, h, w, C] to images [B, size, size, 3] in [0, 1]."""
    return towers.vae.apply({"params": params["vae"]}, latents, method="decode")


def noise_fn(towers: Towers, params: Params, context: Array) -> Callable[..., Array]:
    """Binds a context [B, L, D]: (latents, timesteps [B]) -> noise_pred."""

    def call(latents, timesteps):
        return towers.unet(params["unet"], latents, timesteps, context)

    return call
