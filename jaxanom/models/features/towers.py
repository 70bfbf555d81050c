"""Every image tower whose layers serve as features, by name, behind one protocol.

"efficientnet_lite0", "_lite1", "_lite2"   ImageNet, from the Python index (`photos`)
"mobilenet_v2:DIR"                         ImageNet, from a folder of weights
"clip", "clip:NAME"                        a CLIP's image tower, shipped or named
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxanom.errors import UserError
from jaxanom.models import backbones
from jaxanom.models.features import efficientnet_lite, mobilenet_v2
from jaxanom.types import Array, Params

DEFAULT = "efficientnet_lite0"
"""Tower for photographs."""

NAMES = (*efficientnet_lite.VARIANTS, "mobilenet_v2:DIR", "clip", "clip:NAME")


class FeatureTower(NamedTuple):
    """A frozen image network; its weights travel as arguments.

    Attributes:
      name: What records call it.
      params: Weights.
      size: Side of the images it was trained on.
      taps: Names of the layers that `features` can return, in the order of the network.
      default_taps: Those that a memory of patches is best made of.
      features: (params, image [B, H, W, 3] in [0, 1], taps) -> one [B, h, w, C] float32
        per tap. Normalises the image itself; convolutional towers take any H and W.
      pooled: (params, image) -> [B, D] float32, one vector an image.
    """

    name: str
    params: Params
    size: int
    taps: tuple[str, ...]
    default_taps: tuple[str, ...]
    features: Callable[[Params, Array, tuple[str, ...]], tuple[Array, ...]]
    pooled: Callable[[Params, Array], Array]


def check_taps(tower: FeatureTower, taps: Sequence[str], key: str) -> None:
    """Raises UserError, naming the config key, for a layer that a tower lacks."""
    if wrong := [tap for tap in taps if tap not in tower.taps]:
        raise UserError(
            f"config.{key}={tuple(taps)}: {tower.name} has no layers {wrong}; it has "
            f"{', '.join(tower.taps)}"
        )


def load(name: str, dtype: Any = jnp.float32) -> FeatureTower:
    """Loads a tower by its name.

    Args:
      name: See the top of this file.
      dtype: What the network computes in; features are float32.

    Raises:
      UserError: An unknown name, or weights that are missing or damaged.
    """
    kind, _, place = name.partition(":")
    if kind in efficientnet_lite.VARIANTS and not place:
        return _efficientnet_lite(name, dtype)
    if kind == "mobilenet_v2" and place:
        return _mobilenet_v2(name, place, dtype)
    if kind == "clip":
        return _clip(name, place or "embedded", dtype)
    raise UserError(f"feature tower {name!r}; wanted one of {', '.join(NAMES)}")


def _efficientnet_lite(name: str, dtype: Any) -> FeatureTower:
    module, params = efficientnet_lite.load(name)
    module = module.clone(dtype=dtype)
    variant = efficientnet_lite.VARIANTS[name]

    def features(params, image, taps):
        return module.apply({"params": params}, image, tuple(taps))

    def pooled(params, image):
        return module.apply({"params": params}, image, ("pooled",))[0]

    taps = efficientnet_lite.taps(variant)
    return FeatureTower(
        name, params, variant.size, taps, ("p8", "p16"), features, pooled
    )


def _mobilenet_v2(name: str, directory: str, dtype: Any) -> FeatureTower:
    module, params = mobilenet_v2.load(directory)
    module = module.clone(dtype=dtype)

    def features(params, image, taps):
        return module.apply({"params": params}, image, tuple(taps)).layers

    def pooled(params, image):
        return module.apply({"params": params}, image, classify=True).pooled

    taps = tuple(layer.name for layer in mobilenet_v2.graph())
    default = mobilenet_v2.DEFAULT_LAYERS
    return FeatureTower(name, params, 224, taps, default, features, pooled)


def _clip(name: str, directory: str, dtype: Any) -> FeatureTower:
    """CLIP's hidden patch tokens; the shorter side becomes what it was trained on."""
    module, params = backbones.load_image_encoder(directory)
    module = module.clone(dtype=dtype)
    config = module.config
    size, patch = config.image_size, config.patch_size

    def resized(image, height, width):
        shape = (image.shape[0], height, width, 3)
        if image.shape == shape:
            return image
        return jnp.clip(jax.image.resize(image, shape, "cubic"), 0, 1)

    def features(params, image, taps):
        scale = size / min(image.shape[1:3])
        grid = [max(1, round(scale * side / patch)) for side in image.shape[1:3]]
        image = resized(image, *(patch * side for side in grid))
        states = module.apply(
            {"params": params}, image, tuple(int(tap) for tap in taps)
        ).hidden_states
        return tuple(
            state[:, 1:].astype(jnp.float32).reshape(len(image), *grid, state.shape[-1])
            for state in states
        )

    def pooled(params, image):
        output = module.apply({"params": params}, resized(image, size, size))
        projected = output.image_features
        return output.pooled if projected is None else projected

    taps = tuple(str(number) for number in range(config.num_hidden_layers + 1))
    middle = (len(taps) - 1) // 2
    default = tuple(taps[middle : middle + 3])
    return FeatureTower(name, params, size, taps, default, features, pooled)
