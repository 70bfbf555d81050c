"""What channel C2 remembers: CLIP's own patches and windows, or another tower's layers.

The memory needs no text, so any feature tower can fill it; a folder with MobileNetV2
weights (`models/mobilenet_v2.py`) is one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxanom.errors import UserError
from jaxanom.methods.adp import bank, crops, windows
from jaxanom.models.features import mobilenet_v2
from jaxanom.types import Array, Params


class FeatureTower(NamedTuple):
    """A source of features for the memory.

    Attributes:
      params: weights, or None where CLIP's are read.
      clip_layers: hidden layers of CLIP that it needs.
      groups: see `bank.Groups`.
      features: (params, image [B, H, W, 3], CLIP's features) -> {kind: [B, h, w, D]
        unit}.
      cells: names of the mixtures of `groups`.
    """

    params: Params | None
    clip_layers: tuple[int, ...]
    groups: bank.Groups
    features: Callable[[Params, Array, windows.Features], dict[str, Array]]
    cells: tuple[str, ...]


def from_clip(layers: Sequence[int], sizes: Sequence[int]) -> FeatureTower:
    """CLIP's hidden patch tokens and window features, each kind for itself."""
    window_sizes = [size for size in sizes if size != windows.PATCH]
    names = [f"layer{n}" for n in layers] + [f"window{k}" for k in window_sizes]
    groups = bank.separate_groups(names)

    def features(params, image, found):
        del params, image
        arrays = [found.layers[n] for n in layers]
        arrays += [found.windows[k] for k in window_sizes]
        return bank.separate(dict(zip(names, arrays, strict=True)))

    cells = ("mean", *names) if len(names) > 1 else ("mean",)
    return FeatureTower(None, tuple(layers), groups, features, cells)


def from_mobilenet(directory: str, layers: Sequence[str], size: int) -> FeatureTower:
    """MobileNetV2's layers, joined in the manner of PatchCore.

    Args:
      directory: of the published weights.
      layers: names such as "A02"; see `mobilenet_v2.MobileNetV2`.
      size: side of the images it is given; 0 leaves them as they come.

    Raises:
      UserError: no weights there, or an unknown layer.
    """
    tower = mobilenet_v2.load(directory)
    mobilenet_v2.check_layers(layers)
    groups = bank.joined_groups(list(layers))

    def features(params, image, found):
        del found
        image = crops.resize(image, size) if size else image
        kept = tower.module.apply({"params": params}, image, tuple(layers))
        return bank.joined(dict(zip(layers, kept.layers, strict=True)))

    return FeatureTower(tower.params, (), groups, features, groups.names)


def make(directory: str, layers: Sequence, size: int, sizes: Sequence[int]):
    """Makes the tower of `config.adp.feature_tower`; "" is CLIP.

    Raises:
      UserError: layers that do not fit the tower.
    """
    if directory:
        return from_mobilenet(directory, [str(n) for n in layers], size)
    try:
        return from_clip([int(n) for n in layers], sizes)
    except ValueError as error:
        raise UserError(
            f"config.adp.feature_layers={tuple(layers)}: CLIP's layers are numbers; "
            "names are for config.adp.feature_tower"
        ) from error
