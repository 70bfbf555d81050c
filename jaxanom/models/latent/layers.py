"""Blocks shared by the latent UNet and the autoencoders, in NHWC with HWIO kernels.

Parameter names follow diffusers' Flax classes, so published trees fit without renaming.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxanom.errors import UserError
from jaxanom.models.ops import attention
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array


def group_norm(
    inputs: Array, scale: Array, bias: Array, num_groups: int, epsilon: float
) -> Array:
    """Normalises every group of channels of every image (arXiv 1803.08494, eq. 1).

    Statistics and the affine map are float32 whatever the dtype of `inputs`; the
    variance takes a second pass, because E[x^2] - E[x]^2 cancels at large means.

    Args:
      inputs: [B, ..., C]; the statistics run over all axes between.
      scale, bias: [C].
      num_groups: Divides C.
      epsilon: Added to the variance.

    Returns:
      [B, ..., C] float32.
    """
    batch, channels = inputs.shape[0], inputs.shape[-1]
    if channels % num_groups:
        raise UserError(
            f"{channels} channels do not split into norm_num_groups={num_groups}; "
            "make every entry of block_out_channels a multiple of norm_num_groups"
        )
    grouped = inputs.astype(jnp.float32).reshape(
        batch, -1, num_groups, channels // num_groups
    )  # [B, N, G, C/G]
    centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=(1, 3), keepdims=True)
    normal = (centred * jax.lax.rsqrt(variance + epsilon)).reshape(inputs.shape)
    return normal * scale + bias


def sinusoidal_embedding(
    timesteps: Array, width: int, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> Array:
    """Sines and cosines of the timestep (arXiv 1706.03762, section 3.5).

    Args:
      timesteps: [B], any real dtype.
      width: Even number of columns to return.
      flip_sin_to_cos: Cosines first, as Stable Diffusion was trained; else sines first.
      freq_shift: Taken from the number of frequencies in the exponent's denominator.

    Returns:
      [B, width] float32.
    """
    if width % 2:
        raise UserError(f"the width of a timestep embedding must be even; got {width}")
    half = width // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    frequencies = jnp.exp(-math.log(10000.0) * exponents)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies  # [B, width / 2]
    halves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(halves[::-1] if flip_sin_to_cos else halves, axis=-1)


def enlarge(inputs: Array) -> Array:
    """Doubles [B, H, W, C] by nearest neighbours."""
    batch, height, width, channels = inputs.shape
    repeated = jnp.broadcast_to(
        inputs[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
    )
    return repeated.reshape(batch, 2 * height, 2 * width, channels)


class GroupNorm(nn.Module):
    """`group_norm` with its weights; computes in float32, returns `dtype`."""

    num_groups: int
    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [B, ..., C] to [B, ..., C]."""
        channels = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        normal = group_norm(inputs, scale, bias, self.num_groups, self.epsilon)
        return normal.astype(self.dtype)


class PointwiseConv(nn.Module):
    """A 1x1 convolution run as a matmul; the kernel keeps the shape [1, 1, in, out]."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [..., C_in] to [..., features]."""
        shape = (1, 1, inputs.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        outputs = inputs.astype(self.dtype) @ kernel[0, 0].astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            outputs = outputs + bias.astype(self.dtype)
        return outputs


def conv3x3(
    features: int,
    name: str,
    dtype: Any,
    stride: int = 1,
    use_bias: bool = True,
    before: int = 1,
) -> nn.Conv:
    """A 3x3 convolution with a pixel of zeros after the input, `before` before it."""
    return nn.Conv(
        features,
        kernel_size=(3, 3),
        strides=(stride, stride),
        padding=((before, 1), (before, 1)),
        use_bias=use_bias,
        dtype=dtype,
        name=name,
    )


class TimestepEmbedding(nn.Module):
    """Two dense layers on a sinusoidal embedding."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embedding: Array) -> Array:
        """Maps [B, D] to [B, features]."""
        hidden = nn.Dense(self.features, dtype=self.dtype, name="linear_1")(embedding)
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(
            nn.silu(hidden)
        )


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the time embedding, if any, enters in between."""

    features: int
    num_groups: int
    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, time_embedding: Array | None = None) -> Array:
        """Maps [B, H, W, C] (and [B, D]) to [B, H, W, features]."""
        norm = functools.partial(GroupNorm, self.num_groups, self.epsilon, self.dtype)
        inputs = meshes.rows_stay(inputs)
        hidden = nn.silu(norm(name="norm1")(inputs))
        hidden = conv3x3(self.features, "conv1", self.dtype)(hidden)
        if time_embedding is not None:
            shift = nn.Dense(self.features, dtype=self.dtype, name="time_emb_proj")
            hidden = hidden + shift(nn.silu(time_embedding))[:, None, None, :]
        hidden = nn.silu(norm(name="norm2")(hidden))
        hidden = conv3x3(self.features, "conv2", self.dtype)(hidden)
        if inputs.shape[-1] != self.features:
            shortcut = PointwiseConv(
                self.features, dtype=self.dtype, name="conv_shortcut"
            )
            inputs = shortcut(inputs)
        return inputs + hidden


class Downsample(nn.Module):
    """A stride-2 convolution.

    `pad_both_sides` is the UNet's padding; the autoencoder pads right and bottom only.
    """

    features: int
    pad_both_sides: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [B, H, W, C] to [B, H/2, W/2, features]."""
        before = int(self.pad_both_sides)
        conv = conv3x3(self.features, "conv", self.dtype, stride=2, before=before)
        return conv(inputs)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement, then a convolution."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
        inputs = meshes.rows_stay(enlarge(inputs))
        return conv3x3(self.features, "conv", self.dtype)(inputs)


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to a context."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, context: Array, bias: Array | None) -> Array:
        """Attends from tokens [B, N, C] to context [B, L, D].

        `bias` ([B, N, L] or [1, N, L] float32) is added to the logits of all heads.
        """
        channels = tokens.shape[-1]

        def project(name: str, inputs: Array) -> Array:
            dense = nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)
            outputs = dense(inputs)
            return outputs.reshape(*outputs.shape[:2], self.num_heads, -1)

        mixed = attention.dot_product(
            project("to_q", tokens),
            project("to_k", context),
            project("to_v", context),
            bias=None if bias is None else bias[:, None],
        )  # [B, N, num_heads, C / num_heads]
        mixed = mixed.reshape(tokens.shape)
        return nn.Dense(channels, dtype=self.dtype, name="to_out_0")(mixed)


class GatedGelu(nn.Module):
    """Linear map gated by the exact GELU of another (GEGLU, arXiv 2002.05202)."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps [B, N, C] to [B, N, features]."""
        both = nn.Dense(2 * self.features, dtype=self.dtype, name="proj")(tokens)
        linear, gate = jnp.split(both, 2, axis=-1)
        return linear * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU at four times the width, then back."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps [B, N, C] to [B, N, C]."""
        channels = tokens.shape[-1]
        hidden = GatedGelu(4 * channels, self.dtype, name="net_0")(tokens)
        return nn.Dense(channels, dtype=self.dtype, name="net_2")(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each added to its input.

    With `only_cross_attention` the first attention reads the context too, and takes the
    bias like the second.
    """

    num_heads: int
    only_cross_attention: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, context: Array, bias: Array | None) -> Array:
        """Maps tokens [B, N, C] given context [B, L, D] to [B, N, C]."""
        norm = functools.partial(
            nn.LayerNorm, epsilon=1e-5, dtype=self.dtype, use_fast_variance=False
        )
        attend = functools.partial(Attention, self.num_heads, self.dtype)
        tokens, context = meshes.rows_stay(tokens), meshes.rows_stay(context)
        normal = norm(name="norm1")(tokens)
        first = (context, bias) if self.only_cross_attention else (normal, None)
        tokens = tokens + attend(name="attn1")(normal, *first)
        normal = norm(name="norm2")(tokens)
        tokens = tokens + attend(name="attn2")(normal, context, bias)
        return tokens + FeedForward(self.dtype, name="ff")(norm(name="norm3")(tokens))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, added to the map.

    The group norm's epsilon is 1e-6, as in the PyTorch classes the published weights
    were trained with; diffusers' Flax class has 1e-5 and the tanh form of GELU.
    """

    num_heads: int
    num_layers: int
    num_groups: int
    use_linear_projection: bool = False
    only_cross_attention: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, context: Array, bias: Array | None) -> Array:
        """Maps [B, H, W, C] given context [B, L, D] to [B, H, W, C]."""
        batch, height, width, channels = inputs.shape
        if channels % self.num_heads:
            raise UserError(
                f"{channels} channels do not split into {self.num_heads} heads; "
                "attention_head_dim counts heads: make it divide block_out_channels"
            )
        project = nn.Dense if self.use_linear_projection else PointwiseConv
        hidden = GroupNorm(self.num_groups, 1e-6, self.dtype, name="norm")(inputs)
        tokens = hidden.reshape(batch, height * width, channels)
        tokens = project(channels, dtype=self.dtype, name="proj_in")(tokens)
        for i in range(self.num_layers):
            tokens = TransformerBlock(
                self.num_heads,
                self.only_cross_attention,
                self.dtype,
                name=f"transformer_blocks_{i}",
            )(tokens, context, bias)
        tokens = project(channels, dtype=self.dtype, name="proj_out")(tokens)
        return inputs + tokens.reshape(inputs.shape)
