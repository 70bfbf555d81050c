"""From text embeddings and patch tokens to maps, and to one number per image.

A softmax over a pair (normal, abnormal) is the sigmoid of the difference of its two
logits, here called the margin; upsampling is linear, so it may follow the difference.
"""

from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.models.clip import towers
from jaxanom.models.ops import attention
from jaxanom.types import Array


class CrossModelAttention(nn.Module):
    """Residual cross-model attention: text embeddings look at an image's patches.

    Per layer l: S = normalise(F_l A_l); T' = normalise(attention(T W + b, S, S) + T).
    Keys and values are S itself, W is shared by the layers, there is no projection
    after the heads, and logits scale by D^-1/2 of the whole width, not of a head.

    Attributes:
      num_layers: How many layers of patch tokens come in.
      num_heads: Heads of the attention.
      width: D, the text embeddings'.
    """

    num_layers: int
    num_heads: int
    width: int

    @nn.compact
    def __call__(self, text: Array, patch_tokens: Array) -> tuple[Array, Array]:
        """Adapts text to every layer.

        Args:
          text: [N, M, D], vectors of length one.
          patch_tokens: [N, S, L, V], S layers of L patches.

        Returns:
          (adapted text [N, S, M, D], patches in the joint space [N, S, L, D]); all
          vectors of length one.
        """
        num_images, num_layers, _, width_in = patch_tokens.shape
        chex.assert_shape(text, (num_images, None, self.width))
        kernel = self.param(
            "projections",
            nn.initializers.normal(0.02),
            (self.num_layers, width_in, self.width),
        )
        dense = jnp.einsum("nslv,svd->nsld", patch_tokens, kernel)
        dense = towers.normalise(dense.astype(jnp.float32))
        # dot_product scales by the head's width; this makes it the whole width's.
        query = nn.Dense(self.width, name="query")(text) * self.num_heads**-0.5
        query = jnp.repeat(query[:, None], num_layers, axis=1)  # [N, S, M, D]

        def heads(x: Array) -> Array:
            return x.reshape(num_images * num_layers, x.shape[2], self.num_heads, -1)

        mixed = attention.dot_product(heads(query), heads(dense), heads(dense))
        return towers.normalise(mixed.reshape(query.shape) + text[:, None]), dense


class Fuse(nn.Module):
    """Patch tokens of all layers -> one vector, by attention over the patches."""

    hidden: int
    width: int

    @nn.compact
    def __call__(self, patch_tokens: Array) -> Array:
        """[N, S, L, V] -> [N, D]."""
        num_images, _, num_patches, _ = patch_tokens.shape
        joined = jnp.moveaxis(patch_tokens, 1, 2).reshape(num_images, num_patches, -1)
        hidden = nn.Dense(self.hidden, name="project")(joined)  # [N, L, hidden]
        weights = jax.nn.softmax(nn.Dense(1, name="weigh")(hidden), axis=1)
        return nn.Dense(self.width, name="out")(jnp.sum(weights * hidden, axis=1))


def pixel_logits(dense: Array, text: Array, log_temperature: Array) -> Array:
    """Logits of every text at every patch, as the released code computes them.

    Args:
      dense: [N, S, L, D].
      text: [N, S, M, D], adapted.
      log_temperature: scalar.

    Returns:
      [N, S, M, L].
    """
    return jnp.exp(log_temperature) * jnp.einsum("nsld,nsmd->nsml", dense, text)


def pixel_margins(dense: Array, text: Array, log_temperature: Array) -> Array:
    """Abnormal minus normal logit of every pair at every patch, [N, S, M / 2, L].

    Half the products of `pixel_logits`, of which it is the difference: the first M / 2
    texts are the normal ones. Arguments as there.
    """
    normal, abnormal = jnp.split(text, 2, axis=2)
    return pixel_logits(dense, abnormal - normal, log_temperature)


def upsample(grid: Array, size: tuple[int, int]) -> Array:
    """Bilinear upsampling [..., h, w] -> [..., H, W], corners on corners.

    Two small matrix products with fixed matrices, A X B^T.
    """
    rows, columns = (
        bilinear_matrix(a, b) for a, b in zip(grid.shape[-2:], size, strict=True)
    )
    return jnp.einsum("Hh,...hw,Ww->...HW", rows, grid, columns)


def bilinear_matrix(size_from: int, size_to: int) -> np.ndarray:
    """Returns [size_to, size_from]: linear interpolation, end points on end points."""
    if size_from == 1:
        return np.ones((size_to, 1), np.float32)
    place = np.linspace(0, size_from - 1, size_to)[:, None]
    distance = np.abs(place - np.arange(size_from))
    return np.maximum(1 - distance, 0).astype(np.float32)


def image_logits(text: Array, feature: Array, log_temperature: Array) -> Array:
    """exp(t) cos(text, feature).

    Args:
      text: [..., M, D], vectors of length one.
      feature: [..., D], any length.
      log_temperature: scalar, t.

    Returns:
      [..., M].
    """
    feature = towers.normalise(feature)
    return jnp.exp(log_temperature) * jnp.einsum("...md,...d->...m", text, feature)


def square(patches: Array, grid: tuple[int, int]) -> Array:
    """Returns [..., L] as [..., h, w]."""
    return patches.reshape(*patches.shape[:-1], *grid)


def grid_of(image_size: Sequence[int], patch_size: int) -> tuple[int, int]:
    """Returns the patch grid of an image.

    Raises:
      UserError: The image does not divide into patches.
    """
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise UserError(
            f"images of {height}x{width} do not divide into patches of {patch_size}; "
            "set config.data.image_size to a multiple"
        )
    return height // patch_size, width // patch_size
