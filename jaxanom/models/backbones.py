"""Whole models of one checkpoint: UNet, autoencoder, towers, tokenizer, schedule.

A checkpoint is a directory like diffusers' pipelines (`unet/`, `vae/`, `text_encoder/`
or `clip/`, `tokenizer/`, `scheduler/`), the directory of one model, a hub name of
either, or a single file of weights (`sources`); the name "embedded" means the towers
shipped in `jaxanom/assets`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxanom import record, trees
from jaxanom.diffusion import targets
from jaxanom.errors import UserError
from jaxanom.models import networks
from jaxanom.models.checkpoints import sources
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.checkpoints.names import original_stable_diffusion
from jaxanom.models.clip import towers
from jaxanom.models.clip.tokenizer import Tokenizer
from jaxanom.models.latent import noise_schedule, tiny_autoencoder, unet
from jaxanom.models.libraries import interop
from jaxanom.models.ops import initialise
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Params

PREDICTION_TYPES = noise_schedule.PREDICTION_TYPES
ORIGINAL_MERGES = "bpe_simple_vocab_16e6.txt.gz"
_TOKENIZER_FOLDERS = ("tokenizer", ".")
_TOKENIZER_FILES = (
    ("vocab.json", "merges.txt"),
    ("tokenizer.json",),
    (ORIGINAL_MERGES,),
)
_PADDING_FILES = ("special_tokens_map.json", "tokenizer_config.json")
IMPLEMENTATIONS = ("ours", "hf_flax")
EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "foundry"


class Tower(NamedTuple):
    """A module and its weights; the weights travel as arguments, never closed over."""

    module: nn.Module
    params: Params


class TextEncoder(NamedTuple):
    """A text tower with the tokenizer it was trained on."""

    module: nn.Module
    params: Params
    tokenizer: Tokenizer
    length: int

    @property
    def width(self) -> int:
        """D of the states."""
        return self.module.config.hidden_size

    def encode(self, texts: list[str], batch_size: int = 64) -> np.ndarray:
        """Returns the last hidden states [N, L, D] float32 of N texts."""
        ids = self.tokenizer.encode(texts, self.length)

        def states(params: Params, token_ids: Array) -> Array:
            return self.module.apply({"params": params}, token_ids).last_hidden_state

        apply, parts = jax.jit(meshes.bound(states)), []
        for rows, count in trees.fixed_batches(len(ids), min(batch_size, len(ids))):
            part = np.asarray(apply(self.params, ids[rows]), np.float32)
            parts.append(part[:count])
        return np.concatenate(parts)


def resolve(name: str) -> Path:
    """Returns the directory, or file, that a backbone name stands for.

    Args:
      name: "embedded", a directory, a single file of weights, or a hub name, of which
        the tokenizer's files are then at hand.

    Raises:
      UserError: there is none.
    """
    return sources.small_files(
        _named(name), _TOKENIZER_FOLDERS, _TOKENIZER_FILES, _PADDING_FILES
    )


def load_autoencoder(
    directory: str | Path, loading: sources.Loading = sources.PLAIN
) -> Tower:
    """Loads `vae/` of a checkpoint, a VAE or TAESD directory, or a TAESD pair of files.

    A TAESD pair is `*encoder.npz` and `*decoder.npz`, or .safetensors or .pth, in the
    original layer names, in one directory.
    """
    pair = tiny_autoencoder.pair_of_files(_named(directory))
    if pair is not None:
        states = [tiny_autoencoder.read_state(path) for path in pair]
        config, params = tiny_autoencoder.from_state(*states)
        return Tower(tiny_autoencoder.TinyAutoencoder(config), params)
    source = sources.find(_named(directory), ("vae", "."), "vae", loading)
    is_tiny = source.config.get("_class_name") == "AutoencoderTiny"
    return _read(source, "tiny_autoencoder" if is_tiny else "vae", loading)


def load_text_encoder(
    directory: str | Path, loading: sources.Loading = sources.PLAIN
) -> TextEncoder:
    """Loads the text tower (`text_encoder/`, else that of a CLIP) and `tokenizer/`."""
    folders = ("text_encoder", "clip", ".")
    source = sources.find(_named(directory), folders, "text_encoder", loading)
    module = source.network("text_encoder").module.clone(projection=False)
    others = (r"(vision_model|visual_projection|text_projection)[./].*", "logit_scale")
    shapes = networks.shapes(module)
    params = sources.read(source, "text_encoder", shapes, loading, others)
    tokenizer = tokenizer_for(module.config, directory)
    return TextEncoder(module, params, tokenizer, module.config.max_position_embeddings)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Loads `tokenizer/` of a checkpoint, or the tokenizer files beside the weights."""
    path = resolve(str(directory))
    path = path.parent if path.is_file() else path
    for folder in _TOKENIZER_FOLDERS:
        merges = path / folder / ORIGINAL_MERGES
        if merges.is_file():
            return Tokenizer.from_merges(merges)
        if any((path / folder / files[0]).is_file() for files in _TOKENIZER_FILES):
            return Tokenizer(path / folder)  # says what is missing of a set
    return Tokenizer(path / _TOKENIZER_FOLDERS[0])  # says what is wanted there


def tokenizer_for(config: towers.TextConfig, directory: str | Path) -> Tokenizer:
    """Loads the tokenizer of a checkpoint for its text tower; see `load_tokenizer`.

    Raises:
      UserError: it has more ids than the tower, which would read them as other words.
    """
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer of {directory} has {tokenizer.vocab_size} ids and its text "
            f"tower {config.vocab_size}; use the tokenizer the tower was trained on"
        )
    return tokenizer


def load_clip(directory: str | Path, loading: sources.Loading = sources.PLAIN) -> Tower:
    """Loads both CLIP towers from `clip/` of a directory, or from the directory."""
    source = sources.find(_named(directory), ("clip", "."), "clip", loading)
    return _read(source, "clip", loading)


def load_image_encoder(directory: str | Path) -> Tower:
    """Loads the image tower (`image_encoder/`, else that of a CLIP)."""
    folders = ("image_encoder", "clip", ".")
    source = sources.find(_named(directory), folders, "image_encoder")
    others = (r"(text_model|text_projection)[./].*", "logit_scale")
    return _read(source, "image_encoder", sources.PLAIN, others)


def load_unet(directory: str | Path, loading: sources.Loading = sources.PLAIN) -> Tower:
    """Loads `unet/` of a checkpoint, or a UNet's own directory."""
    source = sources.find(_named(directory), ("unet", "."), "unet", loading)
    return _read(source, "unet", loading)


def _read(
    source: sources.Source,
    kind: str,
    loading: sources.Loading,
    others: Sequence[str] = (),
) -> Tower:
    network = source.network(kind)
    params = sources.read(source, kind, network.shapes(), loading, others)
    return Tower(network.module, params)


def implemented(tower: Any, implementation: str) -> Any:
    """Returns a tower with the module that computes it chosen; weights stay.

    Args:
      tower: A `Tower` or `TextEncoder` with a module of ours.
      implementation: "ours", or "hf_flax" for the Flax class of diffusers or
        transformers, a second opinion on the same weights.

    Raises:
      UserError: an unknown name, or the library has no such network.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"config.model.implementation={implementation!r}; choose one of "
            f"{IMPLEMENTATIONS}"
        )
    if implementation == "ours":
        return tower
    return tower._replace(module=interop.adapt(tower.module))


def small_unet(
    latent_channels: int,
    context_width: int,
    block_out_channels: Sequence[int],
    layers_per_block: int,
    num_heads: int,
    fine_self_attention: bool,
    sample_size: int | None = None,
) -> unet.UNetConfig:
    """Sizes of a UNet with cross-attention at every resolution.

    Args:
      latent_channels, context_width: What autoencoder and text tower give it.
      block_out_channels, layers_per_block, num_heads: See `unet.UNetConfig`.
      fine_self_attention: Self-attention at the finest resolution too, which costs a
        third of the time; the coarser ones always have it.
      sample_size: Side of the latents trained on, for the record.
    """
    channels = tuple(block_out_channels)
    blocks = len(channels)
    return unet.UNetConfig(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * blocks,
        up_block_types=("CrossAttnUpBlock2D",) * blocks,
        layers_per_block=layers_per_block,
        attention_head_dim=num_heads,
        cross_attention_dim=context_width,
        norm_num_groups=min(32, channels[0] // 4),
        only_cross_attention=(not fine_self_attention, *(False,) * (blocks - 1)),
        use_linear_projection=True,
    )


def new_unet(config: unet.UNetConfig, key: Array) -> Tower:
    """Makes a UNet with fresh weights; its last convolution starts at zero."""
    module = unet.UNet(config)
    zeros = {"conv_out/.*": initialise.zeros}
    inputs = networks.example(module)
    return Tower(module, initialise.parameters(module, key, *inputs, overrides=zeros))


def load_schedule(directory: str | Path) -> noise_schedule.NoiseSchedule:
    """Returns noise levels, prediction type and spacing of a checkpoint.

    Raises:
      UserError: there is no `scheduler/scheduler_config.json`, or a value in it cannot
        be honoured.
    """
    folders, file = ("scheduler", "."), "scheduler_config.json"
    path = sources.small_files(_named(directory), folders, ((file,),))
    if path.is_file():
        settings = original_stable_diffusion.scheduler(weights.shapes(path))
        return noise_schedule.read(settings, path)
    places = [path / folder / file for folder in folders]
    for place in places:
        if place.is_file():
            return noise_schedule.read(record.read_json(place), place)
    raise UserError(f"{places[0]} is missing; set config.model.scheduler")


def load_alphas(directory: str | Path) -> np.ndarray:
    """Returns the noise schedule of a checkpoint, float64 [T]."""
    return load_schedule(directory).alphas_cumprod


def noise_apply(module: unet.UNet, directory: str | Path) -> Callable[..., Array]:
    """Returns (params, latents, timesteps, context, bias=None) -> noise_pred.

    A velocity network's estimate becomes the noise it implies, so that the equations of
    the methods have one form.

    Args:
      module: The UNet.
      directory: The checkpoint whose scheduler says what the UNet predicts.
    """
    schedule = load_schedule(directory)
    is_velocity = schedule.prediction_type == "v_prediction"
    alphas_cumprod = schedule.alphas_cumprod

    def apply(params, latents, timesteps, context, bias=None):
        estimate = module.apply({"params": params}, latents, timesteps, context, bias)
        if not is_velocity:
            return estimate
        return targets.noise_from_velocity(estimate, latents, timesteps, alphas_cumprod)

    return apply


def _named(name: str | Path) -> str | Path:
    return EMBEDDED if str(name) == "embedded" else name


def latent_channels(autoencoder: Tower) -> int:
    """Returns C of the latents [B, h, w, C] that an autoencoder makes."""
    return autoencoder.module.config.latent_channels


def latent_grid(autoencoder: Tower, image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns (h, w) of the latents of an image.

    Raises:
      UserError: the image does not divide.
    """
    factor = autoencoder.module.config.downsampling
    if image_size[0] % factor or image_size[1] % factor:
        raise UserError(
            f"images of {image_size[0]}x{image_size[1]} do not divide by the "
            f"autoencoder's factor {factor}; set config.data.image_size to a multiple"
        )
    return image_size[0] // factor, image_size[1] // factor
