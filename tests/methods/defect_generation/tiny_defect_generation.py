"""A stand-in autoencoder and network for drawing defects; they compile at once."""

import types

import jax.numpy as jnp
import numpy as np

from configs.defect_generation import base
from jaxanom.methods.defect_generation import model, options, predict
from jaxanom.models.latent import noise_schedule

SIZE, SIDE = 16, 4
DEFAULTS = base.config()
SCHEDULE = noise_schedule.read({"timestep_spacing": "linspace"}, "stand-in")


class Blocks:
    """4x4 pixels -> one cell of their means, and back; exact on constant blocks."""

    @staticmethod
    def apply(variables, array, method):
        if method == "encode":
            cells = array.reshape(array.shape[0], SIDE, 4, SIDE, 4, 3).mean((2, 4))
            return types.SimpleNamespace(mean=variables["params"]["gain"] * cells)
        found = jnp.repeat(jnp.repeat(array, 4, 1), 4, 2)
        return jnp.clip(found / variables["params"]["gain"], 0, 1)


def stand_in(params, latents, timesteps, context, bias):
    """Bounded, mixes all pixels, hears its context, knows its timestep."""
    del bias
    told = context.mean((1, 2))[:, None, None, None]
    mixed = latents + latents.mean((1, 2), keepdims=True)
    time = 1e-3 * timesteps[:, None, None, None]
    return jnp.tanh(params["gain"] * mixed + told + time)


CONTEXTS = model.Contexts(
    jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 4)), jnp.float32),
    jnp.asarray(np.random.default_rng(2).normal(size=(1, 2, 4)), jnp.float32),
)
FROZEN = {"vae": {"gain": jnp.asarray(2.0)}, "contexts": CONTEXTS._asdict()}
PARAMS = {"gain": jnp.asarray(0.3)}


def stand_in_batch(seed=(3, 4)):
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.uniform(0.2, 0.8, (2, 4, 4, 3)), 4, 1), 4, 2)
    mask = np.zeros((2, SIZE, SIZE), np.float32)
    mask[0, 4:12, 0:8] = 1
    mask[1, 13, 14] = 1
    return {
        "image": jnp.asarray(image, jnp.float32),
        "mask": jnp.asarray(mask),
        "defect_id": jnp.asarray([1, 2]),
        "category_id": jnp.zeros(2, jnp.int32),
        "seed": jnp.asarray(seed),
    }


def stand_in_generator(
    network=stand_in, trained_as=None, final_alpha=SCHEDULE.final_alpha, **changes
):
    return predict.generator(
        Blocks,
        network,
        lambda params, frozen: params,
        SCHEDULE._replace(final_alpha=final_alpha),
        drawing(**({"num_steps": 4, "refine": False} | changes)),
        trained_as or training(),
        ((SIDE, SIDE),),
    )


def training(**changes):
    """Options of training: the defaults, with changes."""
    return options.read_training({**DEFAULTS.defect_generation, **changes})


def drawing(**changes):
    """Options of drawing: the defaults, with changes."""
    return options.read_generation({**DEFAULTS.generate, **changes})


def latent_mask(batch):
    return np.asarray(model.pool_mask(batch["mask"], (SIDE, SIDE)))[..., None] > 0.5


def masks(seed=0, shape=(3, 16, 16)):
    """Rectangles that touch no regular place, one a row."""
    rng = np.random.default_rng(seed)
    found = np.zeros(shape, np.float32)
    height, width = shape[1] // 4, shape[2] // 4 + 1
    for row in range(shape[0]):
        top = rng.integers(0, shape[1] - height + 1)
        left = rng.integers(0, shape[2] - width + 1)
        found[row, top : top + height, left : left + width] = 1
    return found
