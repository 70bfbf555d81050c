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


def text_config(config: towers.TextConfig) -> Any:
    """Returns transformers' CLIPTextConfig."""
    return clip_class("CLIPTextConfig")(**dataclasses.asdict(config))


def vision_config(config: towers.VisionConfig) -> Any:
    """Returns transformers' CLIPVisionConfig."""
    fields = dataclasses.asdict(config)
    for name in ("image_mean", "image_std"):  # of the preprocessor, over there
        del fields[name]
    return clip_class("CLIPVisionConfig")(**fields)


class _DropNotice(logging.Filter):
    """Drops the notice that comes with every single layer of diffusers' classes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record is to be shown."""
        return "Flax classes are deprecated" not in record.getMessage()


def _silence() -> None:
    for name in _NOISY:
        logger = logging.getLogger(f"diffusers.models.{name}")
        if not any(isinstance(found, _DropNotice) for found in logger.filters):
            logger.addFilter(_DropNotice())


def _missing(package: str, before: str) -> UserError:
    try:
        found = f"version {importlib.metadata.version(package)} is installed"
    except importlib.metadata.PackageNotFoundError:
        found = "it is not installed"
    return UserError(
        f"{KEY}='hf_flax' needs {package} < {before}, the last with Flax classes; "
        f"{found}: pip install 'jaxanom[hf]', or set {KEY}='ours'"
    )
