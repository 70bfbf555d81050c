"""A stand-in autoencoder and network for drawing defects; they compile at once."""

import types

import jax.numpy as jnp
import numpy as np

from jaxanom.methods.defect_generation import model, objective, predict
from jaxanom.models.latent import noise_schedule

SIZE, SIDE = 16, 4
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
    jnp.asarray(np.random.default_rng(3).normal(size=(2, 4)), jnp.float32),
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
    network=stand_in, trained_as=None, final_alpha=SCHEDULE.final_alpha, **options
):
    return predict.generator(
        Blocks,
        network,
        lambda params, frozen: params,
        SCHEDULE._replace(final_alpha=final_alpha),
        predict.Options(**({"num_steps": 4, "refine": False} | options)),
        trained_as or objective.Options(),
        ((SIDE, SIDE),),
        "max",
    )


def latent_mask(batch):
    return np.asarray(model.pool_mask(batch["mask"], (SIDE, SIDE)))[..., None] > 0.5
