"""CLIP's two towers (arXiv 2103.00020) on transformers' Flax parameter tree.

Trees are nested dicts with the paths `text_model/...`, `text_projection/kernel`,
`vision_model/...` (with `pre_layrnorm`, so spelled), `visual_projection/kernel` and
`logit_scale`. `TextTower` and `ImageTower` read their own part and ignore the other, so
the tree of a whole CLIP serves all three modules.

Parameters are float32; matrix products run in `dtype`; layer norms, softmax, pooled
outputs and projections are float32. There is no dropout.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
from flax import linen as nn

from jaxanom.errors import UserError
from jaxanom.models.clip import layers
from jaxanom.types import Array


class _TowerConfig:
    """What the configs of both towers share."""

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.hidden_act not in layers.ACTIVATIONS:
            known = sorted(layers.ACTIVATIONS)
            raise UserError(f"hidden_act={self.hidden_act!r}; known are {known}")

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
    ) -> Any:
        """Reads the dict of a tower's config.json; foreign keys are ignored.

        Of preprocessor_config.json, if given, mean and std of pixels are read.
        """
        nested = [name for name in ("text_config", "vision_config") if name in config]
        if nested:
            raise UserError(
                f"this config.json is of a whole CLIP (it holds {nested}); use "
                "ClipConfig.from_dict and take the tower's config from there"
            )
        if config.get("attention_dropout", 0):
            raise UserError(
                f"attention_dropout={config['attention_dropout']}; these towers have "
                "no dropout, set it to 0 in config.json"
            )
        pixels = {
            name: value
            for name, value in (preprocessor or {}).items()
            if name in ("image_mean", "image_std")
        }
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in {**config, **pixels}.items()
                if name in names
            }
        )


@dataclasses.dataclass(frozen=True)
class TextConfig(_TowerConfig):
    """Sizes of the text tower; names and defaults of transformers' CLIPTextConfig."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 1


@dataclasses.dataclass(frozen=True)
class VisionConfig(_TowerConfig):
    """Sizes of the image tower; names and defaults of transformers' CLIPVisionConfig.

    `image_mean` and `image_std` are the fields of preprocessor_config.json.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers; `projection_dim` here is the width both are projected to."""

    text_config: TextConfig = TextConfig()
    vision_config: VisionConfig = VisionConfig()
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
    ) -> "ClipConfig":
        """Reads a CLIP config.json; `*_config_dict` entries win, as in transformers."""
        projection_dim = config.get("projection_dim", cls.projection_dim)
        towers = [
            {
                **(config.get(name) or {}),
                **(config.get(f"{name}_dict") or {}),
                "projection_dim": projection_dim,
            }
            for name in ("text_config", "vision_config")
        ]
        return cls(
            text_config=TextConfig.from_dict(towers[0]),
            vision_config=VisionConfig.from_dict(towers[1], preprocessor),
            projection_dim=projection_dim,
            logit_scale_init_value=config.get(
                "logit_scale_init_value", cls.logit_scale_init_value
            ),
        )

    def towers(self) -> tuple[TextConfig, VisionConfig]:
        """Returns the configs of both, each with the joint space's width."""
        width = {"projection_dim": self.projection_dim}
        return (
            dataclasses.replace(self.text_config, **width),
            dataclasses.replace(self.vision_config, **width),
        )


class TextOutput(NamedTuple):
    """What the text tower says of B sentences.

    Attributes:
      last_hidden_state: [B, L, D] after the final layer norm, float32.
      pooled: [B, D], its row at the end-of-text position.
      text_features: [B, K] projected, not normalised; None without projection.
      hidden_states: One [B, L, D] in `dtype` for each of `return_layers`.
    """

    last_hidden_state: Array
    pooled: Array
    text_features: Array | None
    hidden_states: tuple[Array, ...]


class ImageOutput(NamedTuple):
    """What the image tower says of B images cut into N patches, row by row.

    Attributes:
      pooled: [B, D], the class token after the post layer norm, float32.
      image_features: [B, K] projected, not normalised; None without projection.
      patch_tokens: [B, N, D] of the last layer, before any norm, in `dtype`.
      hidden_states: One [B, 1 + N, D] in `dtype` for each of `return_layers`; token 0
        is the class token.
    """

    pooled: Array
    image_features: Array | None
    patch_tokens: Array
    hidden_states: tuple[Array, ...]


class ClipOutput(NamedTuple):
    """Cosine logits [B images, B sentences] in float32 and what both towers said."""

    logits_per_image: Array
    text: TextOutput
    image: ImageOutput


class TextTower(nn.Module):
    """Sentences, or token embeddings, to features under a causal mask.

    Attributes:
      config: Sizes.
      projection: Whether there is a `text_projection`; text towers of latent
        diffusion models have none.
      dtype: What matrix products compute in.
      remat: What every layer keeps for the backward pass, see `remat.POLICIES`.
    """

    config: TextConfig
    projection: bool = True
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self):
        """Names the submodules as the parameter tree does."""
        self.text_model = layers.TextModel(self.config, self.dtype, self.remat)
        if self.projection:
            self.text_projection = layers.projection(self.config)

    def __call__(
        self,
        input_ids: Array | None = None,
        token_embeddings: Array | None = None,
        eos_positions: Array | None = None,
        return_layers: tuple[int, ...] = (),
    ) -> TextOutput:
        """Encodes sentences given as ids or as embeddings.

        Args:
          input_ids: [B, L] int32, L up to `max_position_embeddings`.
          token_embeddings: [B, L, D] instead of ids, before positions are added.
          eos_positions: [B] int32, where to pool; None: found in `input_ids`.
          return_layers: Hidden states to return; 0 is the embedding, i what comes out
            of the i-th layer.

        Raises:
          UserError: not exactly one input; embeddings without `eos_positions`; a
            sentence longer than the position table; a layer that does not exist.
        """
        if (input_ids is None) == (token_embeddings is None):
            raise UserError("give exactly one of input_ids and token_embeddings")
        if eos_positions is None:
            if input_ids is None:
                raise UserError("token_embeddings hold no ids; pass eos_positions [B]")
            eos_positions = find_eos(input_ids, self.config.eos_token_id)
        last, hidden_states = self._states(input_ids, token_embeddings, return_layers)
        chex.assert_shape(eos_positions, last.shape[:1])
        pooled = jnp.take_along_axis(last, eos_positions[:, None, None], axis=1)[:, 0]
        features = self.text_projection(pooled) if self.projection else None
        return TextOutput(last, pooled, features, hidden_states)

    def _states(self, input_ids, token_embeddings, return_layers):
        if token_embeddings is None:
            token_embeddings = self.text_model.embeddings.token_embedding(input_ids)
        return self.text_model(token_embeddings, return_layers)


class ImageTower(nn.Module):
    """Images in [0, 1] to pooled features and patch tokens.

    Attributes:
      config: Sizes, and the mean and std that pixels are normalised with inside.
      projection: Whether there is a `visual_projection`.
      dtype: What matrix products compute in.
      remat: What every layer keeps for the backward pass, see `remat.POLICIES`.
      antialias_positions: How positions are interpolated at a size other than
        `config.image_size`; see `positions.resize`.
    """

    config: VisionConfig
    projection: bool = True
    dtype: Any = jnp.float32
    remat: str = "none"
    antialias_positions: bool = False

    def setup(self):
        """Names the submodules as the parameter tree does."""
        self.vision_model = layers.VisionModel(
            self.config, self.dtype, self.remat, self.antialias_positions
        )
        if self.projection:
            self.visual_projection = layers.projection(self.config)

    def __call__(
        self, image: Array, return_layers: tuple[int, ...] = ()
    ) -> ImageOutput:
        """Encodes images.

        Args:
          image: [B, H, W, 3] float in [0, 1]; H, W any multiples of the patch size.
          return_layers: Hidden states to return; 0 is the normed embedding, i what
            comes out of the i-th layer.

        Raises:
          UserError: a size or dtype the tower cannot take; a layer that does not
            exist.
        """
        return self.encode(self.embed(image), return_layers)

    def embed(self, image: Array) -> Array:
        """First half of `__call__`: tokens [B, 1 + N, D] that enter layer 1."""
        return self.vision_model.embed(image)

    def encode(self, tokens: Array, return_layers: tuple[int, ...] = ()) -> ImageOutput:
        """Second half: tokens [B, 1 + N, D], of all patches or some, to features."""
        pooled, tokens, hidden_states = self.vision_model(tokens, return_layers)
        features = self.visual_projection(pooled) if self.projection else None
        return ImageOutput(pooled, features, tokens[:, 1:], hidden_states)

    def project_tokens(self, tokens: Array) -> Array:
        """Carries tokens [..., D] of any layer to the joint space: [..., K] float32.

        The post layer norm comes first, as on the class token's path.
        """
        if not self.projection:
            raise UserError("projection=False: this tower has no visual_projection")
        tokens = self.vision_model.post_layernorm(tokens)
        return self.visual_projection(tokens.astype(jnp.float32))


class CLIP(nn.Module):
    """Both towers and the temperature; see `TextTower` and `ImageTower`."""

    config: ClipConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    antialias_positions: bool = False

    def setup(self):
        """Puts both towers into this module's own scope: no extra tree level."""
        self.text, self.image = self._towers()
        nn.share_scope(self, self.text)
        nn.share_scope(self, self.image)
        self.logit_scale = self.param(
            "logit_scale",
            nn.initializers.constant(self.config.logit_scale_init_value),
            (),
        )

    @nn.nowrap
    def _towers(self) -> tuple[TextTower, ImageTower]:
        text, vision = self.config.towers()
        common = {"dtype": self.dtype, "remat": self.remat}
        positions = {"antialias_positions": self.antialias_positions}
        return TextTower(text, **common), ImageTower(vision, **common, **positions)

    def __call__(self, input_ids: Array, image: Array) -> ClipOutput:
        """Compares every image [B, H, W, 3] with every sentence [B', L]."""
        text, image = self.text(input_ids), self.image(image)
        logits = normalise(image.image_features) @ normalise(text.text_features).T
        return ClipOutput(jnp.exp(self.logit_scale) * logits, text, image)

    def encode_text(self, *args, **kwargs) -> TextOutput:
        """`TextTower.__call__`."""
        return self.text(*args, **kwargs)

    def encode_image(self, *args, **kwargs) -> ImageOutput:
        """`ImageTower.__call__`."""
        return self.image(*args, **kwargs)


def normalise(features: Array) -> Array:
    """Scales vectors [..., K] to length one."""
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def find_eos(input_ids: Array, eos_token_id: int) -> Array:
    """Returns where each row [B, L] ends: [B] int32, the first end-of-text token.

    Published configs that say `eos_token_id == 2` are wrong about it; for them, as in
    transformers, it is the first of the largest id. A row without the token gives 0.
    """
    if eos_token_id == 2:
        return jnp.argmax(input_ids, axis=-1)
    return jnp.argmax(input_ids == eos_token_id, axis=-1)
