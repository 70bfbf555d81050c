"""What CLIP's towers are made of; module names are the paths of the parameter tree."""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxanom.errors import UserError
from jaxanom.models.clip import positions
from jaxanom.models.ops import attention
from jaxanom.models.ops import remat as recompute
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": partial(nn.gelu, approximate=False),
}


def with_activation(config: Any, hidden_act: str) -> Any:
    """Returns a config with another activation in its towers; "" keeps what it is.

    Args:
      config: A `towers.TextConfig`, `VisionConfig`, or `ClipConfig` of both.
      hidden_act: A key of `ACTIVATIONS`, or "".
    """
    if not hidden_act:
        return config
    if hasattr(config, "hidden_act"):
        return dataclasses.replace(config, hidden_act=hidden_act)
    towers = {
        name: with_activation(getattr(config, name), hidden_act)
        for name in ("text_config", "vision_config")
    }
    return dataclasses.replace(config, **towers)


class TextModel(nn.Module):
    """Token embeddings [B, L, D] -> final states [B, L, D] float32, chosen states."""

    config: Any
    dtype: Any
    remat: str

    def setup(self):
        """Names the submodules as the parameter tree does."""
        self.embeddings = TextEmbeddings(self.config)
        self.encoder = Encoder(self.config, self.dtype, self.remat)
        self.final_layer_norm = _layer_norm(self.config)

    def __call__(self, token_embeddings: Array, return_layers: tuple[int, ...]):
        """Adds positions and encodes under the causal mask."""
        hidden = self.embeddings(token_embeddings)
        allowed = jnp.tril(jnp.ones((hidden.shape[1],) * 2, bool))
        bias = jnp.where(allowed, 0.0, jnp.finfo(jnp.float32).min)[None, None]
        hidden, kept = self.encoder(hidden.astype(self.dtype), bias, return_layers)
        return self.final_layer_norm(hidden), kept


class TextEmbeddings(nn.Module):
    """Token and position tables."""

    config: Any

    def setup(self):
        """Names the tables as the parameter tree does."""
        config = self.config
        self.token_embedding = _table(config.vocab_size, config)
        self.position_embedding = _table(config.max_position_embeddings, config)

    def __call__(self, token_embeddings: Array) -> Array:
        """[B, L, D] -> [B, L, D] float32 with positions added."""
        _, length, width = token_embeddings.shape
        longest = self.config.max_position_embeddings
        if length > longest or width != self.config.hidden_size:
            raise UserError(
                f"token embeddings [L={length}, D={width}] do not fit "
                f"max_position_embeddings={longest}, "
                f"hidden_size={self.config.hidden_size}"
            )
        return token_embeddings + self.position_embedding.embedding[:length]


class VisionModel(nn.Module):
    """The image tower in two halves: `embed`, then `__call__` on its tokens."""

    config: Any
    dtype: Any
    remat: str
    antialias_positions: bool

    def setup(self):
        """Names the submodules as the parameter tree does."""
        self.embeddings = VisionEmbeddings(
            self.config, self.dtype, self.antialias_positions
        )
        self.pre_layrnorm = _layer_norm(self.config)
        self.encoder = Encoder(self.config, self.dtype, self.remat)
        self.post_layernorm = _layer_norm(self.config)

    def embed(self, image: Array) -> Array:
        """[B, H, W, 3] in [0, 1] -> [B, 1 + N, D]."""
        return self.pre_layrnorm(self.embeddings(image)).astype(self.dtype)

    def __call__(self, tokens: Array, return_layers: tuple[int, ...]):
        """[B, 1 + N, D] -> pooled [B, D] float32, tokens [B, 1 + N, D], states."""
        tokens, kept = self.encoder(tokens.astype(self.dtype), None, return_layers)
        return self.post_layernorm(tokens[:, 0]), tokens, kept


class VisionEmbeddings(nn.Module):
    """Pixels to patch tokens behind a class token, with positions."""

    config: Any
    dtype: Any
    antialias_positions: bool

    def setup(self):
        """Names the parameters as the tree does."""
        config = self.config
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = self.param(
            "class_embedding", _normal(width**-0.5), (width,)
        )
        self.patch_embedding = nn.Conv(
            width,
            (patch, patch),
            strides=(patch, patch),
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_normal(0.02),
        )
        num_positions = (config.image_size // patch) ** 2 + 1
        self.position_embedding = _table(num_positions, config)

    def __call__(self, image: Array) -> Array:
        """[B, H, W, 3] in [0, 1] -> [B, 1 + N, D] float32."""
        config, patch = self.config, self.config.patch_size
        if image.ndim != 4 or image.shape[3] != 3:
            raise UserError(f"image has shape {image.shape}; wanted [B, H, W, 3]")
        if image.shape[1] % patch or image.shape[2] % patch:
            raise UserError(
                f"image of {image.shape[1]} x {image.shape[2]} pixels does not divide "
                f"into patches of {patch}; resize it to multiples of patch_size"
            )
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(
                f"image has dtype {image.dtype}; wanted float in [0, 1] (divide by 255)"
            )
        patches = self.patch_embedding(standardise(image, config))  # [B, h, w, D]
        grid = patches.shape[1:3]
        patches = patches.reshape(image.shape[0], -1, config.hidden_size)  # [B, N, D]
        table = self.position_embedding.embedding
        first = self.class_embedding + table[0]
        first = jnp.broadcast_to(first, (image.shape[0], 1, config.hidden_size))
        rest = patches + positions.resize(table[1:], grid, self.antialias_positions)
        return jnp.concatenate([first, rest], axis=1)


class Encoder(nn.Module):
    """One level of the tree around `Layers`."""

    config: Any
    dtype: Any
    remat: str

    @nn.compact
    def __call__(self, hidden: Array, bias: Array | None, return_layers):
        """[B, S, D] -> [B, S, D] and the states after `return_layers`."""
        layers = Layers(self.config, self.dtype, self.remat, name="layers")
        return layers(hidden, bias, return_layers)


class Layers(nn.Module):
    """Pre-norm transformer layers, named "0", "1", ... ."""

    config: Any
    dtype: Any
    remat: str

    @nn.compact
    def __call__(self, hidden: Array, bias: Array | None, return_layers):
        """[B, S, D] -> [B, S, D] and the states after `return_layers`."""
        num_layers = self.config.num_hidden_layers
        if wrong := [i for i in return_layers if not 0 <= i <= num_layers]:
            raise UserError(
                f"return_layers has {wrong}; layers are 0 (embedding) to {num_layers}"
            )
        layer = recompute.block(Layer, self.remat)
        states = [hidden]
        for i in range(num_layers):
            hidden = layer(self.config, self.dtype, name=str(i))(hidden, bias)
            states.append(hidden)
        return hidden, tuple(states[i] for i in return_layers)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Array, bias: Array | None) -> Array:
        """[B, S, D], additive bias [1, 1, S, S] -> [B, S, D]."""
        hidden = meshes.rows_stay(hidden)
        normed = _layer_norm(self.config, "layer_norm1")(hidden).astype(self.dtype)
        attend = SelfAttention(self.config, self.dtype, name="self_attn")
        hidden = hidden + attend(normed, bias)
        normed = _layer_norm(self.config, "layer_norm2")(hidden).astype(self.dtype)
        return hidden + Mlp(self.config, self.dtype, name="mlp")(normed)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Array, bias: Array | None) -> Array:
        """[B, S, D], additive bias [1, 1, S, S] -> [B, S, D]."""
        width, num_heads = self.config.hidden_size, self.config.num_attention_heads
        std_in, std_out = _residual_stds(self.config)
        query, key, value = (
            _dense(width, std_in, name, self.dtype)(hidden).reshape(
                *hidden.shape[:2], num_heads, width // num_heads
            )
            for name in ("q_proj", "k_proj", "v_proj")
        )  # [B, S, H, D / H] each
        mixed = attention.dot_product(query, key, value, bias).reshape(hidden.shape)
        return _dense(width, std_out, "out_proj", self.dtype)(mixed)


class Mlp(nn.Module):
    """Two dense layers around the activation."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """[B, S, D] -> [B, S, D]."""
        config, width = self.config, self.config.hidden_size
        std_in, std_out = (2 * width) ** -0.5, _residual_stds(config)[0]
        hidden = _dense(config.intermediate_size, std_in, "fc1", self.dtype)(hidden)
        hidden = ACTIVATIONS[config.hidden_act](hidden)
        return _dense(width, std_out, "fc2", self.dtype)(hidden)


def projection(config: Any) -> nn.Dense:
    """Returns the bias-free map of pooled states to the joint space, in float32."""
    return nn.Dense(
        config.projection_dim,
        use_bias=False,
        kernel_init=_normal(config.hidden_size**-0.5),
    )


def standardise(image: Array, config: Any) -> Array:
    """Returns pixels in [0, 1] minus the config's mean, divided by its spread."""
    mean, std = (jnp.asarray(x) for x in (config.image_mean, config.image_std))
    return (image - mean) / std


def _layer_norm(config: Any, name: str | None = None) -> nn.LayerNorm:
    # Two passes over the data: activations of CLIP are too large for E[x^2] - E[x]^2.
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps,
        dtype=jnp.float32,
        use_fast_variance=False,
        name=name,
    )


_normal = nn.initializers.normal


def _table(num_rows: int, config: Any) -> nn.Embed:
    return nn.Embed(num_rows, config.hidden_size, embedding_init=_normal(0.02))


def _dense(width: int, std: float, name: str, dtype: Any) -> nn.Dense:
    return nn.Dense(width, dtype=dtype, kernel_init=_normal(std), name=name)


def _residual_stds(config: Any) -> tuple[float, float]:
    """Initial spreads into and out of a residual branch (released CLIP code)."""
    width = config.hidden_size**-0.5
    return width * (2 * config.num_hidden_layers) ** -0.5, width
