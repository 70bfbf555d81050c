"""Memory of the shots' features, and the towers that can fill it.

The memory needs no text, so any feature tower can fill it: CLIP's patches and windows,
or another tower's layers. How far a patch is from it: `models.features.patches`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.methods.adp.memory import crops, windows
from jaxanom.models.features import patches, towers
from jaxanom.types import Array, Params


class Groups(NamedTuple):
    """Kinds of features and the mixtures of them that channel C2 knows.

    Attributes:
      names: What the kinds are called.
      mixtures: [M, G] weights, rows sum to one; row 0 is the default.
    """

    names: tuple[str, ...]
    mixtures: np.ndarray


def separate(features: Mapping[str, Array]) -> dict[str, Array]:
    """Every kind for itself, as WinCLIP keeps them."""
    return {name: patches.unit(array) for name, array in features.items()}


def separate_groups(names: Sequence[str]) -> Groups:
    """The mean of all kinds first, then each alone."""
    count = len(names)
    alone = np.eye(count, dtype=np.float32)
    mean = np.full((1, count), 1 / count, np.float32)
    mixtures = np.concatenate([mean, alone]) if count > 1 else mean
    return Groups(tuple(names), mixtures)


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
            "owners": jnp.asarray(
                np.pad(owner, (0, missing), constant_values=patches.PADDING)
            ),
        }
    return banks


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
        return patches.joined(dict(zip(layers, arrays, strict=True)))

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
