"""Each kind of published network: its config, its module, its inputs and its calls.

`of` makes what a config.json describes. Everything is abstract; inputs are
`jax.ShapeDtypeStruct` of batch 1.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxanom.models.clip import layers, towers
from jaxanom.models.latent import tiny_autoencoder, unet, vae
from jaxanom.types import Params

TEXT_LENGTH = 77
"""Tokens of the context that a UNet is called with; CLIP's length."""

_PIXELS_PER_LATENT = 8
_SAMPLE_SIZE = 64

Calls = Mapping[tuple[str, str], tuple[Any, ...]]
"""{(title, method, "" for `__call__`): inputs} of a network's usual calls."""


class Network(NamedTuple):
    """One network.

    Attributes:
      module: Ours, whose `config` is what was read.
      words: What it is, for a reader.
      calls: Its usual calls.
    """

    module: nn.Module
    words: str
    calls: Calls

    def shapes(self) -> Params:
        """Returns the parameter tree as shapes."""
        return shapes(self.module)


def of(
    kind: str,
    raw: Mapping[str, Any],
    image_size: int | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    hidden_act: str = "",
) -> Network:
    """Makes a network from its config.json.

    Args:
      kind: A key of `pretrained.KINDS`.
      raw: The dict of a config.json; of a tower, that of a whole CLIP too.
      image_size: Side in pixels of the images of `calls`; None takes the config's.
      preprocessor: The dict of a preprocessor_config.json, of which image towers take
        mean and std.
      hidden_act: Activation of CLIP's towers; "" takes the config's.

    Raises:
      UserError: the config asks for what our modules do not have.
    """
    read, build = _KINDS[kind]
    config = layers.with_activation(read(raw, preprocessor), hidden_act)
    return build(config, image_size, class_name(raw))


def class_name(raw: Mapping[str, Any]) -> str:
    """Returns the class that a config.json names; PyTorch's and Flax's are one."""
    architectures = raw.get("architectures") or [""]
    return str(raw.get("_class_name") or architectures[0]).removeprefix("Flax")


def shapes(module: nn.Module) -> Params:
    """Returns the parameter tree of one of our modules without making any value."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(module.init, key, *example(module))["params"]


def example(module: nn.Module) -> tuple[Any, ...]:
    """Returns small legal inputs of one of our modules, as `jax.ShapeDtypeStruct`.

    Args:
      module: A UNet, an autoencoder, a tower or a whole CLIP.
    """
    config = module.config
    if isinstance(module, unet.UNet):
        side = 2 ** (config.num_blocks - 1)
        return (
            _shape(1, side, side, config.in_channels),
            _shape(1, dtype=jnp.int32),
            _shape(1, 2, config.cross_attention_dim),
        )
    if isinstance(module, vae.Autoencoder):
        return (_shape(1, *(2 * [config.downsampling]), config.in_channels),)
    ids = _shape(1, 2, dtype=jnp.int32)
    if isinstance(module, towers.TextTower):
        return (ids,)
    if isinstance(module, towers.CLIP):
        return ids, _image(config.vision_config.image_size)
    return (_image(config.image_size),)


def _shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _image(size: int) -> jax.ShapeDtypeStruct:
    return _shape(1, size, size, 3)


def _unet(config: unet.UNetConfig, image_size: int | None, name: str) -> Network:
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
    return Network(unet.UNet(config), words, {(title, ""): inputs})


def _autoencoder(module: vae.Autoencoder, size: int, words: str) -> Network:
    config = module.config
    side = size // config.downsampling
    calls = {
        (f"encode, {size} px", "encode"): (_shape(1, size, size, config.in_channels),),
        (f"decode to {size} px", "decode"): (
            _shape(1, side, side, config.latent_channels),
        ),
    }
    words = f"{words}, 1/{config.downsampling}, {config.latent_channels} channels"
    return Network(module, words, calls)


def _vae(config: vae.VaeConfig, image_size: int | None, name: str) -> Network:
    channels = "/".join(map(str, config.block_out_channels))
    size = image_size or config.sample_size
    module = vae.AutoencoderKL(config)
    return _autoencoder(module, size, f"KL autoencoder, channels {channels}")


def _tiny(config: Any, image_size: int | None, name: str) -> Network:
    size = image_size or _SAMPLE_SIZE * _PIXELS_PER_LATENT
    module = tiny_autoencoder.TinyAutoencoder(config)
    return _autoencoder(module, size, "tiny autoencoder")


def _tower_words(config: Any) -> str:
    return (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{config.num_attention_heads} heads, {config.hidden_act}"
    )


def _text(config: towers.TextConfig, image_size: int | None, name: str) -> Network:
    length = config.max_position_embeddings
    module = towers.TextTower(config, projection="WithProjection" in name)
    words = f"CLIP text tower, {_tower_words(config)}"
    ids = _shape(1, length, dtype=jnp.int32)
    return Network(module, words, {(f"{length} tokens", ""): (ids,)})


def _vision(config: towers.VisionConfig, image_size: int | None, name: str) -> Network:
    size = image_size or config.image_size
    module = towers.ImageTower(config, projection=name != "CLIPVisionModel")
    words = f"CLIP image tower, patches of {config.patch_size}, {_tower_words(config)}"
    return Network(module, words, {(f"{size} px", ""): (_image(size),)})


def _clip(config: towers.ClipConfig, image_size: int | None, name: str) -> Network:
    text, vision = config.text_config, config.vision_config
    size, length = image_size or vision.image_size, text.max_position_embeddings
    words = (
        f"CLIP, image tower with patches of {vision.patch_size}, "
        f"{_tower_words(vision)}; text tower of {_tower_words(text)}; "
        f"{config.projection_dim} joint"
    )
    calls = {
        (f"image of {size} px", "encode_image"): (_image(size),),
        (f"text of {length} tokens", "encode_text"): (
            _shape(1, length, dtype=jnp.int32),
        ),
    }
    return Network(towers.CLIP(config), words, calls)


def _of_a_clip(section: str, config_class: Any) -> Callable[..., Any]:
    """Reads a tower's config from its own config.json or from that of a whole CLIP."""

    def read(raw: Mapping[str, Any], preprocessor: Mapping[str, Any] | None) -> Any:
        if section in raw:
            return getattr(towers.ClipConfig.from_dict(raw, preprocessor), section)
        return config_class.from_dict(raw, preprocessor)

    return read


_KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Network]]] = {
    "unet": (lambda raw, _: unet.UNetConfig.from_dict(raw), _unet),
    "vae": (lambda raw, _: vae.VaeConfig.from_dict(raw), _vae),
    "tiny_autoencoder": (
        lambda raw, _: tiny_autoencoder.TinyConfig.from_dict(raw),
        _tiny,
    ),
    "clip": (towers.ClipConfig.from_dict, _clip),
    "text_encoder": (_of_a_clip("text_config", towers.TextConfig), _text),
    "image_encoder": (_of_a_clip("vision_config", towers.VisionConfig), _vision),
}
