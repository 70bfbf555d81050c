"""Any CLIP, transformer or residual, as two feature functions and their weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.models import backbones
from jaxanom.models.checkpoints import pretrained, sources, weight_files
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.clip import resnet, towers
from jaxanom.models.clip.tokenizer import Tokenizer
from jaxanom.types import Array, Params

EncodeImage = Callable[[Params, Array], tuple[Array, Array]]
"""(params, image [B, H, W, 3] in [0, 1]) -> ([B, v], [B, h, w, v]), normalised: the
pooled feature, and those of the patches."""


class ClipPair(NamedTuple):
    """Both towers.

    Attributes:
      text_config: sizes of the text tower.
      text_params: Parameters of `towers.TextTower`.
      image_params: Parameters of the image tower.
      encode_image: normalised features of images.
      logit_scale: log of the temperature, a float32 scalar.
      feature_width: v.
      tokenizer: that the text tower was trained with.
    """

    text_config: towers.TextConfig
    text_params: Params
    image_params: Params
    encode_image: EncodeImage
    logit_scale: Array
    feature_width: int
    tokenizer: Tokenizer


def load(
    directory: str | Path,
    dtype: Any = jnp.float32,
    loading: sources.Loading = sources.PLAIN,
) -> ClipPair:
    """Opens a CLIP with its tokenizer, which is in `tokenizer/` or beside the weights.

    Args:
      directory: "embedded", a directory in transformers' layout (`clip/` or itself), or
        one with a weight file of a residual CLIP under its authors' names.
      dtype: What matrix products in the image tower compute in.
      loading: variant and activation of the weights.

    Raises:
      UserError: there is no CLIP, or no tokenizer that fits it.
    """
    residual = _residual_file(directory, loading.variant)
    if residual:
        found = _open_residual(residual, loading.hidden_act)
    else:
        found = _open_transformer(directory, loading)
    text_config, text_params, module, image_params, scale = found
    tokenizer = backbones.load_tokenizer(directory)
    if tokenizer.vocab_size > text_config.vocab_size:
        raise UserError(
            f"the tokenizer of {directory} has {tokenizer.vocab_size} ids and its text "
            f"tower {text_config.vocab_size}; use the one the tower was trained with"
        )
    return ClipPair(
        text_config=text_config,
        text_params=text_params,
        image_params=image_params,
        encode_image=encoder(module.clone(dtype=dtype)),
        logit_scale=jnp.asarray(scale, jnp.float32),
        feature_width=text_config.projection_dim,
        tokenizer=tokenizer,
    )


def encoder(module: towers.ImageTower | resnet.ResNetTower) -> EncodeImage:
    """Returns normalised features of an image tower."""

    def encode(params: Params, image: Array) -> tuple[Array, Array]:
        found = module.apply({"params": params}, image)
        tokens = found.patch_tokens
        if isinstance(module, towers.ImageTower):
            patch = module.config.patch_size
            tokens = module.apply({"params": params}, tokens, method="project_tokens")
        else:
            patch = 32
        grid = (image.shape[1] // patch, image.shape[2] // patch)
        tokens = towers.normalise(tokens).reshape(image.shape[0], *grid, -1)
        return towers.normalise(found.image_features), tokens

    return encode


def _open_transformer(directory: str | Path, loading: sources.Loading):
    tower = backbones.load_clip(directory, loading)
    config, params = tower.module.config, tower.params
    width = {"projection_dim": config.projection_dim}
    text_config = dataclasses.replace(config.text_config, **width)
    image = towers.ImageTower(dataclasses.replace(config.vision_config, **width))
    text_params = {key: params[key] for key in ("text_model", "text_projection")}
    image_params = {key: params[key] for key in ("vision_model", "visual_projection")}
    return text_config, text_params, image, image_params, params["logit_scale"]


def _residual_file(directory: str | Path, variant: str | None) -> Path | None:
    """Returns the weight file of a residual CLIP, None where there is another one."""
    if str(directory) == "embedded" or not Path(directory).expanduser().is_dir():
        return None
    try:
        path = weight_files.locate(Path(directory).expanduser(), "clip", variant)
    except ValueError:
        return None
    return path if resnet.recognises(weights.shapes(path)) else None


def _open_residual(path: Path, hidden_act: str):
    state = weights.read(path, np.float32)
    image_config = resnet.config_from_published(state)
    image_params = resnet.params_from_published(state)
    text_config = resnet.text_config_from_published(state, hidden_act)
    shapes = backbones.abstract(
        towers.TextTower(text_config), np.zeros((1, 2), np.int32)
    )
    others = (r"visual\..*", "logit_scale")
    text_params = pretrained.from_published(state, shapes, "clip", ignore=others)
    image = resnet.ResNetTower(image_config)
    return text_config, text_params, image, image_params, state["logit_scale"]
