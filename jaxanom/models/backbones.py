"""Whole models from one directory: UNet, autoencoder, text tower, tokenizer, schedule.

The directory follows diffusers' pipelines (`unet/`, `vae/`, `text_encoder/` or `clip/`,
`tokenizer/`, `scheduler/`); the name "embedded" means the towers shipped in
`jaxanom/assets`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxanom import record
from jaxanom.diffusion import schedules, targets
from jaxanom.models import (
    clip,
    hf_flax,
    initialise,
    pretrained,
    tiny_autoencoder,
    unet,
    vae,
)
from jaxanom.models.tokenizer import Tokenizer
from jaxanom.types import Array, Params

PREDICTION_TYPES = ("epsilon", "v_prediction")
IMPLEMENTATIONS = ("ours", "hf_flax")
EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "foundry"


class Tower(NamedTuple):
    """A module and its weights; the weights travel as arguments, never closed over."""

    module: nn.Module
    params: Params


class TextEncoder(NamedTuple):
    """A text tower with the tokenizer it was trained on."""

    module: nn.Module
    params: Params
    tokenizer: Tokenizer
    length: int

    @property
    def width(self) -> int:
        """D of the states."""
        return self.module.config.hidden_size

    def encode(self, texts: list[str], batch_size: int = 64) -> np.ndarray:
        """Returns the last hidden states [N, L, D] float32 of N texts."""
        ids = self.tokenizer.encode(texts, self.length)
        apply = jax.jit(
            lambda params, token_ids: (
                self.module.apply({"params": params}, token_ids).last_hidden_state
            )
        )
        parts = []
        for start in range(0, len(ids), batch_size):
            rows = ids[start : start + batch_size]
            padded = np.resize(rows, (min(batch_size, len(ids)), self.length))
            states = np.asarray(apply(self.params, padded), np.float32)
            parts.append(states[: len(rows)])
        return np.concatenate(parts)


def resolve(name: str) -> Path:
    """Returns the directory a backbone name stands for.

    Raises:
      ValueError: there is no such directory.
    """
    path = EMBEDDED if name == "embedded" else Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(
            f"no backbone directory {path}; set config.model.directory to 'embedded' "
            "or to a folder in diffusers' layout (unet/, vae/, text_encoder/, ...)"
        )
    return path


def abstract(module: nn.Module, *example: Any) -> Params:
    """Returns the module's parameter tree as shapes, without making any value."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda: module.init(key, *example))["params"]


def load_autoencoder(directory: str | Path) -> Tower:
    """Loads `vae/` of a pipeline directory, a VAE directory, or a TAESD pair of files.

    A TAESD pair is `*encoder.npz` and `*decoder.npz` (original layer names) in one
    directory.
    """
    path = resolve(str(directory))
    encoders, decoders = (
        sorted(path.glob("*encoder.npz")),
        sorted(path.glob("*decoder.npz")),
    )
    if encoders and decoders:
        with np.load(encoders[0]) as first, np.load(decoders[0]) as second:
            config, params = tiny_autoencoder.from_state(dict(first), dict(second))
        return Tower(tiny_autoencoder.TinyAutoencoder(config), params)
    component = "vae" if (path / "vae").is_dir() else "."
    settings = pretrained.load_config(path, component)
    module = vae.AutoencoderKL(vae.VaeConfig.from_dict(settings))
    size = 2 ** (len(settings["block_out_channels"]) - 1) * 8
    shapes = abstract(module, jnp.zeros((1, size, size, 3)))
    params = pretrained.load_params(path / component, "vae", shapes)
    return Tower(module, params)


def load_text_encoder(directory: str | Path) -> TextEncoder:
    """Loads the text tower (`text_encoder/`, else `clip/`) and `tokenizer/`."""
    path = resolve(str(directory))
    component = "text_encoder" if (path / "text_encoder").is_dir() else "clip"
    settings = pretrained.load_config(path, component)
    config = clip.TextConfig.from_dict(settings.get("text_config", settings))
    module = clip.TextTower(config, projection=False)
    length = config.max_position_embeddings
    if component == "clip":
        params = {"text_model": load_clip(path).params["text_model"]}
    else:
        shapes = abstract(module, jnp.zeros((1, length), jnp.int32))
        params = pretrained.load_params(path / component, "text_encoder", shapes)
    tokenizer = Tokenizer(path / "tokenizer")
    if tokenizer.vocab_size > config.vocab_size:
        # An id past the table would be read as another word in silence.
        raise ValueError(
            f"{path / 'tokenizer'} has {tokenizer.vocab_size} ids and the text tower "
            f"beside it {config.vocab_size}; use the tokenizer the tower was trained on"
        )
    return TextEncoder(module, params, tokenizer, length)


def load_clip(directory: str | Path) -> Tower:
    """Loads both CLIP towers from `clip/` of a directory, or from the directory."""
    path = resolve(str(directory))
    component = "clip" if (path / "clip").is_dir() else "."
    config = clip.ClipConfig.from_dict(pretrained.load_config(path, component))
    module = clip.CLIP(config)
    size, length = (
        config.vision_config.image_size,
        config.text_config.max_position_embeddings,
    )
    shapes = abstract(
        module, jnp.zeros((1, length), jnp.int32), jnp.zeros((1, size, size, 3))
    )
    params = pretrained.load_params(path / component, "clip", shapes)
    return Tower(module, params)


def load_unet(directory: str | Path) -> Tower:
    """Loads `unet/` of a pipeline directory."""
    path = resolve(str(directory))
    config = unet.UNetConfig.from_dict(pretrained.load_config(path, "unet"))
    module = unet.UNet(config)
    shapes = abstract(module, *unet_example(config))
    return Tower(
        module, pretrained.load_params(path / "unet", "unet", shapes, jnp.float32)
    )


def implemented(tower: Any, implementation: str) -> Any:
    """Returns a tower with the module that computes it chosen; weights stay.

    Args:
      tower: a `Tower` or `TextEncoder` with a module of ours.
      implementation: "ours", or "hf_flax" for the Flax class of diffusers or
        transformers, a second opinion on the same weights.

    Raises:
      ValueError: an unknown name, or the library has no such network.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"config.model.implementation={implementation!r}; choose one of "
            f"{IMPLEMENTATIONS}"
        )
    if implementation == "ours":
        return tower
    return tower._replace(module=hf_flax.adapt(tower.module))


def small_unet(
    latent_channels: int,
    context_width: int,
    block_out_channels: Sequence[int],
    layers_per_block: int,
    num_heads: int,
    fine_self_attention: bool,
    sample_size: int | None = None,
) -> unet.UNetConfig:
    """Sizes of a UNet with cross-attention at every resolution.

    Args:
      latent_channels, context_width: of the autoencoder and the text tower.
      block_out_channels, layers_per_block, num_heads: see `unet.UNetConfig`.
      fine_self_attention: self-attention at the finest resolution too, which costs a
        third of the time; the coarser ones always have it.
      sample_size: side of the latents trained on, for the record.
    """
    channels = tuple(block_out_channels)
    blocks = len(channels)
    return unet.UNetConfig(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * blocks,
        up_block_types=("CrossAttnUpBlock2D",) * blocks,
        layers_per_block=layers_per_block,
        attention_head_dim=num_heads,
        cross_attention_dim=context_width,
        norm_num_groups=min(32, channels[0] // 4),
        only_cross_attention=(not fine_self_attention, *(False,) * (blocks - 1)),
        use_linear_projection=True,
    )


def new_unet(config: unet.UNetConfig, key: Array) -> Tower:
    """Makes a UNet with fresh weights; its last convolution starts at zero."""
    module = unet.UNet(config)
    params = initialise.parameters(
        module,
        key,
        *unet_example(config),
        overrides={"conv_out/.*": initialise.zeros},
    )
    return Tower(module, params)


def unet_example(config: unet.UNetConfig) -> tuple[Array, Array, Array]:
    """Returns (latents, timesteps, context) of the smallest legal call."""
    size = 2 ** (len(config.block_out_channels) - 1)
    return (
        jnp.zeros((1, size, size, config.in_channels)),
        jnp.zeros((1,), jnp.int32),
        jnp.zeros((1, 2, config.cross_attention_dim)),
    )


def load_scheduler(directory: str | Path) -> dict[str, Any]:
    """Returns `scheduler/scheduler_config.json` of a pipeline directory.

    Raises:
      ValueError: no such file, or an unknown prediction type.
    """
    path = resolve(str(directory)) / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; set config.model.scheduler")
    settings = record.read_json(path)
    kind = settings.setdefault("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise ValueError(
            f"{path}: prediction_type={kind!r}; wanted one of {PREDICTION_TYPES}"
        )
    return settings


def load_alphas(directory: str | Path) -> np.ndarray:
    """Returns the noise schedule of a pipeline directory, float64 [T]."""
    settings = load_scheduler(directory)
    known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    return schedules.alphas_cumprod(**{k: settings[k] for k in known if k in settings})


def noise_apply(module: unet.UNet, directory: str | Path) -> Callable[..., Array]:
    """Returns (params, latents, timesteps, context, bias=None) -> noise_pred.

    A velocity network's estimate becomes the noise it implies, so that the equations of
    the methods have one form.

    Args:
      module: the UNet.
      directory: whose scheduler says what the UNet predicts.
    """
    is_velocity = load_scheduler(directory)["prediction_type"] == "v_prediction"
    alphas_cumprod = load_alphas(directory)

    def apply(params, latents, timesteps, context, bias=None):
        estimate = module.apply({"params": params}, latents, timesteps, context, bias)
        if not is_velocity:
            return estimate
        return targets.noise_from_velocity(estimate, latents, timesteps, alphas_cumprod)

    return apply


def latent_channels(autoencoder: Tower) -> int:
    """Returns C of the latents [B, h, w, C] that an autoencoder makes."""
    return autoencoder.module.config.latent_channels


def latent_grid(autoencoder: Tower, image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns (h, w) of the latents of an image.

    Raises:
      ValueError: the image does not divide.
    """
    factor = autoencoder.module.config.downsampling
    if image_size[0] % factor or image_size[1] % factor:
        raise ValueError(
            f"images of {image_size[0]}x{image_size[1]} do not divide by the "
            f"autoencoder's factor {factor}; set config.data.image_size to a multiple"
        )
    return image_size[0] // factor, image_size[1] // factor
