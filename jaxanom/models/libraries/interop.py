"""The Flax models of diffusers and transformers, in and out, and in place of ours.

Parameter trees are the same here and there, so weights go over as they are:
`from_flax` and `to_flax` carry a model with its parameters across, `adapt` has the
library's network compute behind our interface (`config.model.implementation`).

Both libraries have dropped these classes; the versions that still have them are those
of the extra `hf`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.models import networks
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
_KINDS = {
    "FlaxUNet2DConditionModel": "unet",
    "FlaxAutoencoderKL": "vae",
    "FlaxCLIPModel": "clip",
    "FlaxCLIPTextModel": "text_encoder",
    "FlaxCLIPTextModelWithProjection": "text_encoder",
    "FlaxCLIPVisionModel": "image_encoder",
}


def adapt(module: nn.Module) -> nn.Module:
    """Returns the library's network with the interface and parameter tree of ours.

    Args:
      module: A `unet.UNet`, `vae.AutoencoderKL`, or `TextTower`, `ImageTower` or `CLIP`
        of `towers`.

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
    """Carries a Flax model of diffusers or transformers into ours.

        module, params = interop.from_flax(FlaxCLIPModel.from_pretrained(name))
        module.apply({"params": params}, ids, image, ...)

    Args:
      model: A FlaxUNet2DConditionModel, FlaxAutoencoderKL, FlaxCLIPModel,
        FlaxCLIPTextModel, FlaxCLIPTextModelWithProjection or FlaxCLIPVisionModel.
      params: Its parameters; None takes `model.params`, which only transformers' have.

    Returns:
      (our module, nested dict of NumPy arrays). Of the UNet, ours has PyTorch's
      constants, not those of the library's class.

    Raises:
      UserError: another class, no parameters, a config that ours cannot honour, or
        parameters of other shapes than the config's.
    """
    name = type(model).__name__
    if name not in _KINDS:
        raise UserError(f"{name} is none of the Flax models {sorted(_KINDS)}")
    if params is None:
        params = getattr(model, "params", None)
    if params is None:
        raise UserError(f"a {name} does not hold its parameters; pass `params`")
    config = model.config
    raw = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    module = networks.of(_KINDS[name], {**raw, "_class_name": name}).module
    host = _plain(params)
    trees.check_same_shapes(host, networks.shapes(module), f"the {name}")
    return module, host


def to_flax(module: nn.Module, params: Params) -> tuple[Any, Params]:
    """Carries one of our networks into the library's class.

    Args:
      module: As for `adapt`.
      params: Its parameters; of a whole CLIP's, a single tower takes its part.

    Returns:
      (model, parameters), as the library's own loading returns them:
      `model.save_pretrained(directory, params=parameters)` writes both. The UNet has
      the library's constants.

    Raises:
      UserError: as for `adapt`; parameters of other shapes than the module's.
    """
    model = adapt(module).library_model()
    shapes = networks.shapes(module)
    part = {name: params[name] for name in shapes if name in params}
    trees.check_same_shapes(part, shapes, f"the parameters for {type(model).__name__}")
    return model, part


def _plain(tree: Any) -> Any:
    """Returns nested dicts for any nested mapping, flax's frozen ones included."""
    if isinstance(tree, Mapping):
        return {name: _plain(value) for name, value in tree.items()}
    return np.asarray(tree)
