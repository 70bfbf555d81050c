"""A text-conditional latent UNet from scratch (arXiv 2112.10752)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom import record, sections
from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.diffusion import schedules, targets
from jaxanom.losses import denoising
from jaxanom.methods.pretraining import captions
from jaxanom.models import backbones
from jaxanom.models.checkpoints import pretrained, sources
from jaxanom.models.latent import unet

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


class Options(NamedTuple):
    """Section `pretraining`; configs/pretraining/base.py explains it."""

    tower: str
    autoencoder: str
    text_encoder: str
    variant: str
    clip_act: str
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    num_heads: int
    empty_fraction: float
    hole_fraction: float


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the UNet's training; phase "unet".

    Velocity regression on cached latents. Each caption is drawn from: empty
    (`empty_fraction`, for guidance), the defect alone, category and state, category and
    defect. `hole_fraction` of the rows have a random box cut out of the noisy latents,
    a caption of the category alone, and no loss inside the box.
    """
    settings = sections.read(config.pretraining, Options, "config.pretraining")
    loading = sources.chosen(config.pretraining)
    autoencoder = backbones.load_autoencoder(settings.autoencoder, loading)
    text = backbones.load_text_encoder(settings.text_encoder, loading)
    tower = backbones.small_unet(
        backbones.latent_channels(autoencoder),
        text.width,
        settings.block_out_channels,
        settings.layers_per_block,
        settings.num_heads,
        fine_self_attention=False,
        sample_size=backbones.latent_grid(autoencoder, dataset.image_size)[0],
    )
    module = unet.UNet(tower)
    table = captions.table(dataset.categories, dataset.defect_types)
    alphas_cumprod = schedules.alphas_cumprod(**SCHEDULE)

    def encode(frozen, batch):
        moments = autoencoder.module.apply(
            {"params": frozen["vae"]}, batch["image"], method="encode"
        )
        kept = ("label", "category_id", "defect_id", "valid")
        return {"latents": moments.mean, **{name: batch[name] for name in kept}}

    def loss_fn(params, frozen, batch, key):
        key_text, key_hole, key_noise, key_timestep = jax.random.split(key, 4)
        latents = batch["latents"]
        rows = latents.shape[0]
        hole = _boxes(key_hole, latents.shape[:3], settings.hole_fraction)
        has_hole = jnp.any(hole, (1, 2, 3))
        numbers = _draw_captions(key_text, frozen, batch, settings.empty_fraction)
        numbers = jnp.where(has_hole, frozen["neutral"][batch["category_id"]], numbers)
        noise = jax.random.normal(key_noise, latents.shape)
        timesteps = targets.draw_timesteps(key_timestep, rows, len(alphas_cumprod))
        noisy = targets.add_noise(latents, noise, timesteps, alphas_cumprod)
        prediction = module.apply(
            {"params": params},
            jnp.where(hole, 0.0, noisy),
            timesteps,
            frozen["states"][numbers],
        )
        target = targets.velocity(latents, noise, timesteps, alphas_cumprod)
        return denoising.regression(target, prediction, ~hole), {}

    def init(key):
        frozen = {
            "vae": autoencoder.params,
            "states": jnp.asarray(text.encode(list(table.texts))),
            **{name: jnp.asarray(part) for name, part in table.numbers().items()},
        }
        return backbones.new_unet(tower, key).params, frozen

    def export(params, frozen, directory, batch):
        del frozen, batch
        pretrained.save_component(
            directory, "unet", tower.to_dict(), params, "unet", np.float16
        )
        scheduler = {
            "_class_name": "DDIMScheduler",
            **SCHEDULE,
            "clip_sample": False,
            "set_alpha_to_one": True,
            "steps_offset": 0,
            "timestep_spacing": "linspace",
            "prediction_type": "v_prediction",
        }
        record.write_json(directory / "scheduler/scheduler_config.json", scheduler)

    return Method(
        init=init, phases=(Phase("unet", loss_fn),), encode=encode, export=export
    )


def _draw_captions(key, frozen, batch, empty_fraction):
    """Chooses a caption index per row, [B]; see `make` for the kinds."""
    rows = batch["label"].shape[0]
    category, defect = batch["category_id"], batch["defect_id"]
    key_kind, key_template = jax.random.split(key)
    draw = jax.random.randint(key_template, (rows,), 0, 1 << 16)
    named = frozen["specific"][category, defect, draw % frozen["specific"].shape[2]]
    state = frozen["state"][category, batch["label"], draw % frozen["state"].shape[2]]
    alone = jnp.where(defect > 0, frozen["alone"][defect], named)
    choices = jnp.stack([named, state, alone, jnp.zeros_like(named)])
    rest = 1 - empty_fraction
    odds = jnp.array([0.5 * rest, 0.3 * rest, 0.2 * rest, empty_fraction])
    kind = jax.random.choice(key_kind, 4, (rows,), p=odds)
    return jnp.take_along_axis(choices, kind[None], 0)[0]


def _boxes(key, shape, fraction):
    """Draws one box per row, [B, h, w, 1] bool; most rows have none.

    Sides are between an eighth and a half of the latents.
    """
    rows, height, width = shape
    key_has, key_sides, key_place = jax.random.split(key, 3)
    has = jax.random.bernoulli(key_has, fraction, (rows, 1, 1))
    limits = jnp.array([height, width])
    sides = jax.random.uniform(key_sides, (rows, 2), minval=0.125, maxval=0.5) * limits
    start = jax.random.uniform(key_place, (rows, 2)) * (limits - sides)
    stop = start + sides

    def inside(axis, size):
        place = jnp.arange(size) + 0.5
        return (place > start[:, axis, None]) & (place < stop[:, axis, None])

    box = inside(0, height)[:, :, None] & inside(1, width)[:, None, :]
    return (box & has)[..., None]
