"""Tiny distilled autoencoders (the TAESD family): image in [0, 1] <-> latents.

The networks of github.com/madebyollin/taesd, MIT. Parameter names are those of
diffusers' `AutoencoderTiny`, whose decoder numbers its layers one lower than the
original does (there the soft clamp is layer 0). Unlike `AutoencoderTiny`, which maps
[-1, 1] to and fro around them, the networks themselves speak [0, 1], and so do we.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.models.checkpoints import configs
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.latent import layers, vae
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


def _units(
    hidden: Array, names: Iterator[str], count: int, pools: tuple[int, ...], dtype: Any
) -> Array:
    for name in itertools.islice(names, count):
        has_pool = int(name.removeprefix("layers_")) in pools
        hidden = ResidualUnit(hidden.shape[-1], has_pool, dtype, name=name)(hidden)
    return hidden


class Encoder(nn.Module):
    """Image in [0, 1] -> unscaled latents."""

    config: TinyConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """Maps [B, H, W, 3] to [B, h, w, latent_channels]."""
        config, dtype = self.config, self.dtype
        features = config.encoder_block_out_channels[0]
        names = (f"layers_{index}" for index in itertools.count())
        stride = 1
        for num_units in config.num_encoder_blocks:
            hidden = layers.conv3x3(
                features, next(names), dtype, stride, use_bias=stride == 1
            )(hidden)
            hidden = _units(hidden, names, num_units, config.encoder_pool_layers, dtype)
            stride = 2
        return layers.conv3x3(config.latent_channels, next(names), dtype)(hidden)


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
        names = (f"layers_{index}" for index in itertools.count(2))  # 1 is the ReLU
        for stage, num_units in enumerate(config.num_decoder_blocks):
            if stage:
                hidden = layers.enlarge(hidden)
                next(names)  # the enlargement's
                conv = layers.conv3x3(features, next(names), dtype, use_bias=False)
                hidden = conv(hidden)
            hidden = _units(hidden, names, num_units, config.decoder_pool_layers, dtype)
        return layers.conv3x3(config.out_channels, next(names), dtype)(hidden)


class TinyAutoencoder(vae.Autoencoder):
    """The tiny autoencoder; see `vae.Autoencoder` and `TinyConfig`."""

    def setup(self):
        """Names the parts as the published tree does."""
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def moments(self, image: Array) -> tuple[Array, None]:
        """Returns unscaled latents float32, which have no variance."""
        return self.encoder(image).astype(jnp.float32), None

    def picture(self, latents: Array) -> Array:
        """Returns the image of unscaled latents, float32, about [0, 1]."""
        return self.decoder(latents).astype(jnp.float32)


def from_state(
    encoder: Mapping[str, np.ndarray], decoder: Mapping[str, np.ndarray]
) -> tuple[TinyConfig, Params]:
    """Maps an original TAESD state to a config and a parameter tree.

    Args:
      encoder, decoder: Arrays of any float dtype under the original names, such as
        "1.conv.0.weight", kernels in (out, in, kh, kw) order.

    Returns:
      The config the names and shapes imply, and float32 parameters for it.

    Raises:
      UserError: arrays are missing, left over, or of another shape.
    """
    flat = {}
    for part, state, offset in (("encoder", encoder, 0), ("decoder", decoder, -1)):
        for name, array in state.items():
            flat[f"{part}/{_path(name, offset)}"] = _ours(array)
    config = _infer_config(flat)
    side = config.downsampling
    image = jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32)
    init = TinyAutoencoder(config).init
    shapes = jax.eval_shape(init, jax.random.key(0), image)["params"]
    params = trees.unflatten(flat)
    trees.check_same_shapes(params, shapes, "the TAESD state")
    return config, params


def pair_of_files(directory: str | Path) -> tuple[Path, Path] | None:
    """Returns an encoder's and a decoder's file of original names, if both are there.

    They are a pair by what stands before "encoder" and "decoder" in their names.

    Args:
      directory: Where to look; anything but a local directory has none.

    Raises:
      UserError: there are several pairs of different names.
    """
    folder, pairs = Path(directory).expanduser(), {}
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
    fields: dict[str, Any] = {}
    ends = {}
    for part in ("encoder", "decoder"):
        kernels: dict[int, tuple[int, ...]] = {}
        units, pools = set(), set()
        for path, leaf in flat.items():
            side, layer, *inner = path.split("/")
            index = int(layer.removeprefix("layers_"))
            if side != part:
                continue
            if inner == ["kernel"]:
                kernels[index] = leaf.shape
            elif inner[0].startswith("conv_"):
                units.add(index)
            elif inner[0].startswith("pool_"):
                pools.add(index)
        if len(kernels) < 2:
            raise UserError(
                f"the {part} has {len(kernels)} convolutions; wanted 2 or more"
            )
        # Units stand between convolutions.
        stages = tuple(
            len([i for i in units if low < i < high])
            for low, high in itertools.pairwise(sorted(kernels))
        )
        ends[part] = kernels[min(kernels)], kernels[max(kernels)]
        fields[f"{part}_block_out_channels"] = (ends[part][0][3],) * len(stages)
        fields[f"num_{part}_blocks"] = stages
        fields[f"{part}_pool_layers"] = tuple(sorted(pools))
    return TinyConfig(
        in_channels=ends["encoder"][0][2],
        out_channels=ends["decoder"][1][3],
        latent_channels=ends["encoder"][1][3],
        **fields,
    )
