"""Convolution of each channel with a kernel of its own, in the form that suits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.models.ops import attention
from jaxanom.types import Array


class DepthwiseConv(nn.Module):
    """A depthwise convolution with "SAME" padding, on the parameters of `nn.Conv`.

    On a CPU it is a sum of shifted images: XLA makes one pass over memory of the sum,
    while its grouped convolution has no fast path there and takes six times as long.
    Elsewhere it is the library's grouped convolution.

    Attributes:
      size: Side of the kernel.
      stride: Step between outputs along both axes.
      dtype: What it computes in and returns.
    """

    size: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """Convolves [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), C]."""
        channels = hidden.shape[-1]
        shape = (self.size, self.size, 1, channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        kernel, hidden = kernel.astype(self.dtype), hidden.astype(self.dtype)
        form = shifted_sum if attention.fusing_platform() == "cpu" else grouped
        return form(hidden, kernel, self.stride) + bias.astype(self.dtype)


def grouped(hidden: Array, kernel: Array, stride: int) -> Array:
    """The library's convolution with as many groups as channels.

    Args:
      hidden: [B, H, W, C].
      kernel: [k, k, 1, C].
      stride: Step between outputs along both axes.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C].
    """
    return jax.lax.conv_general_dilated(
        hidden,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=hidden.shape[-1],
    )


def shifted_sum(hidden: Array, kernel: Array, stride: int) -> Array:
    """The same as `grouped`, as a sum of shifted images."""
    size = kernel.shape[0]
    spans, margins = [], [(0, 0)]
    for extent in hidden.shape[1:3]:
        spans.append((-(-extent // stride) - 1) * stride + 1)
        margin = max(spans[-1] - 1 + size - extent, 0)
        margins.append((margin // 2, margin - margin // 2))
    padded = jnp.pad(hidden, (*margins, (0, 0)))
    total = 0.0
    for row, column in np.ndindex(size, size):
        rows = slice(row, row + spans[0], stride)
        columns = slice(column, column + spans[1], stride)
        total = total + kernel[row, column, 0] * padded[:, rows, columns]
    return total
