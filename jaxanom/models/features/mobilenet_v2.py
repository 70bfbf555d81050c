"""MobileNetV2 (arXiv 1801.04381) as a feature tower, batch norm folded in.

Layers are named in the order of the published 8-bit graph: "L00" the stem, three
convolutions a block (two in the first), "A00" ... the sums of the blocks with a
shortcut, "L51" the last convolution and "L52" the classifier.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.models.backbones import Tower
from jaxanom.models.ops.depthwise import DepthwiseConv
from jaxanom.types import Array, Params

WEIGHTS = "mobilenet_v2_1.0_224_uint8.npz"
DEFAULT_LAYERS = ("A02", "A07")
"""Strides 8 and 16: what a memory of patches is best made of."""
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and first stride of every stage (table 2)."""


class Layer(NamedTuple):
    """One convolution, or the sum that closes a block.

    Attributes:
      name: "L07" or "A02".
      features: Channels that come out; 0 for a sum.
      size: Side of the kernel.
      stride: Step between outputs.
      depthwise: Whether every channel is convolved for itself.
      activation: Whether values are clipped to [0, 6].
      adds: Name of what a sum adds, "" for a convolution.
    """

    name: str
    features: int = 0
    size: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: bool = True
    adds: str = ""


def graph() -> tuple[Layer, ...]:
    """Lists the layers up to "L51" in order."""
    layers = [Layer("L00", 32, 3, 2)]
    num_convolutions, num_sums, channels = 1, 0, 32
    for expansion, features, blocks, first_stride in STAGES:
        for block in range(blocks):
            entry = layers[-1].name
            stride = first_stride if block == 0 else 1
            wide = channels * expansion
            parts = [(wide, 1, 1, False, True)] if expansion > 1 else []
            parts += [(wide, 3, stride, True, True), (features, 1, 1, False, False)]
            for part in parts:
                layers.append(Layer(f"L{num_convolutions:02d}", *part))
                num_convolutions += 1
            if stride == 1 and channels == features:
                layers.append(Layer(f"A{num_sums:02d}", adds=entry))
                num_sums += 1
            channels = features
    return (*layers, Layer(f"L{num_convolutions:02d}", 1280))


class Output(NamedTuple):
    """What the tower says of B images.

    Attributes:
      layers: One [B, h, w, C] for each of `return_layers`.
      pooled: [B, 1280], None unless `classify`.
      logits: [B, 1001], class 0 is the background; None unless `classify`.
    """

    layers: tuple[Array, ...]
    pooled: Array | None
    logits: Array | None


class MobileNetV2(nn.Module):
    """Images in [0, 1] of any size to features of any layers.

    Layers beyond the last wanted one are not computed.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Array, return_layers: tuple[str, ...] = (), classify: bool = False
    ) -> Output:
        """Encodes images [B, H, W, 3].

        Args:
          image: Float in [0, 1].
          return_layers: Names, see `graph`.
          classify: Runs to the end, for `pooled` and `logits`.

        Raises:
          UserError: a layer that does not exist.
        """
        check_layers(return_layers)
        hidden = (2 * image - 1).astype(self.dtype)
        outputs = {}
        for layer in graph():
            if not classify and set(return_layers) <= outputs.keys():
                break
            if layer.adds:
                hidden = hidden + outputs[layer.adds]
            else:
                hidden = self._convolve(layer, hidden)
            outputs[layer.name] = hidden
        layers = tuple(outputs[name].astype(jnp.float32) for name in return_layers)
        if not classify:
            return Output(layers, None, None)
        pooled = jnp.mean(hidden.astype(jnp.float32), axis=(1, 2))
        head = Layer("L52", 1001, activation=False)
        logits = self._convolve(head, pooled[:, None, None])[:, 0, 0]
        return Output(layers, pooled, logits)

    def _convolve(self, layer: Layer, hidden: Array) -> Array:
        if layer.depthwise:
            convolution = DepthwiseConv(
                layer.size, layer.stride, dtype=self.dtype, name=layer.name
            )
        else:
            convolution = nn.Conv(
                layer.features,
                (layer.size, layer.size),
                strides=(layer.stride, layer.stride),
                padding="SAME",
                dtype=self.dtype,
                name=layer.name,
            )
        hidden = convolution(hidden)
        return nn.relu6(hidden) if layer.activation else hidden


def check_layers(names: Sequence[str]) -> None:
    """Raises UserError for a layer that does not exist."""
    known = [layer.name for layer in graph()]
    if wrong := [name for name in names if name not in known]:
        raise UserError(
            f"MobileNetV2 has no layers {wrong}; blocks end in {known[3]}, ..., "
            f"{known[-2]}, sums are A00 to A09"
        )


def load(directory: str | Path) -> Tower:
    """Loads the published 8-bit weights, dequantised: (codes - zero) * scale.

    Raises:
      UserError: the file is missing, is damaged or holds other layers.
    """
    path = Path(directory).expanduser() / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{path} is missing; the feature tower mobilenet_v2:DIR wants a folder "
            "with the published MobileNetV2 weights"
        )
    names = [layer.name for layer in graph() if not layer.adds] + ["L52"]
    try:
        with zipfile.ZipFile(path), np.load(path) as archive:
            stored = dict(archive)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is cut off, damaged or no NumPy archive; wanted the published "
            "MobileNetV2 weights: fetch the file again"
        ) from error
    present = sorted({name.split(".")[0] for name in stored})
    if present != sorted(names):
        raise UserError(f"{path} holds layers {present}; wanted {names}")
    params: Params = {}
    for name in names:
        codes = stored[f"{name}.codes"].astype(np.int32) - stored[f"{name}.zero"]
        kernel = (codes * stored[f"{name}.scale"]).astype(np.float32)
        bias = jnp.asarray(stored[f"{name}.bias"], jnp.float32)
        params[name] = {"kernel": jnp.asarray(kernel), "bias": bias}
    return Tower(MobileNetV2(), params)
