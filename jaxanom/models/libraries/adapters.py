"""The Flax networks of diffusers and transformers behind the interface of our towers.

Each class here has the fields, methods and parameter tree of the one it derives from
and computes with the library's network instead. What the library cannot do is refused
with the config key to change.

diffusers' transformer blocks have the tanh form of GELU and a group-norm epsilon of
1e-5; the PyTorch classes, with which published weights were trained, have the exact
form and 1e-6. `UNet` puts PyTorch's in.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxanom.errors import UserError
from jaxanom.models.clip import layers as clip_layers
from jaxanom.models.clip import towers as clip
from jaxanom.models.latent import layers, unet, vae
from jaxanom.models.libraries import classes
from jaxanom.models.libraries.classes import KEY
from jaxanom.types import Array

_TRANSFORMER_EPSILON = 1e-6
# What the library's classes cannot vary -> the one value they have.
_UNET_FIXED = {"norm_num_groups": 32, "norm_eps": 1e-5}
_VAE_FIXED = {
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}


class _Whole(nn.Module):
    """A module that is one of the library's, in its own scope: no extra tree level."""

    def setup(self):
        self.network = self.library()
        nn.share_scope(self, self.network)

    @nn.nowrap
    def library_model(self) -> nn.Module:
        """Builds what the library's `from_pretrained` returns beside the weights."""
        return self.library()


class UNet(_Whole, unet.UNet):
    """diffusers' FlaxUNet2DConditionModel, with PyTorch's constants."""

    @nn.nowrap
    def library(self) -> nn.Module:
        """Builds the library's module.

        Raises:
          UserError: the extra `hf` is missing, or the library has no such network.
        """
        _check(self, _UNET_FIXED)
        fields = self.config.to_dict()
        for name in ("_class_name", "act_fn", "num_attention_heads", *_UNET_FIXED):
            del fields[name]
        fields["attention_head_dim"] = self.config.num_heads
        fields["sample_size"] = self.config.sample_size or 32
        return classes.build("FlaxUNet2DConditionModel", fields, self.dtype)

    def __call__(
        self,
        latents: Array,
        timesteps: Array,
        context: Array,
        context_bias: Any = None,
    ) -> Array:
        """Returns noise_pred [B, h, w, out_channels] float32; see `unet.UNet`.

        Raises:
          UserError: a `context_bias` is given, or shapes do not fit.
        """
        if context_bias is not None:
            raise UserError(
                f"{KEY}='hf_flax' has no masked cross-attention; set "
                f"config.defect_generation.masked_attention=False or {KEY}='ours'"
            )
        self._check(latents, timesteps, context)
        with nn.intercept_methods(_torch_constants):
            noise_pred = self.network(
                jnp.asarray(latents).transpose(0, 3, 1, 2),  # [B, C, h, w]
                jnp.asarray(timesteps),
                jnp.asarray(context, self.dtype),
            ).sample
        return noise_pred.transpose(0, 2, 3, 1).astype(jnp.float32)


class AutoencoderKL(_Whole, vae.AutoencoderKL):
    """diffusers' FlaxAutoencoderKL."""

    @nn.nowrap
    def library(self) -> nn.Module:
        """Builds the library's module; UserError as `UNet.library`."""
        _check(self, _VAE_FIXED)
        fields = self.config.to_dict()
        for name in ("_class_name", *_VAE_FIXED):
            del fields[name]
        return classes.build("FlaxAutoencoderKL", fields, self.dtype)

    def moments(self, image: Array) -> tuple[Array, Array]:
        """Returns mean and log-variance of unscaled latents, float32."""
        pixels = (2 * jnp.asarray(image) - 1).transpose(0, 3, 1, 2)  # [B, 3, H, W]
        gaussian = self.network.encode(pixels).latent_dist
        return gaussian.mean.astype(jnp.float32), gaussian.logvar.astype(jnp.float32)

    def picture(self, latents: Array) -> Array:
        """Returns the image of unscaled latents, float32, about [0, 1]."""
        # Channels last, as the library reads latents whose last axis fits.
        image = self.network.decode(latents).sample.transpose(0, 2, 3, 1)
        return image.astype(jnp.float32) / 2 + 0.5


class TextTower(clip.TextTower):
    """transformers' FlaxCLIPTextTransformer, and our projection behind it."""

    @nn.nowrap
    def library(self) -> nn.Module:
        """Builds the library's module; UserError as `UNet.library`."""
        _check(self)
        transformer = classes.clip_class("FlaxCLIPTextTransformer")
        return transformer(classes.clip_config(self.config), self.dtype)

    @nn.nowrap
    def library_model(self) -> Any:
        """Builds what the library's `from_pretrained` returns, without weights."""
        name = f"FlaxCLIPTextModel{'WithProjection' if self.projection else ''}"
        return classes.clip_model(name, self)

    def setup(self):
        """Names the submodules as the parameter tree does."""
        self.text_model = self.library()
        if self.projection:
            self.text_projection = nn.Dense(self.config.projection_dim, use_bias=False)

    def _states(self, input_ids, token_embeddings, return_layers):
        if token_embeddings is not None:
            raise UserError(f"{KEY}='hf_flax' reads input_ids only; set {KEY}='ours'")
        ids = jnp.asarray(input_ids)
        places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        output = self.text_model(
            ids, jnp.ones_like(ids), places, output_hidden_states=bool(return_layers)
        )
        last = output.last_hidden_state.astype(jnp.float32)
        return last, tuple(output.hidden_states[i] for i in return_layers)


class ImageTower(clip.ImageTower):
    """transformers' FlaxCLIPVisionTransformer, and our projection behind it."""

    @nn.nowrap
    def library(self) -> nn.Module:
        """Builds the library's module; UserError as `UNet.library`."""
        _check(self)
        transformer = classes.clip_class("FlaxCLIPVisionTransformer")
        return transformer(classes.clip_config(self.config), self.dtype)

    @nn.nowrap
    def library_model(self) -> Any:
        """Builds what the library's `from_pretrained` returns, without weights.

        Raises:
          UserError: with a projection, which its Flax class does not have.
        """
        if self.projection:
            raise UserError(
                "transformers has no Flax image tower with a projection; use "
                "towers.ImageTower(..., projection=False) or a whole towers.CLIP"
            )
        return classes.clip_model("FlaxCLIPVisionModel", self)

    def setup(self):
        """Names the submodules as the parameter tree does."""
        self.vision_model = self.library()
        if self.projection:
            width = self.config.projection_dim
            self.visual_projection = nn.Dense(width, use_bias=False)

    def __call__(
        self, image: Array, return_layers: tuple[int, ...] = ()
    ) -> clip.ImageOutput:
        """Encodes images [B, S, S, 3] in [0, 1] of the config's size S.

        Raises:
          UserError: images of another size: the library interpolates no positions.
        """
        size = self.config.image_size
        if image.shape[1:3] != (size, size):
            raise UserError(
                f"{KEY}='hf_flax' takes images of {size} px only, got {image.shape}; "
                f"set {KEY}='ours'"
            )
        pixels = clip_layers.standardise(image, self.config)
        output = self.vision_model(pixels, output_hidden_states=bool(return_layers))
        pooled = output.pooler_output.astype(jnp.float32)
        features = self.visual_projection(pooled) if self.projection else None
        states = tuple(output.hidden_states[i] for i in return_layers)
        patch_tokens = output.last_hidden_state[:, 1:]
        return clip.ImageOutput(pooled, features, patch_tokens, states)

    def embed(self, image: Array) -> Array:
        """Refuses: the library's tower has no such half."""
        raise UserError(f"{KEY}='hf_flax' does not come in halves; set {KEY}='ours'")

    def encode(self, tokens: Array, return_layers: tuple[int, ...] = ()):
        """Refuses, as `embed`."""
        return self.embed(tokens)


class CLIP(clip.CLIP):
    """Both towers of transformers' FlaxCLIPModel."""

    @nn.nowrap
    def library(self) -> None:
        """Checks that both towers can be built; UserError as `UNet.library`."""
        for tower in self._towers(parent=None):
            tower.library()

    @nn.nowrap
    def library_model(self) -> Any:
        """Builds what the library's `from_pretrained` returns, without weights."""
        return classes.clip_model("FlaxCLIPModel", self)

    @nn.nowrap
    def _towers(self, **place: Any) -> tuple[TextTower, ImageTower]:
        text, vision = self.config.towers()
        common = {"dtype": self.dtype, "remat": self.remat, **place}
        return TextTower(text, **common), ImageTower(vision, **common)


def _check(module: nn.Module, fixed: dict[str, Any] | None = None) -> None:
    if getattr(module, "remat", "none") != "none":
        raise UserError(
            f"{KEY}='hf_flax' cannot recompute its blocks; set config.model.remat="
            f"'none' or {KEY}='ours'"
        )
    for name, value in (fixed or {}).items():
        if getattr(module.config, name) != value:
            raise UserError(
                f"{KEY}='hf_flax' has {name}={value!r} only, and this "
                f"{type(module).__name__}'s config says "
                f"{getattr(module.config, name)!r}; set {KEY}='ours'"
            )


def _torch_constants(next_function, args, keywords, context):
    """Computes GELU and the transformers' group norm as the PyTorch classes do."""
    module = context.module
    name = type(module).__name__
    if context.method_name != "__call__":
        return next_function(*args, **keywords)
    if name == "FlaxGEGLU":
        linear, gate = jnp.split(module.proj(args[0]), 2, axis=-1)
        return linear * nn.gelu(gate, approximate=False)
    inside = type(module.parent).__name__ == "FlaxTransformer2DModel"
    # While parameters are being made there is nothing to compute with yet.
    if name == "GroupNorm" and inside and module.has_variable("params", "scale"):
        leaves = (module.get_variable("params", leaf) for leaf in ("scale", "bias"))
        return layers.group_norm(
            args[0], *leaves, module.num_groups, _TRANSFORMER_EPSILON
        )
    return next_function(*args, **keywords)
