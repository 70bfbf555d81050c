"""One tiny Bayes-PFL, its weights and a batch, for the tests beside this file."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from configs.bayes_pfl import base
from jaxanom.jobs import config_file
from jaxanom.methods import bayes_pfl
from jaxanom.methods.bayes_pfl import distributions, features, model, objective
from jaxanom.methods.bayes_pfl import options as settings
from jaxanom.models import backbones

SIZE = 16
CATEGORIES = ("pill", "juice_bottle", "nut")
DATASET = types.SimpleNamespace(categories=CATEGORIES, image_size=(SIZE, SIZE))
SMALL = {
    "num_prompts": 2,
    "num_context": 3,
    "num_states": 2,
    "num_flow_steps": 3,
    "layers": (1,),
    "draws_test": 3,
    "top_k": 5,
    "text_chunk": 4,
}


def config(backbone, **options):
    found = config_file.load("configs/bayes_pfl/foundry.py:smoke")
    found.model.directory = str(backbone)
    for key, value in (SMALL | options).items():
        found.bayes_pfl[key] = value
    return found


def options_of(**changes):
    """The recipes' defaults but for some."""
    found = base.config().bayes_pfl
    found.update(changes)
    return settings.read_options(found)


class Made:
    """What `make` puts together, part by part."""

    def __init__(self, backbone, **options):
        self.config = config(backbone, **options)
        self.method = bayes_pfl.make(self.config, DATASET)
        self.options = settings.read_options(self.config.bayes_pfl)
        clip_config = backbones.load_clip(backbone).module.config
        self.towers = bayes_pfl.build_towers(clip_config, self.options, "float32")
        width = clip_config.projection_dim
        hidden = clip_config.vision_config.hidden_size // 2
        self.network = model.Network(self.options, width, hidden)
        params, self.frozen = self.method.init(jax.random.key(0))
        self.params = spread(params)

        self._compiled = {}

    def seen(self, image):
        return features.look(
            self.towers.image, self.frozen["clip"], image, self.options.layers
        )

    def loss_and_grads(self, rows, stage=1, entry=1, noise=None):
        """(loss, terms, gradients) on cached features, compiled once per stage."""
        noise = self.noise(rows["label"].shape[0]) if noise is None else noise
        rows = dict(rows)
        rows |= self.seen(rows.pop("image"))._asdict()
        if stage not in self._compiled:
            self._compiled[stage] = jax.jit(self._loss_and_grads(stage))
        (value, terms), grads = self._compiled[stage](
            self.params, self.frozen, rows, noise, jnp.asarray(entry)
        )
        return float(value), {name: float(term) for name, term in terms.items()}, grads

    def _loss_and_grads(self, stage):
        def loss(params, frozen, rows, noise, entry):
            return objective.loss_of(
                self.network,
                self.towers,
                stage,
                DATASET.image_size,
                params,
                frozen,
                rows,
                noise,
                entry,
            )

        return jax.value_and_grad(loss, has_aux=True)

    def noise(self, num_rows, num_draws=1, seed=3):
        return distributions.noise(
            jax.random.key(seed), num_rows, num_draws, self.network.width
        )


def spread(params):
    """Weights large enough that every part matters."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(11)
    moved = [
        leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32)
        for leaf in leaves
    ]
    return tree.unflatten(moved)


def batch(num_rows=4, seed=0):
    rng = np.random.default_rng(seed)
    image = np.round(rng.uniform(size=(num_rows, SIZE, SIZE, 3)) * 255) / 255
    mask = np.zeros((num_rows, SIZE, SIZE), np.float32)
    for row in range(1, num_rows, 2):
        top, left = rng.integers(0, SIZE - 6, 2)
        mask[row, top : top + 5, left : left + 3] = 1
    return {
        "image": jnp.asarray(image, jnp.float32),
        "mask": jnp.asarray(mask),
        "label": jnp.asarray(mask.max((1, 2)), jnp.int32),
        "category_id": jnp.arange(num_rows, dtype=jnp.int32) % 3,
        "defect_id": jnp.asarray(mask.max((1, 2)), jnp.int32),
        "index": jnp.arange(num_rows, dtype=jnp.int32),
        "valid": jnp.ones(num_rows, bool),
    }
