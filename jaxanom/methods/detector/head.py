"""A small head over the layers of a frozen tower: defect log-odds of every place.

All layers are brought to the grid of the finest, side by side (hypercolumns,
arXiv 1411.5752), and read by one hidden layer. As a linear map and an interpolation
commute, each layer is projected on its own grid first; and as places are read one by
one, a few of them are enough to learn from.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxanom.types import Array


class Head(nn.Module):
    """Standardises layers, projects their sum to `width` channels and to one.

    Attributes:
      channels: C of each layer.
      width: Hidden channels.
      coarse: Cells of the finest layer along a side of one that is read.
      dtype: What products compute in.
    """

    channels: tuple[int, ...]
    width: int
    coarse: int = 1
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the parameters; means and deviations are measured, not trained."""
        self.means = [
            self.param(f"mean_{n}", nn.initializers.zeros, (count,))
            for n, count in enumerate(self.channels)
        ]
        self.stds = [
            self.param(f"std_{n}", nn.initializers.ones, (count,))
            for n, count in enumerate(self.channels)
        ]
        # Together they are one matrix from all channels.
        start = nn.initializers.variance_scaling(
            1 / len(self.channels), "fan_in", "truncated_normal"
        )
        self.projections = [
            nn.Dense(self.width, n == 0, self.dtype, kernel_init=start)
            for n in range(len(self.channels))
        ]
        self.logit = nn.Dense(1, dtype=jnp.float32)

    def __call__(self, layers: Sequence[Array]) -> Array:
        """Reads every place: layers [B, h_i, w_i, C_i] -> log-odds [B, h, w]."""
        height, width = self.grid(layers)

        def resized(projected: Array) -> Array:
            shape = (projected.shape[0], height, width, self.width)
            return jax.image.resize(projected, shape, "linear", antialias=False)

        return self._read([resized(one) for one in self._projected(layers)])

    def grid(self, layers: Sequence[Array]) -> tuple[int, int]:
        """Returns (h, w) of what is read: the first layer's, made coarser."""
        return tuple(side // self.coarse for side in layers[0].shape[1:3])

    def at(self, layers: Sequence[Array], places: Array) -> Array:
        """Reads some places.

        Args:
          layers: [B, h_i, w_i, C_i].
          places: [B, K] int32, row-major numbers of cells of `grid`.

        Returns:
          Log-odds [B, K].
        """
        height, width = self.grid(layers)
        sampled = []
        for layer in layers:
            scale = layer.shape[1] / height, layer.shape[2] / width
            rows = (places // width + 0.5) * scale[0] - 0.5
            columns = (places % width + 0.5) * scale[1] - 0.5
            sampled.append(jax.vmap(bilinear)(layer, rows, columns))
        return self._read(self._projected(sampled))

    def _projected(self, layers: Sequence[Array]) -> list[Array]:
        return [
            project(((layer.astype(jnp.float32) - mean) / std).astype(self.dtype))
            for layer, mean, std, project in zip(
                layers, self.means, self.stds, self.projections, strict=True
            )
        ]

    def _read(self, parts: Sequence[Array]) -> Array:
        return self.logit(nn.gelu(sum(parts)).astype(jnp.float32))[..., 0]


def bilinear(layer: Array, rows: Array, columns: Array) -> Array:
    """Reads a layer [h, w, C] between its cells, [K, C]; beyond the border its edge.

    Args:
      layer: Values at the cells' centres.
      rows, columns: [K] float, 0 at the centre of the first cell.
    """
    height, width = layer.shape[:2]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    top, left = jnp.floor(rows).astype(int), jnp.floor(columns).astype(int)
    below, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    down, across = (rows - top)[:, None], (columns - left)[:, None]
    upper = (1 - across) * layer[top, left] + across * layer[top, right]
    lower = (1 - across) * layer[below, left] + across * layer[below, right]
    return (1 - down) * upper + down * lower
