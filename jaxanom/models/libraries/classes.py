"""Classes of diffusers and transformers, imported here and nowhere else.

Their Flax classes exist in diffusers < 0.40 and transformers < 5: the extra `hf`.
"""

import dataclasses
import importlib.metadata
import logging
from typing import Any

from flax import linen as nn

from jaxanom.errors import UserError
from jaxanom.models.clip import towers

KEY = "config.model.implementation"
_NOISY = (
    "attention_flax",
    "embeddings_flax",
    "modeling_flax_utils",
    "resnet_flax",
    "unets.unet_2d_blocks_flax",
    "unets.unet_2d_condition_flax",
    "vae_flax",
)


def build(name: str, fields: dict[str, Any], dtype: Any) -> nn.Module:
    """Builds one of diffusers' Flax modules.

    Args:
      name: "FlaxUNet2DConditionModel" or "FlaxAutoencoderKL".
      fields: Its config; lists become tuples, which can be hashed.
      dtype: What it computes in.

    Raises:
      UserError: there is no diffusers with Flax classes.
    """
    _silence()
    try:
        from diffusers.models import vae_flax
        from diffusers.models.unets import unet_2d_condition_flax as unet_flax
    except ImportError as error:
        raise _missing("diffusers", "0.40") from error
    place = unet_flax if "UNet" in name else vae_flax
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return getattr(place, name)(**fields, dtype=dtype)


def clip_class(name: str) -> Any:
    """Returns one of transformers' Flax CLIP classes or CLIP configs by name.

    Raises:
      UserError: there is no transformers with Flax classes.
    """
    try:
        from transformers.models.clip import configuration_clip, modeling_flax_clip
    except ImportError as error:
        raise _missing("transformers", "5") from error
    place = modeling_flax_clip if name.startswith("Flax") else configuration_clip
    return getattr(place, name)


def clip_config(config: Any) -> Any:
    """Returns the config of a tower, or of a whole CLIP, as transformers' own."""
    fields = dataclasses.asdict(config)
    name = type(config).__name__
    if isinstance(config, towers.ClipConfig):
        for part in ("text_config", "vision_config"):
            fields[part] = clip_config(getattr(config, part)).to_dict()
    for of_preprocessor in ("image_mean", "image_std"):
        fields.pop(of_preprocessor, None)
    return clip_class("CLIPConfig" if name == "ClipConfig" else f"CLIP{name}")(**fields)


def clip_model(name: str, module: nn.Module) -> Any:
    """Builds one of transformers' Flax CLIP models for our module, without weights."""
    config = clip_config(module.config)
    return clip_class(name)(config, dtype=module.dtype, _do_init=False)


def _drop_notice(record: logging.LogRecord) -> bool:
    """Refuses the notice that comes with every single layer of diffusers' classes."""
    return "Flax classes are deprecated" not in record.getMessage()


def _silence() -> None:
    for name in _NOISY:
        logger = logging.getLogger(f"diffusers.models.{name}")
        logger.addFilter(_drop_notice)


def _missing(package: str, before: str) -> UserError:
    try:
        present = f"version {importlib.metadata.version(package)} is installed"
    except importlib.metadata.PackageNotFoundError:
        present = "it is not installed"
    return UserError(
        f"{KEY}='hf_flax' needs {package} < {before}, the last with Flax classes; "
        f"{present}: pip install 'jaxanom[hf]', or set {KEY}='ours'"
    )
