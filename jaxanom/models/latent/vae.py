"""Autoencoders of latent diffusion: image in [0, 1] <-> scaled latents.

`Autoencoder` is what every one of them does around its networks; `AutoencoderKL` is
that of arXiv 2112.10752, section 3.1, on the parameter tree of diffusers'
`FlaxAutoencoderKL`. The scaling factor and the range [-1, 1] of the latter's images
never leave this file.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxanom.errors import UserError
from jaxanom.models.checkpoints import configs
from jaxanom.models.latent import layers
from jaxanom.models.ops import attention
from jaxanom.types import Array, PRNGKey

_EPSILON = 1e-6  # of every group norm
_FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
_IGNORED = ("force_upcast",)


class Moments(NamedTuple):
    """A diagonal Gaussian over scaled latents, the ones diffusion works on.

    Attributes:
      mean: [B, h, w, C] float32.
      log_variance: [B, h, w, C] float32, or None where the encoder is deterministic.
    """

    mean: Array
    log_variance: Array | None


def sample(moments: Moments, key: PRNGKey) -> Array:
    """Draws latents [B, h, w, C]; the mean where the encoder is deterministic."""
    if moments.log_variance is None:
        return moments.mean
    noise = jax.random.normal(key, moments.mean.shape, moments.mean.dtype)
    return moments.mean + jnp.exp(0.5 * moments.log_variance) * noise


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """Names and defaults of diffusers' vae/config.json.

    `block_out_channels` of n entries reduces each side 2^(n-1) times; the lists of
    block types follow from it, as there is one type each way.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def downsampling(self) -> int:
        """Image pixels per latent cell, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "VaeConfig":
        """Reads the dict of a config.json; UserError names a key we cannot honour."""
        num_blocks = len(raw.get("block_out_channels", (64,)))
        fixed = {**_FIXED, **_block_types(num_blocks)}
        return configs.read(cls, raw, fixed, _IGNORED)

    def to_dict(self) -> dict[str, Any]:
        """Returns the dict of a config.json that diffusers and `from_dict` read."""
        types = _block_types(len(self.block_out_channels))
        return configs.write(self, "AutoencoderKL", **types, act_fn="silu")


def _block_types(num_blocks: int) -> dict[str, tuple[str, ...]]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * num_blocks,
        "up_block_types": ("UpDecoderBlock2D",) * num_blocks,
    }


class Autoencoder(nn.Module):
    """What maps images to latents; use `apply(..., method="encode")` and "decode".

    A subclass has `moments` and `picture`, its networks without scaling.

    Attributes:
      config: Sizes, with `downsampling`, `latent_channels`, `scaling_factor`,
        `shift_factor`.
      dtype: What the networks compute in; parameters, norms' statistics and results
        are float32.
    """

    config: Any
    dtype: Any = jnp.float32

    def encode(self, image: Array) -> Moments:
        """Returns the Gaussian of the scaled latents, (z - shift) * scaling_factor.

        The log-variance is scaled along, so `sample` and a KL against N(0, 1) speak of
        the latents diffusion sees. Train an autoencoder with scaling_factor = 1 and
        measure the factor afterwards.

        Args:
          image: [B, H, W, 3] in [0, 1]; sides are multiples of `config.downsampling`.
        """
        config, step = self.config, self.config.downsampling
        chex.assert_rank(image, 4)
        if image.shape[1] % step or image.shape[2] % step:
            raise UserError(
                f"image {image.shape} does not divide into {step}x{step} cells; make "
                f"both sides multiples of {step}"
            )
        mean, log_variance = self.moments(image)
        mean = (mean - (config.shift_factor or 0.0)) * config.scaling_factor
        if log_variance is not None:
            log_variance = log_variance + 2 * np.log(config.scaling_factor)
        return Moments(mean, log_variance)

    def decode(self, latents: Array, clip: bool = True) -> Array:
        """Returns the image [B, H, W, 3] float32 of scaled latents [B, h, w, C].

        Args:
          latents: As `encode` scales them.
          clip: Limits to [0, 1]; switch off to train, as the limit stops gradients.
        """
        config = self.config
        chex.assert_rank(latents, 4)
        chex.assert_axis_dimension(latents, -1, config.latent_channels)
        hidden = latents / config.scaling_factor + (config.shift_factor or 0.0)
        image = self.picture(hidden)
        return jnp.clip(image, 0.0, 1.0) if clip else image

    def __call__(self, image: Array) -> Array:
        """Returns the clipped round trip of the image through the mean."""
        return self.decode(self.encode(image).mean)


class PixelAttention(nn.Module):
    """Single-head self-attention over all pixels, added to its input."""

    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [B, H, W, C] to [B, H, W, C]."""
        batch, height, width, channels = inputs.shape
        dense = functools.partial(nn.Dense, channels, dtype=self.dtype)
        hidden = layers.GroupNorm(
            self.num_groups, _EPSILON, self.dtype, name="group_norm"
        )(inputs)
        tokens = hidden.reshape(batch, height * width, channels)
        one_head = [
            dense(name=name)(tokens)[:, :, None, :]
            for name in ("query", "key", "value")
        ]
        mixed = attention.dot_product(*one_head)[:, :, 0, :]  # [B, H * W, C]
        return inputs + dense(name="proj_attn")(mixed).reshape(inputs.shape)


class _Stage(nn.Module):
    """Residual blocks of one resolution, then the sampler that `sampler` names."""

    features: int
    num_layers: int
    num_groups: int
    sampler: str | None
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        residual = functools.partial(
            layers.ResidualBlock, self.features, self.num_groups, _EPSILON, self.dtype
        )
        for i in range(self.num_layers):
            hidden = residual(name=f"resnets_{i}")(hidden)
        if self.sampler == "downsamplers_0":
            return layers.Downsample(
                self.features, pad_both_sides=False, dtype=self.dtype, name=self.sampler
            )(hidden)
        if self.sampler == "upsamplers_0":
            return layers.Upsample(self.features, self.dtype, name=self.sampler)(hidden)
        return hidden


class _Middle(nn.Module):
    """Attention between two residual blocks."""

    features: int
    num_groups: int
    has_attention: bool
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        residual = functools.partial(
            layers.ResidualBlock, self.features, self.num_groups, _EPSILON, self.dtype
        )
        hidden = residual(name="resnets_0")(hidden)
        if self.has_attention:
            hidden = PixelAttention(self.num_groups, self.dtype, name="attentions_0")(
                hidden
            )
        return residual(name="resnets_1")(hidden)


class Encoder(nn.Module):
    """Image in [-1, 1] -> [B, h, w, 2 * latent_channels]."""

    config: VaeConfig
    dtype: Any

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Maps [B, H, W, 3] to mean and log-variance, concatenated, before scaling."""
        config, dtype = self.config, self.dtype
        channels, groups = config.block_out_channels, config.norm_num_groups
        hidden = layers.conv3x3(channels[0], "conv_in", dtype)(image)
        for i, features in enumerate(channels):
            sampler = "downsamplers_0" if i < len(channels) - 1 else None
            sizes = features, config.layers_per_block, groups, sampler, dtype
            hidden = _Stage(*sizes, name=f"down_blocks_{i}")(hidden)
        sizes = channels[-1], groups, config.mid_block_add_attention, dtype
        hidden = _Middle(*sizes, name="mid_block")(hidden)
        hidden = layers.GroupNorm(groups, _EPSILON, dtype, name="conv_norm_out")(hidden)
        return layers.conv3x3(2 * config.latent_channels, "conv_out", dtype)(
            nn.silu(hidden)
        )


class Decoder(nn.Module):
    """Unscaled latents -> image in about [-1, 1]."""

    config: VaeConfig
    dtype: Any

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Maps [B, h, w, latent_channels] to [B, H, W, 3]."""
        config, dtype = self.config, self.dtype
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        hidden = layers.conv3x3(channels[0], "conv_in", dtype)(latents)
        sizes = channels[0], groups, config.mid_block_add_attention, dtype
        hidden = _Middle(*sizes, name="mid_block")(hidden)
        for i, features in enumerate(channels):
            sampler = "upsamplers_0" if i < len(channels) - 1 else None
            sizes = features, config.layers_per_block + 1, groups, sampler, dtype
            hidden = _Stage(*sizes, name=f"up_blocks_{i}")(hidden)
        hidden = layers.GroupNorm(groups, _EPSILON, dtype, name="conv_norm_out")(hidden)
        return layers.conv3x3(config.out_channels, "conv_out", dtype)(nn.silu(hidden))


class AutoencoderKL(Autoencoder):
    """The autoencoder of Stable Diffusion; see `Autoencoder` and `VaeConfig`."""

    def setup(self):
        """Names the parts as the published tree does."""
        config, dtype = self.config, self.dtype
        self.encoder = Encoder(config, dtype)
        self.decoder = Decoder(config, dtype)
        channels = config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = layers.PointwiseConv(2 * channels, dtype=dtype)
        if config.use_post_quant_conv:
            self.post_quant_conv = layers.PointwiseConv(channels, dtype=dtype)

    def moments(self, image: Array) -> tuple[Array, Array]:
        """Returns mean and log-variance of unscaled latents, float32."""
        hidden = self.encoder(2 * image - 1)
        if self.config.use_quant_conv:
            hidden = self.quant_conv(hidden)
        mean, log_variance = jnp.split(hidden.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def picture(self, latents: Array) -> Array:
        """Returns the image of unscaled latents, float32, about [0, 1]."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32) / 2 + 0.5
