"""A network made from its published config: module, inputs, and ways to call it.

Everything is abstract; inputs are `jax.ShapeDtypeStruct` of batch 1.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxanom.models.clip import towers
from jaxanom.models.latent import tiny_autoencoder, unet, vae
from jaxanom.types import Params

TEXT_LENGTH = 77
"""Tokens of the context that a UNet is called with; CLIP's length."""

_PIXELS_PER_LATENT = 8
_SAMPLE_SIZE = 64


class Network(NamedTuple):
    """One network.

    Attributes:
      module: ours.
      words: what it is, for a reader.
      example: inputs that initialise it.
      calls: {(title, method, "" for `__call__`): inputs} of its usual calls.
    """

    module: nn.Module
    words: str
    example: tuple[Any, ...]
    calls: Mapping[tuple[str, str], tuple[Any, ...]]

    def shapes(self) -> Params:
        """Returns the parameter tree as shapes."""
        key = jax.random.key(0)
        return jax.eval_shape(self.module.init, key, *self.example)["params"]


def of(kind: str, config: Mapping[str, Any], image_size: int | None = None) -> Network:
    """Makes a network from its config.json.

    Args:
      kind: a key of `pretrained.KINDS`.
      config: the dict of a config.json.
      image_size: side in pixels of the images of `calls`; None takes the config's.

    Raises:
      UserError: the config asks for what our modules do not have.
    """
    return _MAKERS[kind](config, image_size)


def class_name(config: Mapping[str, Any]) -> str:
    """Returns the class that a config.json names; PyTorch's and Flax's are one."""
    architectures = config.get("architectures") or [""]
    return str(config.get("_class_name") or architectures[0]).removeprefix("Flax")


def _shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _unet(raw: Mapping[str, Any], image_size: int | None) -> Network:
    config = unet.UNetConfig.from_dict(raw)
    side = config.sample_size or _SAMPLE_SIZE
    if image_size is not None:
        side = image_size // _PIXELS_PER_LATENT
    inputs = (
        _shape(1, side, side, config.in_channels),
        _shape(1, dtype=jnp.int32),
        _shape(1, TEXT_LENGTH, config.cross_attention_dim),
    )
    channels = "/".join(map(str, config.block_out_channels))
    heads = "/".join(map(str, config.num_heads))
    words = (
        f"UNet, channels {channels}, heads {heads}, {config.in_channels} latent "
        f"channels, context {config.cross_attention_dim} wide"
    )
    title = f"{side}x{side} latents, {TEXT_LENGTH} tokens"
    return Network(unet.UNet(config), words, inputs, {(title, ""): inputs})


def _autoencoder(module: nn.Module, size: int, words: str) -> Network:
    config = module.config
    side = size // config.downsampling
    image = _shape(1, size, size, config.in_channels)
    latents = _shape(1, side, side, config.latent_channels)
    small = (_shape(1, *(2 * [config.downsampling]), config.in_channels),)
    calls = {
        (f"encode, {size} px", "encode"): (image,),
        (f"decode to {size} px", "decode"): (latents,),
    }
    words = f"{words}, 1/{config.downsampling}, {config.latent_channels} channels"
    return Network(module, words, small, calls)


def _vae(raw: Mapping[str, Any], image_size: int | None) -> Network:
    config = vae.VaeConfig.from_dict(raw)
    channels = "/".join(map(str, config.block_out_channels))
    words = f"KL autoencoder, channels {channels}"
    size = image_size or config.sample_size
    return _autoencoder(vae.AutoencoderKL(config), size, words)


def _tiny_autoencoder(raw: Mapping[str, Any], image_size: int | None) -> Network:
    module = tiny_autoencoder.TinyAutoencoder(
        tiny_autoencoder.TinyConfig.from_dict(raw)
    )
    size = image_size or _SAMPLE_SIZE * _PIXELS_PER_LATENT
    return _autoencoder(module, size, "tiny autoencoder")


def _tower_words(config: Any) -> str:
    return (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{config.num_attention_heads} heads, {config.hidden_act}"
    )


def _text(raw: Mapping[str, Any], image_size: int | None) -> Network:
    config = towers.TextConfig.from_dict(raw.get("text_config", raw))
    projection = "WithProjection" in class_name(raw)
    ids = (_shape(1, config.max_position_embeddings, dtype=jnp.int32),)
    words = f"CLIP text tower, {_tower_words(config)}"
    title = f"{config.max_position_embeddings} tokens"
    module = towers.TextTower(config, projection=projection)
    return Network(module, words, ids, {(title, ""): ids})


def _image(raw: Mapping[str, Any], image_size: int | None) -> Network:
    config = towers.VisionConfig.from_dict(raw.get("vision_config", raw))
    projection = class_name(raw) != "CLIPVisionModel"
    size = image_size or config.image_size
    image = (_shape(1, size, size, 3),)
    words = f"CLIP image tower, patches of {config.patch_size}, {_tower_words(config)}"
    module = towers.ImageTower(config, projection=projection)
    return Network(module, words, image, {(f"{size} px", ""): image})


def _clip(raw: Mapping[str, Any], image_size: int | None) -> Network:
    config = towers.ClipConfig.from_dict(raw)
    text, vision = config.text_config, config.vision_config
    size = image_size or vision.image_size
    ids = _shape(1, text.max_position_embeddings, dtype=jnp.int32)
    words = (
        f"CLIP, image tower with patches of {vision.patch_size}, "
        f"{_tower_words(vision)}; text tower of {_tower_words(text)}; "
        f"{config.projection_dim} joint"
    )
    calls = {
        (f"image of {size} px", "encode_image"): (_shape(1, size, size, 3),),
        (f"text of {text.max_position_embeddings} tokens", "encode_text"): (ids,),
    }
    stored = vision.image_size
    example = ids, _shape(1, stored, stored, 3)
    return Network(towers.CLIP(config), words, example, calls)


_MAKERS: dict[str, Callable[[Mapping[str, Any], int | None], Network]] = {
    "unet": _unet,
    "vae": _vae,
    "tiny_autoencoder": _tiny_autoencoder,
    "text_encoder": _text,
    "image_encoder": _image,
    "clip": _clip,
}
