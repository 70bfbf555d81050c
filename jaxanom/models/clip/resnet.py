"""CLIP's residual image tower: ModifiedResNet with attention pooling (2103.00020, 2.4).

Against a plain ResNet: three stem convolutions with an average pool; strides are
average pools before a 1x1 convolution, in the shortcut too; one attention layer, whose
query is the mean token, pools the grid. Batch norms use stored statistics: the tower is
frozen, so statistics are parameters here, `{scale, bias, mean, var}`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.models.clip import layers as clip_layers
from jaxanom.models.ops import attention
from jaxanom.types import Array, Params


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes; the defaults are CLIP RN50's.

    `image_mean` and `image_std` are the released preprocessing.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_heads: int = 32
    projection_dim: int = 1024
    image_size: int = 224
    norm_eps: float = 1e-5
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        """Refuses sizes that do not fit together."""
        if len(self.layers) != 4 or self.width % 2:
            raise UserError(
                f"layers={self.layers}, width={self.width}; wanted four stages and an "
                "even width"
            )
        if self.image_size % 32 or (self.width * 32) % self.num_heads:
            raise UserError(
                f"image_size={self.image_size} is no multiple of 32, or 32 * width="
                f"{32 * self.width} none of num_heads={self.num_heads}"
            )


class ResNetOutput(NamedTuple):
    """What the tower says of B images.

    Attributes:
      image_features: [B, K], token 0 of the pooling, not normalised.
      patch_tokens: [B, N, K], the other tokens, row by row.
    """

    image_features: Array
    patch_tokens: Array


class ResNetTower(nn.Module):
    """Images in [0, 1] to pooled features and patch tokens in the joint space."""

    config: ResNetConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Names the trunk as released files do."""
        self.visual = Trunk(self.config, self.dtype)

    def __call__(self, image: Array) -> ResNetOutput:
        """Encodes [B, H, W, 3].

        Raises:
          UserError: a size other than `config.image_size`, or integers.
        """
        size = self.config.image_size
        if image.shape[1:] != (size, size, 3):
            raise UserError(f"image {image.shape}; wanted [B, {size}, {size}, 3]")
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(f"image has dtype {image.dtype}; wanted float in [0, 1]")
        return self.visual(clip_layers.standardise(image, self.config))

    def encode(self, pixels: Array) -> ResNetOutput:
        """The same of pixels [B, H, W, 3] that are normalised already."""
        return self.visual(pixels)


class Trunk(nn.Module):
    """Stem, four stages, pooling; one level of the tree."""

    config: ResNetConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> ResNetOutput:
        """Normalised pixels [B, H, W, 3] to features."""
        config, width = self.config, self.config.width
        x = x.astype(self.dtype)
        for number, (channels, stride) in enumerate(
            ((width // 2, 2), (width // 2, 1), (width, 1)), start=1
        ):
            x = _conv(channels, 3, self.dtype, f"conv{number}", stride)(x)
            x = nn.relu(BatchNorm(config.norm_eps, name=f"bn{number}")(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        for stage, depth in enumerate(config.layers):
            sizes = width * 2**stage, depth, 1 + (stage > 0)
            x = Stage(config, *sizes, self.dtype, name=f"layer{stage + 1}")(x)
        return AttentionPool(config, self.dtype, name="attnpool")(x)


class Stage(nn.Module):
    """Blocks named "0", "1", ...; the first one strides."""

    config: ResNetConfig
    planes: int
    depth: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, h / stride, w / stride, 4 planes]."""
        for number in range(self.depth):
            sizes = self.planes, self.stride if number == 0 else 1
            x = Bottleneck(self.config, *sizes, self.dtype, name=str(number))(x)
        return x


class Bottleneck(nn.Module):
    """1x1, 3x3, average pool, 1x1, around a shortcut that pools as well."""

    config: ResNetConfig
    planes: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, h / stride, w / stride, 4 planes]."""
        eps, window = self.config.norm_eps, (self.stride, self.stride)
        out = _conv(self.planes, 1, self.dtype, "conv1")(x)
        out = nn.relu(BatchNorm(eps, name="bn1")(out))
        out = _conv(self.planes, 3, self.dtype, "conv2")(out)
        out = nn.relu(BatchNorm(eps, name="bn2")(out))
        if self.stride > 1:
            out = nn.avg_pool(out, window, window)
        out = _conv(4 * self.planes, 1, self.dtype, "conv3")(out)
        out = BatchNorm(eps, name="bn3")(out)
        if self.stride > 1 or x.shape[-1] != 4 * self.planes:
            if self.stride > 1:
                x = nn.avg_pool(x, window, window)
            x = _conv(4 * self.planes, 1, self.dtype, "downsample_conv")(x)
            x = BatchNorm(eps, name="downsample_bn")(x)
        return nn.relu(out + x)


class BatchNorm(nn.Module):
    """Affine by stored statistics, which are parameters; float32 or wider inside."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] -> [..., C]."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        inits = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
        scale, bias, mean, var = (
            self.param(name, init, (x.shape[-1],)) for name, init in inits.items()
        )
        factor = scale / jnp.sqrt(var + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(x.dtype)


class AttentionPool(nn.Module):
    """Attention over the mean token and the grid, then into the joint space."""

    config: ResNetConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> ResNetOutput:
        """[B, h, w, C] -> features of token 0 and of the grid."""
        config, width = self.config, x.shape[-1]
        grid = x.reshape(x.shape[0], -1, width)  # [B, N, C]
        tokens = jnp.concatenate([grid.mean(1, keepdims=True), grid], axis=1)
        table = self.param(
            "positional_embedding",
            nn.initializers.normal(width**-0.5),
            (tokens.shape[1], width),
        )
        tokens = tokens + table.astype(tokens.dtype)
        heads = (*tokens.shape[:2], config.num_heads, width // config.num_heads)
        query, key, value = (
            nn.Dense(width, dtype=self.dtype, name=name)(tokens).reshape(heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = attention.dot_product(query, key, value, implementation="matmul")
        mixed = mixed.reshape(tokens.shape)
        out = nn.Dense(config.projection_dim, dtype=self.dtype, name="c_proj")(mixed)
        out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        return ResNetOutput(out[:, 0], out[:, 1:])


def _conv(channels: int, size: int, dtype: Any, name: str, stride: int = 1) -> nn.Conv:
    return nn.Conv(
        channels,
        (size, size),
        (stride, stride),
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        name=name,
    )


_DOWNSAMPLE = {"0": "downsample_conv", "1": "downsample_bn"}
_NORM_LEAVES = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
}
_TRUNK = re.compile(r"visual\.(conv[1-3]\.weight|bn[1-3]\.|layer[1-4]\.|attnpool\.)")


def recognises(names: Mapping[str, Any]) -> bool:
    """Says whether tensor names are those of a released residual CLIP."""
    return "visual.attnpool.positional_embedding" in names


def config_from_published(
    state: Mapping[str, np.ndarray], **known: Any
) -> ResNetConfig:
    """Reads sizes off the tensors of a released file.

    Args:
      state: {published name: array}.
      **known: Sizes that no tensor shows: `num_heads` (released towers have 64
        channels a head), `image_mean`, `image_std`.
    """
    layers = (name for name in state if name.startswith("visual.layer"))
    stages = [stage for stage, _ in {tuple(name.split(".")[1:3]) for name in layers}]
    depths = tuple(stages.count(f"layer{n}") for n in (1, 2, 3, 4))
    width = state["visual.layer1.0.conv1.weight"].shape[0]
    tokens = state["visual.attnpool.positional_embedding"].shape[0]
    return ResNetConfig(
        layers=depths,
        width=width,
        projection_dim=state["visual.attnpool.c_proj.weight"].shape[0],
        image_size=32 * round((tokens - 1) ** 0.5),
        **{"num_heads": max(width * 32 // 64, 1), **known},
    )


def params_from_published(state: Mapping[str, np.ndarray]) -> Params:
    """Brings the image part of a released residual CLIP into our tree.

    Args:
      state: {published name: array}; names outside `visual.` are left alone, as are
        the counters of batch norms.

    Raises:
      UserError: a name of `visual.` that the tower does not have.
    """
    flat = {}
    for name, value in state.items():
        if not name.startswith("visual.") or name.endswith("num_batches_tracked"):
            continue
        if not _TRUNK.match(name):
            raise UserError(f"{name} is no tensor of a residual CLIP image tower")
        parts = name.split(".")
        if "downsample" in parts:
            at = parts.index("downsample")
            parts[at : at + 2] = [_DOWNSAMPLE.get(parts[at + 1], "unknown")]
        *modules, leaf = parts
        value = np.asarray(value)
        if value.ndim == 4 and leaf == "weight":
            leaf, value = "kernel", value.transpose(2, 3, 1, 0)
        elif value.ndim == 2 and leaf == "weight":
            leaf, value = "kernel", value.T
        elif "bn" in modules[-1]:
            leaf = _NORM_LEAVES.get(leaf, "unknown")
        flat["/".join([*modules, leaf])] = value
    return trees.unflatten(flat)
