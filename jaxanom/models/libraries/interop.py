"""The Flax models of diffusers and transformers, in and out, and in place of ours.

Parameter trees are the same here and there, so weights go over as they are:
`from_flax` and `to_flax` carry a model with its parameters across, `adapt` has the
library's network compute behind our interface (`config.model.implementation`).

Both libraries have dropped these classes; the versions that still have them are those
of the extra `hf`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.models.clip import towers
from jaxanom.models.latent import unet, vae
from jaxanom.models.libraries import adapters
from jaxanom.models.libraries.classes import KEY
from jaxanom.types import Params

_ADAPTED = {
    unet.UNet: adapters.UNet,
    vae.AutoencoderKL: adapters.AutoencoderKL,
    towers.TextTower: adapters.TextTower,
    towers.ImageTower: adapters.ImageTower,
    towers.CLIP: adapters.CLIP,
}
_FIELDS = ("config", "dtype", "projection", "remat")


def adapt(module: nn.Module) -> nn.Module:
    """Returns the library's network with the interface and parameter tree of ours.

    Args:
      module: `unet.UNet`, `vae.AutoencoderKL`, `clip.TextTower`, `clip.ImageTower` or
        `clip.CLIP`.

    Raises:
      UserError: the extra `hf` is missing, or the library has no such network.
    """
    if type(module) not in _ADAPTED:
        raise UserError(
            f"{KEY}='hf_flax': the libraries have no Flax form of "
            f"{type(module).__name__}; set {KEY}='ours'"
        )
    fields = {k: getattr(module, k) for k in _FIELDS if hasattr(module, k)}
    adapted = _ADAPTED[type(module)](**fields)
    adapted.library()  # what it cannot do is refused here, not while tracing
    return adapted


def from_flax(model: Any, params: Params | None = None) -> tuple[nn.Module, Params]:
    """Carries a Flax model of the libraries into ours.

    Args:
      model: a FlaxUNet2DConditionModel, FlaxAutoencoderKL, FlaxCLIPModel,
        FlaxCLIPTextModel, FlaxCLIPTextModelWithProjection or FlaxCLIPVisionModel.
      params: its parameters; None takes `model.params`, which only transformers' have.

    Returns:
      (our module, nested dict of NumPy arrays). Of the UNet, ours has PyTorch's
      constants, not those of the library's class.

    Raises:
      UserError: another class, no parameters, a config that ours cannot honour, or
        parameters of other shapes than the config's.
    """
    name = type(model).__name__
    if name not in _OURS:
        raise UserError(f"{name} is none of the Flax models {sorted(_OURS)}")
    if params is None:
        params = getattr(model, "params", None)
    if params is None:
        raise UserError(f"a {name} does not hold its parameters; pass `params`")
    config = model.config
    module = _OURS[name](config.to_dict() if hasattr(config, "to_dict") else config)
    host = jax.tree.map(np.asarray, _plain(params))
    trees.check_same_shapes(host, _shapes(module), f"the {name}")
    return module, host


def to_flax(module: nn.Module, params: Params) -> tuple[Any, Params]:
    """Carries one of our towers into the library's class.

    Args:
      module: as for `adapt`.
      params: its parameters; of a whole CLIP's, a single tower takes its part.

    Returns:
      (model, parameters), as the library's own loading returns them: `model.
      save_pretrained(directory, params=parameters)` writes both. The UNet has the
      library's constants.

    Raises:
      UserError: as for `adapt`; parameters of other shapes than the module's.
    """
    model = adapt(module).library_model()
    shapes = _shapes(module)
    part = {name: params[name] for name in shapes if name in params}
    trees.check_same_shapes(part, shapes, f"the parameters for {type(model).__name__}")
    return model, part


def _clip_text(projection: bool) -> Any:
    return lambda config: towers.TextTower(
        towers.TextConfig.from_dict(config), projection=projection
    )


_OURS = {
    "FlaxUNet2DConditionModel": lambda config: unet.UNet(
        unet.UNetConfig.from_dict(config)
    ),
    "FlaxAutoencoderKL": lambda config: vae.AutoencoderKL(
        vae.VaeConfig.from_dict(config)
    ),
    "FlaxCLIPModel": lambda config: towers.CLIP(towers.ClipConfig.from_dict(config)),
    "FlaxCLIPTextModel": _clip_text(projection=False),
    "FlaxCLIPTextModelWithProjection": _clip_text(projection=True),
    "FlaxCLIPVisionModel": lambda config: towers.ImageTower(
        towers.VisionConfig.from_dict(config), projection=False
    ),
}


def _plain(tree: Any) -> Any:
    """Returns nested dicts for any nested mapping, flax's frozen ones included."""
    if isinstance(tree, Mapping):
        return {name: _plain(value) for name, value in tree.items()}
    return tree


def _shapes(module: nn.Module) -> Params:
    """Returns the parameter tree of one of our towers as shapes."""
    config = module.config
    if isinstance(module, unet.UNet):
        side = 2 ** (config.num_blocks - 1)
        example = (
            jnp.zeros((1, side, side, config.in_channels)),
            jnp.zeros((1,), jnp.int32),
            jnp.zeros((1, 1, config.cross_attention_dim)),
        )
    elif isinstance(module, vae.AutoencoderKL):
        side = config.downsampling
        example = (jnp.zeros((1, side, side, config.in_channels)),)
    else:
        ids = jnp.zeros((1, 1), jnp.int32)
        vision = getattr(config, "vision_config", config)
        side = getattr(vision, "image_size", 0)
        image = jnp.zeros((1, side, side, 3))
        example = {
            towers.TextTower: (ids,),
            towers.ImageTower: (image,),
            towers.CLIP: (ids, image),
        }[type(module)]
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *example))["params"]
