"""What the memory sees of an image: groups of a tower's layers, at several scales.

A view is one group of layers at one scale. Its layers are joined as in PatchCore
(`models.features.patches`); views are compared apart, each with its own bank, because
layers that see different things drown each other when they are joined.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.data import catalog
from jaxanom.errors import UserError
from jaxanom.models.features import patches, towers
from jaxanom.types import Array, Params

MULTIPLE = 32
"""Scaled sides are multiples of the coarsest stride."""
SINGLE = "~"
"""Ends a tap that is not averaged over 3 x 3 neighbours."""


class Views(NamedTuple):
    """A tower as several sources of patches.

    Attributes:
      names: What the views are called, such as "p8+p16 1".
      params: Weights of the tower.
      look: (params, image [B, H, W, 3]) -> one [B, h, w, D] a view, unit.
      shapes: (h, w, D) of every view.
    """

    names: tuple[str, ...]
    params: Params
    look: Callable[[Params, Array], tuple[Array, ...]]
    shapes: tuple[tuple[int, int, int], ...]


def make(
    tower: towers.FeatureTower,
    taps: Sequence[str],
    scales: Sequence[float],
    border: int,
    size: tuple[int, int],
) -> Views:
    """Makes the views of a tower.

    Args:
      tower: The network.
      taps: Groups of layers, such as "p8+p16"; empty: one group of the tower's own.
      scales: Factors that the image is resized by.
      border: Pixels of mirrored content around the image, so that patches at its edge
        are not told by the network's own padding; no more than an image has.
      size: (H, W) of the images.

    Raises:
      UserError: A layer that the tower lacks.
    """
    groups = [tap.split("+") for tap in taps] or [list(tower.default_taps)]
    layers = tuple(dict.fromkeys(tap.rstrip(SINGLE) for g in groups for tap in g))
    towers.check_taps(tower, layers, "memory.taps")

    def look(params: Params, image: Array) -> tuple[Array, ...]:
        views = []
        for scale in scales:
            scaled = _scaled(image, scale)
            layer = dict(
                zip(
                    layers,
                    _bordered(tower, params, scaled, layers, border),
                    strict=True,
                )
            )
            views += [join(layer, group) for group in groups]
        return tuple(views)

    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    shapes = jax.eval_shape(look, tower.params, image)
    return Views(
        names=tuple(f"{'+'.join(g)} {scale:g}" for scale in scales for g in groups),
        params=tower.params,
        look=look,
        shapes=tuple(view.shape[1:] for view in shapes),
    )


def join(layers: dict[str, Array], group: Sequence[str]) -> Array:
    """Joins layers on the finest grid: [B, h, w, D] unit, see `patches.joined`.

    Args:
      layers: {layer: [B, h, w, D]}.
      group: Names of layers; one that ends in `SINGLE` is taken patch by patch.
    """
    arrays = {}
    for tap in group:
        array = layers[tap.rstrip(SINGLE)].astype(jnp.float32)
        arrays[tap] = array if tap.endswith(SINGLE) else patches.mean_around(array)
    return patches.concatenated(patches.on_one_grid(arrays))


def _scaled(image: Array, scale: float) -> Array:
    height, width = (
        max(MULTIPLE, MULTIPLE * round(side * scale / MULTIPLE)) if scale != 1 else side
        for side in image.shape[1:3]
    )
    if (height, width) == image.shape[1:3]:
        return image
    shape = (image.shape[0], height, width, image.shape[3])
    return jnp.clip(jax.image.resize(image, shape, "cubic", antialias=True), 0, 1)


def _bordered(
    tower: towers.FeatureTower,
    params: Params,
    image: Array,
    layers: tuple[str, ...],
    border: int,
) -> list[Array]:
    """Features of an image inside a mirrored border, which is cut off again."""
    sides = [min(border, side) for side in image.shape[1:3]]
    margins = ((0, 0), *((side, side) for side in sides), (0, 0))
    padded = jnp.pad(image, margins, mode="symmetric")
    cut = []
    for features in tower.features(params, padded, layers):
        # Cells of the border; networks halve sides, so that these are whole numbers.
        rows, columns = (
            round(side * cells / whole)
            for side, cells, whole in zip(
                sides, features.shape[1:3], padded.shape[1:3], strict=True
            )
        )
        height, width = features.shape[1] - 2 * rows, features.shape[2] - 2 * columns
        cut.append(features[:, rows : rows + height, columns : columns + width])
    return cut


def shots_of(dataset: catalog.Dataset, category: str) -> np.ndarray:
    """Loads the normal training images of a category, [K, H, W, 3] in [0, 1].

    Raises:
      UserError: It has none.
    """
    numbers = catalog.select(dataset, "train", category, anomalous=False)
    if not numbers:
        raise UserError(
            f"category {category!r} has no normal training image, which method "
            f"'memory' needs; the data have {', '.join(dataset.categories)}"
        )
    images = [dataset.load(dataset.records[number])[0] for number in numbers]
    return np.stack(images).astype(np.float32) / np.float32(255)


def copies(
    images: np.ndarray, turns: Sequence[int], mirrors: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lists shots as they are, turned and mirrored: (images of one shape, owners).

    Args:
      images: [K, H, W, 3].
      turns: Quarter turns, counter-clockwise; of images that are not square the odd
        ones have another shape and are left out.
      mirrors: Whether each comes mirrored, too.
    """
    is_square = images.shape[1] == images.shape[2]
    kept = [turn for turn in turns if is_square or turn % 2 == 0]
    sources = [images, images[:, :, ::-1]] if mirrors else [images]
    owners = np.arange(len(images), dtype=np.int32)
    return [
        (np.ascontiguousarray(np.rot90(source, turn, (1, 2))), owners)
        for source in sources
        for turn in kept
    ]


def num_copies(size: tuple[int, int], turns: Sequence[int], mirrors: bool) -> int:
    """Returns how many copies of a shot of (H, W) there are, itself among them."""
    return len(copies(np.zeros((1, *size, 1), np.uint8), turns, mirrors))
