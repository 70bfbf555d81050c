"""Memory of the shots' features: whose they are, and the distance to the nearest.

WinCLIP's reference score (arXiv 2303.14814, section 4.3): (1 - max cos) / 2 to all
remembered features of the same kind. Every entry knows the shot it came from, so that
a shot can be scored as if it had not been seen. The memory needs no text, so any
feature tower can fill it: CLIP's patches and windows, or another tower's layers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.methods.adp.memory import crops, windows
from jaxanom.models.features import towers
from jaxanom.types import Array, Params

PADDING = -2
"""Owner of rows that fill a bank up; never matched."""
NOBODY = -1
"""Shot to leave out where none is."""


class Groups(NamedTuple):
    """Kinds of features and the mixtures of them that channel C2 knows.

    Attributes:
      names: What the kinds are called.
      mixtures: [M, G] weights, rows sum to one; row 0 is the default.
    """

    names: tuple[str, ...]
    mixtures: np.ndarray


def unit(features: Array) -> Array:
    """Scales features [..., D] to length one; zeros stay zeros."""
    features = features.astype(jnp.float32)
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norm, 1e-12)


def separate(features: Mapping[str, Array]) -> dict[str, Array]:
    """Every kind for itself, as WinCLIP keeps them."""
    return {name: unit(array) for name, array in features.items()}


def separate_groups(names: Sequence[str]) -> Groups:
    """The mean of all kinds first, then each alone."""
    count = len(names)
    alone = np.eye(count, dtype=np.float32)
    mean = np.full((1, count), 1 / count, np.float32)
    mixtures = np.concatenate([mean, alone]) if count > 1 else mean
    return Groups(tuple(names), mixtures)


def joined(features: Mapping[str, Array]) -> dict[str, Array]:
    """Layers pooled over 3 x 3 neighbours, put on the finest grid and concatenated.

    The manner of PatchCore (arXiv 2106.08265, section 3.1) with layers of equal weight;
    a patch must then match in all layers at one place. Each layer alone comes along.
    """
    finest = max(array.shape[1] for array in features.values())
    layers = {}
    for name, array in features.items():
        pooled = nn.avg_pool(
            array.astype(jnp.float32), (3, 3), padding="SAME", count_include_pad=False
        )
        shape = (array.shape[0], finest, finest, array.shape[-1])
        layers[name] = unit(jax.image.resize(pooled, shape, "linear"))
    whole = unit(jnp.concatenate(list(layers.values()), axis=-1))
    return {"joined": whole, **(layers if len(layers) > 1 else {})}


def joined_groups(names: Sequence[str]) -> Groups:
    """The concatenation first, then each layer alone."""
    names = ("joined", *(names if len(names) > 1 else ()))
    return Groups(names, np.eye(len(names), dtype=np.float32))


def build(
    features: Mapping[str, Array], owners: np.ndarray, num_slots: int
) -> dict[str, dict[str, Array]]:
    """Makes the banks of one category.

    Args:
      features: {kind: [K, h, w, D] unit} of the shots and their turned copies.
      owners: [K] int, which shot each is.
      num_slots: shots to pad to.

    Returns:
      {kind: {"features": [num_slots * h * w, D], "owners": [num_slots * h * w]}}.
    """
    banks = {}
    for name, array in features.items():
        count, height, width, channels = array.shape
        missing = (num_slots - count) * height * width
        rows = np.asarray(array).reshape(-1, channels)
        owner = np.repeat(np.asarray(owners, np.int32), height * width)
        banks[name] = {
            "features": jnp.asarray(np.pad(rows, ((0, missing), (0, 0)))),
            "owners": jnp.asarray(np.pad(owner, (0, missing), constant_values=PADDING)),
        }
    return banks


def distances(
    features: Array,
    bank: Array,
    owners: Array,
    category_id: Array,
    left_out: Array,
) -> Array:
    """Distance of every patch to its nearest remembered one.

    Args:
      features: [B, h, w, D] unit.
      bank: [T, N, D] unit, one bank a category.
      owners: [T, N] int32.
      category_id: [B] int32.
      left_out: [B] int32, a shot whose entries do not count; `NOBODY` for none.

    Returns:
      [B, h, w] in [0, 1], (1 - max cos) / 2. A row without any entry left has 1.
    """

    def row(inputs):
        patches, category, shot = inputs
        entries, owner = bank[category], owners[category]
        usable = (owner != PADDING) & (owner != shot)
        cosine = patches.reshape(-1, patches.shape[-1]) @ entries.T  # [h * w, N]
        best = jnp.max(jnp.where(usable, cosine, -1.0), axis=1)
        return jnp.clip((1 - best) / 2, 0, 1).reshape(patches.shape[:2])

    # One image at a time: the products of a whole batch with its banks would not fit.
    return jax.lax.map(row, (features, category_id, left_out))


class FeatureTower(NamedTuple):
    """A source of features for the memory.

    Attributes:
      params: weights, or None where CLIP's are read.
      clip_layers: hidden layers of CLIP that it needs.
      groups: see `Groups`.
      features: (params, image [B, H, W, 3], CLIP's features) -> {kind: [B, h, w, D]
        unit}.
      cells: names of the mixtures of `groups`.
    """

    params: Params | None
    clip_layers: tuple[int, ...]
    groups: Groups
    features: Callable[[Params, Array, windows.Features], dict[str, Array]]
    cells: tuple[str, ...]


def from_clip(layers: Sequence[int], sizes: Sequence[int]) -> FeatureTower:
    """CLIP's hidden patch tokens and window features, each kind for itself."""
    window_sizes = [size for size in sizes if size != windows.PATCH]
    names = [f"layer{n}" for n in layers] + [f"window{k}" for k in window_sizes]
    groups = separate_groups(names)

    def features(params, image, clip_features):
        del params, image
        arrays = [clip_features.layers[n] for n in layers]
        arrays += [clip_features.windows[k] for k in window_sizes]
        return separate(dict(zip(names, arrays, strict=True)))

    cells = ("mean", *names) if len(names) > 1 else ("mean",)
    return FeatureTower(None, tuple(layers), groups, features, cells)


def from_network(name: str, layers: Sequence[str], size: int) -> FeatureTower:
    """The layers of an image network, joined in the manner of PatchCore.

    Args:
      name: See `models.features.towers`.
      layers: Names of its layers; empty takes those that suit it.
      size: Side of the images it is given; 0 leaves them as they come.

    Raises:
      UserError: Weights are missing, or a layer is unknown.
    """
    network = towers.load(name)
    layers = tuple(layers) or network.default_taps
    towers.check_taps(network, layers, "adp.feature_layers")
    groups = joined_groups(layers)

    def features(params, image, clip_features):
        del clip_features
        image = crops.resize(image, size) if size else image
        arrays = network.features(params, image, layers)
        return joined(dict(zip(layers, arrays, strict=True)))

    return FeatureTower(network.params, (), groups, features, groups.names)


def feature_tower(
    name: str, layers: Sequence, size: int, sizes: Sequence[int]
) -> FeatureTower:
    """Makes the tower of `config.adp.feature_tower`; "" is the CLIP of the text.

    Raises:
      UserError: layers that do not fit the tower.
    """
    if name:
        return from_network(name, [str(n) for n in layers], size)
    try:
        return from_clip([int(n) for n in layers], sizes)
    except ValueError as error:
        raise UserError(
            f"config.adp.feature_layers={tuple(layers)}: CLIP's layers are numbers; "
            "names are for config.adp.feature_tower"
        ) from error
