"""Text-conditional latent UNet: (latents, timesteps, context) -> noise_pred.

The network of Stable Diffusion 1.x and 2.x (arXiv 2112.10752) on the parameter tree of
diffusers' `FlaxUNet2DConditionModel`. Two constants of that Flax class differ from the
PyTorch class the weights were trained with; we take PyTorch's (see `layers`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax.numpy as jnp
from flax import linen as nn

from jaxanom.errors import UserError
from jaxanom.models.checkpoints import configs
from jaxanom.models.latent import layers
from jaxanom.models.ops import remat as recompute
from jaxanom.types import Array

_UNSET = (
    *("addition_embed_type", "addition_time_embed_dim", "class_embed_type"),
    *("cross_attention_norm", "encoder_hid_dim", "encoder_hid_dim_type"),
    *("num_class_embeds", "projection_class_embeddings_input_dim"),
    *("reverse_transformer_layers_per_block", "time_cond_proj_dim"),
    *("time_embedding_act_fn", "time_embedding_dim", "timestep_post_act"),
)
_OFF = (
    *("center_input_sample", "class_embeddings_concat", "dual_cross_attention"),
    "resnet_skip_time_act",
)
_FIXED = (
    dict.fromkeys(_UNSET)
    | dict.fromkeys(_OFF, False)
    | {
        **dict.fromkeys(("attention_type", "resnet_time_scale_shift"), "default"),
        **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), 3),
        **dict.fromkeys(("downsample_padding", "mid_block_scale_factor"), 1),
        "resnet_out_scale_factor": 1.0,
        "dropout": 0.0,
        "time_embedding_type": "positional",
    }
)
# Softmax is float32 here in any case; the others have no effect with the fixed values.
_IGNORED = (
    "upcast_attention",
    "addition_embed_type_num_heads",
    "mid_block_only_cross_attention",
    "use_memory_efficient_attention",
    "split_head_dim",
)
_DOWN_TYPES = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP_TYPES = ("CrossAttnUpBlock2D", "UpBlock2D")
_ALLOWED = {
    "act_fn": ("silu", "swish"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "down_block_types": _DOWN_TYPES,
    "up_block_types": _UP_TYPES,
}
_PER_BLOCK = (
    *("down_block_types", "up_block_types"),
    *("only_cross_attention", "transformer_layers_per_block"),
)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Names and defaults of diffusers' unet/config.json.

    `attention_head_dim` is the NUMBER of heads, per block or one for all, unless
    `num_attention_heads` is given: diffusers kept that misnomer for old checkpoints.
    """

    sample_size: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*_DOWN_TYPES[:1] * 3, "DownBlock2D")
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", *_UP_TYPES[:1] * 3)
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False

    def __post_init__(self):
        """Refuses what the network does not implement."""
        for name in ("layers_per_block", "cross_attention_dim", "norm_num_groups"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"{name}={getattr(self, name)!r} must be one integer")
        for name, allowed in _ALLOWED.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                configs.require(name, value, allowed)
        for name in _PER_BLOCK:
            configs.per_block(getattr(self, name), self.num_blocks, name)
        configs.per_block(self.num_heads, self.num_blocks, "attention_head_dim")

    @property
    def num_blocks(self) -> int:
        """Number of resolutions."""
        return len(self.block_out_channels)

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Number of attention heads of every down block."""
        heads = self.num_attention_heads or self.attention_head_dim
        return heads if isinstance(heads, tuple) else (heads,) * self.num_blocks

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "UNetConfig":
        """Reads the dict of a config.json; UserError names a key we cannot honour."""
        return configs.read(cls, raw, _FIXED, _IGNORED)

    def to_dict(self) -> dict[str, Any]:
        """Returns the dict of a config.json that diffusers and `from_dict` read."""
        return configs.write(self, "UNet2DConditionModel")


def attention_resolutions(
    config: UNetConfig, height: int, width: int
) -> tuple[tuple[int, int], ...]:
    """Lists the grids (h_l, w_l) on which the UNet has cross-attention, finest first.

    A `context_bias` needs one entry per grid, under the key h_l * w_l.

    Args:
      config: The UNet's config.
      height, width: Size of the latents.

    Raises:
      UserError: the size does not halve often enough.
    """
    last = config.num_blocks - 1
    if height % 2**last or width % 2**last:
        raise UserError(
            f"latents of {height}x{width} do not halve {last} times; make both sides "
            f"multiples of {2**last}, or use fewer block_out_channels"
        )
    has_attention = [
        "CrossAttn" in down or "CrossAttn" in up
        for down, up in zip(
            config.down_block_types, reversed(config.up_block_types), strict=True
        )
    ]
    has_attention[last] = True  # the mid block
    return tuple(
        (height >> i, width >> i) for i, has in enumerate(has_attention) if has
    )


def _bias_of(
    context_bias: Mapping[int, Array] | None, hidden: Array, context: Array
) -> Array | None:
    """Picks the bias of the grid of `hidden`, checking that it fits."""
    if context_bias is None:
        return None
    batch, height, width, _ = hidden.shape
    num_queries = height * width
    if num_queries not in context_bias:
        raise UserError(
            f"context_bias has no entry {num_queries} for the {height}x{width} layers, "
            f"only {sorted(context_bias)}; build one per grid of attention_resolutions"
        )
    bias = context_bias[num_queries]
    logits = (num_queries, context.shape[1])
    if bias.ndim != 3 or bias.shape[0] not in (1, batch) or bias.shape[1:] != logits:
        raise UserError(
            f"context_bias[{num_queries}] has shape {bias.shape}; "
            f"wanted ({batch} or 1, {logits[0]}, {logits[1]})"
        )
    return bias.astype(jnp.float32)


class _Block(nn.Module):
    """What down, mid and up blocks share: where they sit and how their layers look."""

    config: UNetConfig
    level: int  # 0 is the finest resolution
    has_attention: bool
    dtype: Any

    def residual(self, index: int) -> layers.ResidualBlock:
        config = self.config
        features = config.block_out_channels[self.level]
        sizes = features, config.norm_num_groups, config.norm_eps, self.dtype
        return layers.ResidualBlock(*sizes, name=f"resnets_{index}")

    def attend(self, index, hidden, context, context_bias, only_cross=None) -> Array:
        """Applies the transformer after residual block `index`, if there is one."""
        if not self.has_attention:
            return hidden
        config = self.config

        def here(name: str) -> Any:
            values = configs.per_block(getattr(config, name), config.num_blocks, name)
            return values[self.level]

        return layers.SpatialTransformer(
            config.num_heads[self.level],
            here("transformer_layers_per_block"),
            config.norm_num_groups,
            config.use_linear_projection,
            here("only_cross_attention") if only_cross is None else only_cross,
            self.dtype,
            name=f"attentions_{index}",
        )(hidden, context, _bias_of(context_bias, hidden, context))


class DownBlock(_Block):
    """Residual blocks, each with a transformer if asked, then half the resolution."""

    @nn.compact
    def __call__(self, hidden, time_embedding, context, context_bias):
        """Returns the hidden map and every map the up path takes back."""
        skips = []
        for i in range(self.config.layers_per_block):
            hidden = self.residual(i)(hidden, time_embedding)
            hidden = self.attend(i, hidden, context, context_bias)
            skips.append(hidden)
        if self.level < self.config.num_blocks - 1:
            features = self.config.block_out_channels[self.level]
            hidden = layers.Downsample(
                features, dtype=self.dtype, name="downsamplers_0"
            )(hidden)
            skips.append(hidden)
        return hidden, tuple(skips)


class MidBlock(_Block):
    """A transformer between two residual blocks; it always has self-attention."""

    @nn.compact
    def __call__(self, hidden, time_embedding, context, context_bias):
        """Maps [B, h, w, C] to [B, h, w, C]."""
        hidden = self.residual(0)(hidden, time_embedding)
        hidden = self.attend(0, hidden, context, context_bias, only_cross=False)
        return self.residual(1)(hidden, time_embedding)


class UpBlock(_Block):
    """The mirror of `DownBlock`, one layer deeper; reads the maps of the way down."""

    @nn.compact
    def __call__(self, hidden, skips, time_embedding, context, context_bias):
        """Takes `skips` from the last to the first."""
        for i, skip in enumerate(reversed(skips)):
            hidden = jnp.concatenate([hidden, skip], axis=-1)
            hidden = self.residual(i)(hidden, time_embedding)
            hidden = self.attend(i, hidden, context, context_bias)
        if self.level > 0:
            features = self.config.block_out_channels[self.level]
            hidden = layers.Upsample(features, self.dtype, name="upsamplers_0")(hidden)
        return hidden


class UNet(nn.Module):
    """Predicts the noise in latents.

    Attributes:
      config: Sizes, see `UNetConfig`.
      dtype: What it computes in; parameters, norms' statistics, softmax, the timestep
        embedding's angles and the result are float32 in any case.
      remat: What every block keeps for the backward pass, see `remat.POLICIES`.
    """

    config: UNetConfig
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        latents: Array,
        timesteps: Array,
        context: Array,
        context_bias: Mapping[int, Array] | None = None,
    ) -> Array:
        """Returns noise_pred [B, h, w, out_channels] float32.

        Args:
          latents: [B, h, w, in_channels]; h and w halve once per block but the last.
          timesteps: [B] integer.
          context: [B, L, cross_attention_dim].
          context_bias: {h_l * w_l: [B or 1, h_l * w_l, L]} float32, added to the logits
            of every cross-attention on that grid and to no self-attention; one entry
            per grid of `attention_resolutions`.
        """
        config, dtype = self.config, self.dtype
        self._check(latents, timesteps, context)
        down, mid, up = (
            recompute.block(block, self.remat)
            for block in (DownBlock, MidBlock, UpBlock)
        )
        width, context = config.block_out_channels[0], context.astype(dtype)
        waves = layers.sinusoidal_embedding(
            timesteps, width, config.flip_sin_to_cos, config.freq_shift
        )
        embed = layers.TimestepEmbedding(4 * width, dtype, name="time_embedding")
        inputs = embed(waves), context, context_bias

        hidden = layers.conv3x3(width, "conv_in", dtype)(latents)
        skips = (hidden,)
        for i, block_type in enumerate(config.down_block_types):
            place = config, i, "CrossAttn" in block_type, dtype
            hidden, new = down(*place, name=f"down_blocks_{i}")(hidden, *inputs)
            skips += new
        last = config.num_blocks - 1
        hidden = mid(config, last, True, dtype, name="mid_block")(hidden, *inputs)
        for i, block_type in enumerate(config.up_block_types):
            taken = config.layers_per_block + 1
            skips, own = skips[:-taken], skips[-taken:]
            place = config, last - i, "CrossAttn" in block_type, dtype
            hidden = up(*place, name=f"up_blocks_{i}")(hidden, own, *inputs)
        hidden = layers.GroupNorm(
            config.norm_num_groups, config.norm_eps, dtype, name="conv_norm_out"
        )(hidden)
        hidden = layers.conv3x3(config.out_channels, "conv_out", dtype)(nn.silu(hidden))
        return hidden.astype(jnp.float32)

    def _check(self, latents: Array, timesteps: Array, context: Array) -> None:
        config = self.config
        chex.assert_rank([latents, timesteps, context], [4, 1, 3])
        attention_resolutions(config, *latents.shape[1:3])
        if latents.shape[-1] != config.in_channels:
            raise UserError(
                f"latents {latents.shape} have {latents.shape[-1]} channels, "
                f"in_channels={config.in_channels}; latents are [B, h, w, C]"
            )
        if context.shape[-1] != config.cross_attention_dim:
            raise UserError(
                f"context {context.shape} is {context.shape[-1]} wide, "
                f"cross_attention_dim={config.cross_attention_dim}; use the text tower "
                "the UNet was trained with"
            )
        if not latents.shape[0] == timesteps.shape[0] == context.shape[0]:
            raise UserError(
                f"latents {latents.shape}, timesteps {timesteps.shape} and context "
                f"{context.shape} differ in their batch axis; broadcast them first"
            )
