"""Tiny distilled autoencoders (the TAESD family): image in [0, 1] <-> latents.

The networks of github.com/madebyollin/taesd, MIT. Parameter names are those of
diffusers' `AutoencoderTiny`, whose decoder numbers its layers one lower than the
original does (there the soft clamp is layer 0). Unlike `AutoencoderTiny`, which maps
[-1, 1] to and fro around them, the networks themselves speak [0, 1], and so do we.

`encode` and `decode` keep the contract of `vae.AutoencoderKL`: either model serves
latent diffusion.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.models.checkpoints import configs
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.latent import layers
from jaxanom.models.latent.vae import Moments
from jaxanom.types import Array, Params

_CLAMP = 3.0  # latents enter the decoder as 3 tanh(z / 3)
_POOL_WIDTH = 256
_POOL_GROUPS = 4
_SUFFIXES = (".npz", ".safetensors", ".pth")
_FIXED = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
# Range of the 8-bit latents of AutoencoderTiny.forward, which encode and decode skip.
_IGNORED = ("latent_magnitude", "latent_shift", "force_upcast", "block_out_channels")


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """Names and defaults of diffusers' config.json of an `AutoencoderTiny`.

    Two fields are ours: `encoder_pool_layers` and `decoder_pool_layers` hold the
    numbers of the residual units (as in the parameter names) with a side branch.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    encoder_pool_layers: tuple[int, ...] = ()
    decoder_pool_layers: tuple[int, ...] = ()

    def __post_init__(self):
        """Refuses widths the residual units cannot join."""
        for part in ("encoder", "decoder"):
            widths = getattr(self, f"{part}_block_out_channels")
            stages = getattr(self, f"num_{part}_blocks")
            configs.per_block(widths, len(stages), f"{part}_block_out_channels")
            if len(set(widths)) != 1:
                raise UserError(
                    f"{part}_block_out_channels={widths} differ; the residual units "
                    "keep their width: repeat one value"
                )

    @property
    def downsampling(self) -> int:
        """Image pixels per latent cell, along each side."""
        return 2 ** (len(self.num_encoder_blocks) - 1)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "TinyConfig":
        """Reads the dict of a config.json; UserError names a key we cannot honour."""
        return configs.read(cls, raw, _FIXED, _IGNORED)

    def to_dict(self) -> dict[str, Any]:
        """Returns the dict of a config.json that `from_dict` reads."""
        return configs.write(self, "AutoencoderTiny", **_FIXED)


class _Pool(nn.Module):
    """Side branch: 1x1 convolution, group norm over the whole image, ReLU, 1x1 back."""

    dtype: Any

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        features = inputs.shape[-1]
        hidden = layers.PointwiseConv(
            _POOL_WIDTH, use_bias=False, dtype=self.dtype, name="pool_0"
        )(inputs)
        hidden = layers.GroupNorm(_POOL_GROUPS, 1e-5, self.dtype, name="pool_1")(hidden)
        return layers.PointwiseConv(
            features, use_bias=False, dtype=self.dtype, name="pool_3"
        )(nn.relu(hidden))


class ResidualUnit(nn.Module):
    """Three convolutions added to the input, which a side branch may first correct."""

    features: int
    has_pool: bool
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [B, H, W, features] to the same shape."""
        if self.has_pool:
            pool = _Pool(self.dtype)
            nn.share_scope(self, pool)  # the names are pool_*, not _Pool_0/pool_*
            inputs = inputs + pool(inputs)
        hidden = layers.conv3x3(self.features, "conv_0", self.dtype)(inputs)
        hidden = layers.conv3x3(self.features, "conv_2", self.dtype)(nn.relu(hidden))
        hidden = layers.conv3x3(self.features, "conv_4", self.dtype)(nn.relu(hidden))
        return nn.relu(inputs + hidden)


class Encoder(nn.Module):
    """Image in [0, 1] -> unscaled latents."""

    config: TinyConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """Maps [B, H, W, 3] to [B, h, w, latent_channels]."""
        config, dtype = self.config, self.dtype
        features = config.encoder_block_out_channels[0]
        index = 0
        for stage, num_units in enumerate(config.num_encoder_blocks):
            first = stage == 0
            hidden = layers.conv3x3(
                features, f"layers_{index}", dtype, 1 if first else 2, use_bias=first
            )(hidden)
            index += 1
            for _ in range(num_units):
                has_pool = index in config.encoder_pool_layers
                unit = ResidualUnit(features, has_pool, dtype, name=f"layers_{index}")
                hidden = unit(hidden)
                index += 1
        return layers.conv3x3(config.latent_channels, f"layers_{index}", dtype)(hidden)


class Decoder(nn.Module):
    """Unscaled latents -> image in about [0, 1]."""

    config: TinyConfig
    dtype: Any

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Maps [B, h, w, latent_channels] to [B, H, W, 3]."""
        config, dtype = self.config, self.dtype
        features = config.decoder_block_out_channels[0]
        clamped = _CLAMP * jnp.tanh(latents / _CLAMP)
        hidden = nn.relu(layers.conv3x3(features, "layers_0", dtype)(clamped))
        index = 2  # layer 1 is the ReLU
        last = len(config.num_decoder_blocks) - 1
        for stage, num_units in enumerate(config.num_decoder_blocks):
            for _ in range(num_units):
                has_pool = index in config.decoder_pool_layers
                unit = ResidualUnit(features, has_pool, dtype, name=f"layers_{index}")
                hidden = unit(hidden)
                index += 1
            if stage < last:
                hidden = layers.enlarge(hidden)
                index += 1
                hidden = layers.conv3x3(
                    features, f"layers_{index}", dtype, use_bias=False
                )(hidden)
                index += 1
        return layers.conv3x3(config.out_channels, f"layers_{index}", dtype)(hidden)


class TinyAutoencoder(nn.Module):
    """The autoencoder; use `apply(..., method="encode")` and `method="decode"`.

    Attributes:
      config: see `TinyConfig`.
      dtype: What it computes in; parameters and results are float32.
    """

    config: TinyConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Names the parts as the published tree does."""
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(self, image: Array) -> Moments:
        """Returns scaled latents, (z - shift) * scaling_factor, without a variance.

        Args:
          image: [B, H, W, 3] in [0, 1]; sides are multiples of `config.downsampling`.
        """
        config = self.config
        chex.assert_rank(image, 4)
        step = config.downsampling
        if image.shape[1] % step or image.shape[2] % step:
            raise UserError(
                f"image {image.shape} does not divide into {step}x{step} cells; make "
                f"both sides multiples of {step}"
            )
        latents = self.encoder(image).astype(jnp.float32)
        latents = (latents - config.shift_factor) * config.scaling_factor
        return Moments(latents, None)

    def decode(self, latents: Array, clip: bool = True) -> Array:
        """Returns the image [B, H, W, 3] float32 of scaled latents [B, h, w, C].

        Args:
          latents: as `encode` scales them.
          clip: limit to [0, 1]; switch off to train, as the limit stops gradients.
        """
        config = self.config
        chex.assert_rank(latents, 4)
        chex.assert_axis_dimension(latents, -1, config.latent_channels)
        hidden = latents / config.scaling_factor + config.shift_factor
        image = self.decoder(hidden).astype(jnp.float32)
        return jnp.clip(image, 0.0, 1.0) if clip else image

    def __call__(self, image: Array) -> Array:
        """Returns the clipped round trip of the image."""
        return self.decode(self.encode(image).mean)


def from_state(
    encoder: Mapping[str, np.ndarray], decoder: Mapping[str, np.ndarray]
) -> tuple[TinyConfig, Params]:
    """Maps an original TAESD state to a config and a parameter tree.

    Args:
      encoder, decoder: arrays of any float dtype under the original names, such as
        "1.conv.0.weight", kernels in (out, in, kh, kw) order.

    Returns:
      The config the names and shapes imply, and float32 parameters for it.

    Raises:
      UserError: arrays are missing, left over, or of another shape.
    """
    flat = {}
    for name, array in encoder.items():
        flat["encoder/" + _path(name, offset=0)] = _ours(array)
    for name, array in decoder.items():
        flat["decoder/" + _path(name, offset=-1)] = _ours(array)
    config = _infer_config(flat)
    module = TinyAutoencoder(config)
    side = config.downsampling
    image = jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32)
    wanted = trees.flatten(
        jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    )
    missing, left_over = wanted.keys() - flat.keys(), flat.keys() - wanted.keys()
    if missing or left_over:
        raise UserError(
            f"not a TAESD state: missing {sorted(missing)[:5]}, left over "
            f"{sorted(left_over)[:5]} (decoder layers count from the original's second)"
        )
    for path, leaf in wanted.items():
        if flat[path].shape != leaf.shape:
            raise UserError(
                f"{path} has shape {flat[path].shape}; wanted {leaf.shape} (HWIO)"
            )
    return config, trees.unflatten(flat)


def pair_of_files(directory: str | Path) -> tuple[Path, Path] | None:
    """Returns an encoder's and a decoder's file of original names, if both are there.

    They are a pair by what stands before "encoder" and "decoder" in their names.

    Args:
      directory: looked into; anything but a local directory has none.

    Raises:
      UserError: there are several pairs of different names.
    """
    folder = Path(directory).expanduser()
    pairs: dict[str, tuple[Path, Path]] = {}
    for suffix in _SUFFIXES:
        for encoder in sorted(folder.glob(f"*encoder{suffix}")):
            stem = encoder.name.removesuffix(f"encoder{suffix}")
            decoder = folder / f"{stem}decoder{suffix}"
            if decoder.is_file():
                # One pair in several formats is the same weights.
                pairs.setdefault(stem, (encoder, decoder))
    if len(pairs) > 1:
        listed = ", ".join(f"{one.name} and {two.name}" for one, two in pairs.values())
        raise UserError(
            f"{folder} holds several tiny autoencoders: {listed}; leave one pair "
            "there, or give a directory with one"
        )
    return next(iter(pairs.values()), None)


def read_state(path: Path) -> dict[str, np.ndarray]:
    """Reads one of the files of `pair_of_files`."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    return weights.read(path)


def _path(name: str, offset: int) -> str:
    """Returns our path: "1.conv.0.weight" -> "layers_1/conv_0/kernel" at offset 0."""
    index, *inner, leaf = name.split(".")
    if not index.isdigit():
        raise UserError(f"{name!r} is not an original TAESD name, like '1.conv.0.bias'")
    module = "_".join(inner)
    if leaf == "weight":
        leaf = "scale" if module == "pool_1" else "kernel"
    parts = [f"layers_{int(index) + offset}", module, leaf]
    return "/".join(part for part in parts if part)


def _ours(array: np.ndarray) -> Array:
    array = np.asarray(array, np.float32)
    return jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)


def _infer_config(flat: Mapping[str, Array]) -> TinyConfig:
    """Reads stage lengths, widths and side branches off paths and shapes."""
    kernels: dict[str, dict[int, Array]] = {"encoder": {}, "decoder": {}}
    units: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    pools: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    for path, leaf in flat.items():
        part, layer, *inner = path.split("/")
        index = int(layer.removeprefix("layers_"))
        if inner == ["kernel"]:
            kernels[part][index] = leaf
        elif inner[0].startswith("conv_"):
            units[part].add(index)
        elif inner[0].startswith("pool_"):
            pools[part].add(index)
    for part, found in kernels.items():
        if len(found) < 2:
            raise UserError(
                f"the {part} has {len(found)} convolutions; wanted 2 or more"
            )
    # Units stand between convolutions; the decoder's first convolution opens no gap.
    stages = {
        part: tuple(
            len([i for i in units[part] if low < i < high])
            for low, high in zip(sorted(found), sorted(found)[1:], strict=False)
        )
        for part, found in kernels.items()
    }
    first = {part: found[min(found)].shape for part, found in kernels.items()}
    last = {part: found[max(found)].shape for part, found in kernels.items()}
    return TinyConfig(
        in_channels=first["encoder"][2],
        out_channels=last["decoder"][3],
        encoder_block_out_channels=(first["encoder"][3],) * len(stages["encoder"]),
        decoder_block_out_channels=(first["decoder"][3],) * len(stages["decoder"]),
        latent_channels=last["encoder"][3],
        num_encoder_blocks=stages["encoder"],
        num_decoder_blocks=stages["decoder"],
        encoder_pool_layers=tuple(sorted(pools["encoder"])),
        decoder_pool_layers=tuple(sorted(pools["decoder"])),
    )
