"""A small supervised U-Net: image -> normal and defect logits of every pixel."""

import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxanom.errors import UserError
from jaxanom.models.latent import layers
from jaxanom.types import Array

_MAX_GROUPS = 8
_MAX_WIDENING = 8
_EPSILON = 1e-5


class Segmenter(nn.Module):
    """U-Net in the shape of DRAEM's discriminative network (arXiv 2108.07610).

    Two 3x3 convolutions a level, max-pooling down, bilinear resizing up, channels
    doubling from `width` to eight times that. DRAEM itself is width 64, depth 5.

    Group normalisation stands where DRAEM has batch normalisation: its statistics
    belong to one image, so a prediction does not depend on the batch it came in nor on
    padding rows, nothing is averaged across devices, and no running state is kept.

    Attributes:
      width: Channels of the first level.
      depth: How often the resolution is halved; H and W are multiples of 2**depth.
      dtype: What convolutions compute in; norms reduce in float32, weights stay so.
    """

    width: int
    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Returns logits [B, H, W, 2] float32, channel 1 = defect.

        Args:
          image: [B, H, W, 3] in [0, 1].
        """
        chex.assert_shape(image, (None, None, None, 3))
        check_size(image.shape[1:3], self.depth)
        channels = [
            self.width * min(2**level, _MAX_WIDENING) for level in range(self.depth + 1)
        ]
        x = (2 * image - 1).astype(self.dtype)
        skips = []
        for level, width in enumerate(channels):
            if level:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))  # [B, H/2, W/2, C]
            x = self._convolve(x, width, f"down_{level}_conv1")
            x = self._convolve(x, width, f"down_{level}_conv2")
            skips.append(x)
        for level in reversed(range(self.depth)):
            skip, width = skips[level], channels[level]
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "bilinear")
            x = self._convolve(x, width, f"up_{level}_conv0")
            x = jnp.concatenate([x, skip], axis=-1)
            x = self._convolve(x, width, f"up_{level}_conv1")
            x = self._convolve(x, width, f"up_{level}_conv2")
        # [B, H, W, 2]
        return layers.conv3x3(2, "logits", jnp.float32)(x.astype(jnp.float32))

    def _convolve(self, x: Array, width: int, name: str) -> Array:
        x = layers.conv3x3(width, name, self.dtype, use_bias=False)(x)
        groups = math.gcd(width, _MAX_GROUPS)
        norm = layers.GroupNorm(groups, _EPSILON, self.dtype, name=f"{name}_norm")
        return nn.relu(norm(x))


def check_size(image_size: tuple[int, int], depth: int) -> None:
    """Raises UserError unless (H, W) can be halved `depth` times."""
    if any(side % 2**depth for side in image_size):
        raise UserError(
            f"image_size={tuple(image_size)} is not a multiple of 2**depth="
            f"{2**depth}; set config.data.image_size or config.detector.depth"
        )
