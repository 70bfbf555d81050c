"""Any CLIP, transformer or residual, as two feature functions and their weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.models import backbones, networks
from jaxanom.models.checkpoints import pretrained, sources, weight_files
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.checkpoints.names import openai_clip
from jaxanom.models.clip import layers, resnet, towers
from jaxanom.models.clip.tokenizer import Tokenizer
from jaxanom.types import Array, Params

EncodeImage = Callable[[Params, Array], tuple[Array, Array]]
"""(params, image [B, H, W, 3] in [0, 1]) -> ([B, v], [B, h, w, v]), normalised: the
pooled feature, and those of the patches."""


class ClipPair(NamedTuple):
    """Both towers.

    Attributes:
      text_config: Sizes of the text tower.
      text_params: Parameters of `towers.TextTower`.
      image_params: Parameters of the image tower.
      encode_image: Normalised features of images.
      logit_scale: Log of the temperature, a float32 scalar.
      feature_width: v.
      tokenizer: The one that the text tower was trained with.
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
      loading: Variant and activation of the weights.

    Raises:
      UserError: there is no CLIP, or no tokenizer that fits it.
    """
    residual = _residual_file(directory, loading.variant)
    text_config, text_params, module, image_params, scale = (
        _open_residual(residual, loading.hidden_act)
        if residual
        else _open_transformer(directory, loading)
    )
    return ClipPair(
        text_config=text_config,
        text_params=text_params,
        image_params=image_params,
        encode_image=encoder(module.clone(dtype=dtype)),
        logit_scale=jnp.asarray(scale, jnp.float32),
        feature_width=text_config.projection_dim,
        tokenizer=backbones.tokenizer_for(text_config, directory),
    )


def encoder(module: towers.ImageTower | resnet.ResNetTower) -> EncodeImage:
    """Returns normalised features of an image tower."""

    def encode(params: Params, image: Array) -> tuple[Array, Array]:
        output = module.apply({"params": params}, image)
        tokens = output.patch_tokens
        if isinstance(module, towers.ImageTower):
            patch = module.config.patch_size
            tokens = module.apply({"params": params}, tokens, method="project_tokens")
        else:
            patch = 32
        grid = (image.shape[1] // patch, image.shape[2] // patch)
        tokens = towers.normalise(tokens).reshape(image.shape[0], *grid, -1)
        return towers.normalise(output.image_features), tokens

    return encode


def _open_transformer(directory: str | Path, loading: sources.Loading):
    tower = backbones.load_clip(directory, loading)
    params = tower.params
    text_config, image_config = tower.module.config.towers()
    text_params = {key: params[key] for key in ("text_model", "text_projection")}
    image_params = {key: params[key] for key in ("vision_model", "visual_projection")}
    image = towers.ImageTower(image_config)
    return text_config, text_params, image, image_params, params["logit_scale"]


def _residual_file(directory: str | Path, variant: str | None) -> Path | None:
    """Returns the weight file of a residual CLIP, None where there is another one."""
    folder = Path(directory).expanduser()
    if str(directory) == "embedded" or not folder.is_dir():
        return None
    try:
        path = weight_files.locate(folder, "clip", variant)
    except UserError:
        return None
    return path if resnet.recognises(weights.shapes(path)) else None


def _open_residual(path: Path, hidden_act: str):
    state = weights.read(path, np.float32)
    text_config = towers.TextConfig.from_dict(
        openai_clip.text_config({name: array.shape for name, array in state.items()})
        | {"projection_dim": state["text_projection"].shape[1]}
    )
    text_config = layers.with_activation(text_config, hidden_act)
    shapes = networks.shapes(towers.TextTower(text_config))
    others = (r"visual\..*", "logit_scale")
    text_params = pretrained.load_params(path, "clip", shapes, ignore=others)
    image = resnet.ResNetTower(resnet.config_from_published(state))
    image_params = resnet.params_from_published(state)
    return text_config, text_params, image, image_params, state["logit_scale"]
