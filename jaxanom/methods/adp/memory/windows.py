"""CLIP features of windows: the class token beside a few patches, as in WinCLIP.

arXiv 2303.14814, section 4.2: for every k x k block of patches the tower is run on the
class token and those patches alone, so that the class token describes the block. The
windows are gathered, not masked: no token is computed that no window reads.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.methods.adp import model
from jaxanom.methods.adp.memory import crops
from jaxanom.models.clip import towers as clip
from jaxanom.types import Array, Params

PATCH = 1
"""Window size that stands for single patches, projected to the joint space."""


class Features(NamedTuple):
    """What CLIP says of B images.

    Attributes:
      whole: [B, K] unit features of the whole image.
      windows: {k: [B, n, n, K] unit} with n = g - k + 1; under 1 the dense patches.
      layers: {layer: [B, g, g, D]} patch tokens of hidden layers, not normalised.
    """

    whole: Array
    windows: dict[int, Array]
    layers: dict[int, Array]


def window_indices(grid: int, size: int) -> np.ndarray:
    """Returns which patches each window holds, [n * n, size * size], rows first."""
    if not 1 <= size <= grid:
        raise UserError(
            f"config.adp.windows has {size}; CLIP's grid has {grid} patches a side"
        )
    count = grid - size + 1
    corner = (np.arange(count)[:, None] * grid + np.arange(count)).reshape(-1, 1)
    inside = (np.arange(size)[:, None] * grid + np.arange(size)).reshape(1, -1)
    return corner + inside


def features(
    towers: model.Towers,
    params: Params,
    image: Array,
    sizes: Sequence[int],
    layers: Sequence[int] = (),
    is_read: Array | None = None,
) -> Features:
    """Runs CLIP's image tower on the whole image and on its windows.

    Args:
      towers, params: see `model.load`.
      image: [B, H, W, 3] in [0, 1], resized to the tower's own size.
      sizes: patches along a window's side; 1 is the dense projection of the last
        layer's patch tokens, which plain CLIP does not align with text.
      layers: hidden layers to return.
      is_read: scalar bool, whether anything reads the windows; where it is false the
        tower does not run on them, and they are zeros.
    """
    tower, variables, grid = towers.clip_image, {"params": params["clip"]}, towers.grid
    tokens = tower.apply(
        variables, crops.resize(image, towers.clip_size), method="embed"
    )
    output = tower.apply(variables, tokens, tuple(layers), method="encode")
    batch = image.shape[0]
    by_size = {}
    for size in sizes:
        if size == PATCH:
            dense = tower.apply(
                variables, output.patch_tokens, method="project_tokens"
            )  # [B, N, K]
            by_size[size] = clip.normalise(dense).reshape(batch, grid, grid, -1)
            continue
        read = partial(_read_windows, towers, variables, tokens, size)
        if is_read is None:
            by_size[size] = read()
        else:
            nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(read))
            by_size[size] = jax.lax.cond(is_read, read, lambda nothing=nothing: nothing)
    return Features(
        whole=clip.normalise(output.image_features),
        windows=by_size,
        layers={
            layer: state[:, 1:].reshape(batch, grid, grid, -1)
            for layer, state in zip(layers, output.hidden_states, strict=True)
        },
    )


def _read_windows(
    towers: model.Towers, variables: Params, tokens: Array, size: int
) -> Array:
    """Returns what CLIP says of all windows of one size, [B, n, n, K] unit."""
    tower, batch, width = towers.clip_image, tokens.shape[0], tokens.shape[-1]
    patches = tokens[:, 1 + window_indices(towers.grid, size)]  # [B, n * n, k * k, D]
    first = jnp.broadcast_to(tokens[:, None, :1], (*patches.shape[:2], 1, width))
    joined = jnp.concatenate([first, patches], axis=2)
    joined = joined.reshape(-1, 1 + size * size, width)
    read = tower.apply(variables, joined, method="encode").image_features
    side = towers.grid - size + 1
    return clip.normalise(read).reshape(batch, side, side, -1)


def flatten(features: Features) -> Array:
    """Joins whole image and windows of every size: [B, W, K], whole image first."""
    parts = [features.whole[:, None]]
    for array in features.windows.values():
        parts.append(array.reshape(array.shape[0], -1, array.shape[-1]))
    return jnp.concatenate(parts, axis=1)


def coverage(mask: np.ndarray, grid: int, sizes: Sequence[int]) -> np.ndarray:
    """Returns how much of each window of `flatten` a mask covers, on the host.

    Args:
      mask: [B, H, W] of 0 and 1.
      grid: g, patches along a side.
      sizes: as `features` got them.

    Returns:
      [B, W] in [0, 1].
    """
    flat = crops.cell_means(mask, grid).reshape(len(mask), -1)
    parts = [flat.mean(1, keepdims=True)]
    parts += [flat[:, window_indices(grid, size)].mean(-1) for size in sizes]
    return np.concatenate(parts, axis=1)
