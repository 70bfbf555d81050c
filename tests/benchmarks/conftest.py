"""Builds a backbone directory of random weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import record
from jaxanom.methods.pretraining import captions, denoiser
from jaxanom.models import networks
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.clip import tokenizer, towers
from jaxanom.models.latent import unet, vae
from jaxanom.models.ops import initialise

WIDTH, LENGTH, LATENT_CHANNELS = 16, 32, 2
TEXT_SIZES = dict(
    hidden_size=WIDTH,
    intermediate_size=WIDTH,
    projection_dim=WIDTH,
    num_attention_heads=2,
)


def write_backbone(directory: Path) -> Path:
    """Writes vae/, clip/, unet/, scheduler/ and tokenizer/, tiny and untrained."""
    from jaxanom.data.foundry import names

    table = captions.table(names.CATEGORIES, ("good", *names.DEFECT_TYPES))
    words = tokenizer.train(table.texts, 700, directory / "tokenizer")
    _write_vae(directory)
    _write_clip(directory, words)
    config = unet.UNetConfig(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    module = unet.UNet(config)
    params = initialise.parameters(module, jax.random.key(2), *networks.example(module))
    _save(directory, "unet", config.to_dict(), params, "unet")
    settings = {"_class_name": "DDIMScheduler", **denoiser.SCHEDULE}
    record.write_json(directory / "scheduler" / "scheduler_config.json", settings)
    return directory


def _write_vae(directory: Path) -> None:
    config = vae.VaeConfig(
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    params = initialise.parameters(
        vae.AutoencoderKL(config), jax.random.key(0), jnp.zeros((1, 16, 16, 3))
    )
    _save(directory, "vae", config.to_dict(), params, "vae")


def _write_clip(directory: Path, words: tokenizer.Tokenizer) -> None:
    import dataclasses

    config = towers.ClipConfig(
        text_config=towers.TextConfig(
            vocab_size=words.vocab_size,
            max_position_embeddings=LENGTH,
            num_hidden_layers=1,
            bos_token_id=words.bos_id,
            eos_token_id=words.eos_id,
            pad_token_id=words.eos_id,
            **TEXT_SIZES,
        ),
        vision_config=towers.VisionConfig(
            num_hidden_layers=1, image_size=64, patch_size=16, **TEXT_SIZES
        ),
        projection_dim=WIDTH,
    )
    params = initialise.parameters(
        towers.CLIP(config),
        jax.random.key(1),
        jnp.zeros((1, LENGTH), jnp.int32),
        jnp.zeros((1, 64, 64, 3)),
        overrides={
            ".*class_embedding": initialise.normal(0.02),
            "logit_scale": initialise.constant(2.6),
        },
    )
    _save(directory, "clip", dataclasses.asdict(config), params, "clip")


def _save(directory, component, config, params, kind):
    pretrained.save_component(directory, component, config, params, kind, np.float16)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A directory in the embedded layout; do not write to it."""
    return write_backbone(tmp_path_factory.mktemp("backbone"))
