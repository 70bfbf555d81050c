"""One tiny APP: random text tower, prompts and features, for the tests beside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs.app import base
from jaxanom.methods.app import model, objective, options
from jaxanom.models.clip import prompts, shared_prefix, towers
from jaxanom.models.ops import initialise

CONFIG = towers.TextConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=16,
    projection_dim=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=10,
    bos_token_id=18,
    eos_token_id=19,
    pad_token_id=0,
)


NUM_VECTORS, NUM_CLASSES, BATCH = 3, 4, 6


def of(section, **changes):
    """Options of one section: the recipes' defaults but for some."""
    config = base.config()
    config.app[section].update(changes)
    return getattr(options.read(config.app), section)


def prior_of(**changes):
    return of("prior", **changes)


def particles_of(**changes):
    return of("particles", **changes)


class Special:
    bos_id, eos_id, pad_id = 18, 19, 0


@functools.cache
def world(num_particles=3):
    """(network, params, frozen, batch)."""
    template = (~0, ~1, ~2, prompts.NAME, 2)
    laid = prompts.make_layout(
        template, [[3], [4, 5], [6], [7, 8]], Special, NUM_VECTORS
    )
    tower = model.TextTower(CONFIG, shared_prefix.cut(laid))
    network = objective.Network(tower, NUM_VECTORS, "category_id")
    module = towers.TextTower(CONFIG)
    text = initialise.parameters(
        module, jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
    )
    params = model.init(jax.random.key(1), num_particles, NUM_VECTORS, 8, 6, std=0.5)
    rng = np.random.default_rng(2)
    features = towers.normalise(jnp.asarray(rng.normal(size=(BATCH, 6)), jnp.float32))
    frozen = {
        "text": text,
        "logit_scale": jnp.asarray(2.0),
        "columns": jnp.tile(jnp.arange(NUM_CLASSES), (NUM_CLASSES, 1)),
        "train_features": features[:4],
    }
    batch = {
        "image_features": features,
        "category_id": jnp.asarray(rng.integers(0, NUM_CLASSES, BATCH)),
        "valid": jnp.ones(BATCH, bool),
    }
    return network, params, frozen, batch


def loss_and_grads(prior, params, batch, weight=0.0, num_particles=3):
    network, _, frozen, _ = world(num_particles)
    loss_fn = objective.particle_loss(network, prior, weight)
    return jax.jit(
        jax.value_and_grad(lambda p: loss_fn(p, frozen, batch, None), has_aux=True)
    )(params)
