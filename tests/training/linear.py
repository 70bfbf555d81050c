"""A tiny method whose answer is known: linear regression on exact data."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from jaxanom.contracts import Method, Phase

TRUE_WEIGHTS = np.array([[1.5], [-2.0], [0.25]], np.float32)
TRUE_BIAS = np.array([0.75], np.float32)
BATCH_SIZE = 8


def init(key):
    params = {
        "linear": {
            "kernel": 0.1 * jax.random.normal(key, (3, 1)),
            "bias": jnp.zeros((1,)),
        }
    }
    return params, {"scale": jnp.ones(())}


def loss_fn(params, frozen, batch, key):
    layer = params["linear"]
    predicted = (frozen["scale"] * batch["x"]) @ layer["kernel"] + layer["bias"]
    error = jnp.mean((predicted - batch["y"]) ** 2)
    return error, {"error": error}


def noisy_loss_fn(params, frozen, batch, key):
    """Draws from the key, so that a resumed run shows whether keys are replayed."""
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    return loss_fn(params, frozen, batch | {"x": batch["x"] + noise}, key)


def make(loss=loss_fn, **phase):
    return Method(init=init, phases=(Phase("fit", loss, **phase),))


def batch_at(step, batch_size=BATCH_SIZE):
    x = np.random.default_rng(step).normal(size=(batch_size, 3)).astype(np.float32)
    return {"x": x, "y": x @ TRUE_WEIGHTS + TRUE_BIAS}


def make_batches(phase_name, start_step):
    while True:
        yield batch_at(start_step)
        start_step += 1


def phases_config(num_steps, **settings):
    defaults = {"optimizer": "adam", "learning_rate": 0.1, "clip_norm": 0.0}
    return {"fit": common.PHASE | defaults | {"num_steps": num_steps} | settings}
