"""A KL autoencoder from scratch (arXiv 2112.10752, section 3.1, without the critic)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom import sections
from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.latent import vae
from jaxanom.models.ops import initialise
from jaxanom.types import Array, PRNGKey


class Options(NamedTuple):
    """Section `pretraining`; configs/pretraining/base.py explains it."""

    tower: str
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    kl_weight: float
    crop: int


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the autoencoder's training; phase "autoencoder".

    The loss is the squared error plus a tenth of the absolute error plus `kl_weight`
    times the KL divergence from a unit Gaussian, all means over elements.
    """
    settings = sections.read(config.pretraining, Options, "config.pretraining")
    tower = vae.VaeConfig(
        block_out_channels=settings.block_out_channels,
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.norm_num_groups,
        sample_size=dataset.image_size[0],
        scaling_factor=1.0,
        # Without attention the network is a convolution: training on crops is training
        # on images, at a fraction of the cost.
        mid_block_add_attention=False,
    )
    module = vae.AutoencoderKL(tower)

    def loss_fn(params, frozen, batch, key):
        del frozen
        variables = {"params": params}
        key_crop, key_latents = jax.random.split(key)
        image = random_crops(key_crop, batch["image"], settings.crop)
        moments = module.apply(variables, image, method="encode")
        latents = vae.sample(moments, key_latents)
        decoded = module.apply(variables, latents, clip=False, method="decode")
        difference = decoded - image
        squared = jnp.mean(difference**2)
        absolute = jnp.mean(jnp.abs(difference))
        divergence = 0.5 * jnp.mean(
            moments.mean**2 + jnp.exp(moments.log_variance) - moments.log_variance - 1.0
        )
        loss = squared + 0.1 * absolute + settings.kl_weight * divergence
        psnr = -10 * jnp.log10(squared)
        return loss, {"psnr": psnr, "kl": divergence}

    def init(key):
        side = tower.downsampling * 4
        return initialise.parameters(module, key, jnp.zeros((1, side, side, 3))), {}

    def export(params, frozen, directory, batch):
        del frozen
        moments = jax.jit(lambda p, x: module.apply({"params": p}, x, method="encode"))(
            params, batch["image"]
        )
        factor = float(1 / np.std(np.asarray(moments.mean)))
        scaled = dataclasses.replace(tower, scaling_factor=factor)
        pretrained.save_component(
            directory, "vae", scaled.to_dict(), params, "vae", np.float16
        )

    return Method(init=init, phases=(Phase("autoencoder", loss_fn),), export=export)


def random_crops(key: PRNGKey, image: Array, side: int) -> Array:
    """Cuts one square from each row of [B, H, W, 3]; side 0 keeps the images whole."""
    if side == 0:
        return image
    rows, height, width, channels = image.shape
    limits = jnp.array([height - side + 1, width - side + 1])
    corners = jax.random.randint(key, (rows, 2), 0, limits)

    def cut(picture, corner):
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(picture, start, (side, side, channels))

    return jax.vmap(cut)(image, corners)
