"""Tiny random towers, and the data of tokens drawn by numpy: little to compile."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxanom.jobs import config_file
from jaxanom.methods.adp import model, objective, options
from jaxanom.methods.adp.memory import crops
from jaxanom.methods.adp.token import wording

NUM_VECTORS = 2
NUM_SHOTS = 2


class Parts(NamedTuple):
    towers: model.Towers
    params: dict[str, Any]
    words: Any
    around: wording.Texts
    layouts: objective.Layouts
    pyramid: crops.Pyramid


@pytest.fixture(scope="session")
def parts(tiny_backbone) -> Parts:
    settings = ml_collections.ConfigDict(
        {
            "directory": str(tiny_backbone),
            **dict.fromkeys(
                ("clip", "autoencoder", "text_encoder", "unet", "scheduler"), ""
            ),
            **dict.fromkeys(("variant", "clip_act"), ""),
            "dtype": "float32",
            "remat": "none",
        }
    )
    towers, params = model.load(settings, 0)
    words = wording.phrases("foundry", ())
    around = wording.lay_out(towers, words, NUM_VECTORS)
    layouts = wording.training_layouts(towers, words, around, NUM_VECTORS)
    return Parts(towers, params, words, around, layouts, crops.pyramid((1, 2)))


@pytest.fixture(scope="session")
def token_data(parts):
    """(seed, shots, padded shots) -> data of one token, all of it drawn."""

    def make(seed, num_shots=NUM_SHOTS, slots=NUM_SHOTS, padding=0.0):
        rng = np.random.default_rng(seed)
        width = parts.towers.clip_text.config.projection_dim
        depth = model.token_table(parts.params).shape[1]

        def unit(*shape):
            found = rng.normal(size=(*shape, width))
            return jnp.asarray(
                found / np.linalg.norm(found, axis=-1, keepdims=True), jnp.float32
            )

        def shots(array):
            array[num_shots:] = padding
            return jnp.asarray(array, jnp.float32)

        crops_shape = (slots, len(parts.pyramid.boxes), 4, 4, 4)
        weights = rng.random((slots, 3))
        weights[num_shots:] = 0
        states = parts.layouts.normal.eos_positions.shape
        others = parts.layouts.anomalous.eos_positions.shape
        return objective.TokenData(
            mean=shots(rng.normal(size=crops_shape)),
            std=shots(0.1 * np.ones(crops_shape)),
            num_shots=jnp.int32(num_shots),
            features=unit(slots * 3),
            weights=jnp.asarray((weights / weights.sum()).ravel(), jnp.float32),
            start=jnp.asarray(0.1 * rng.normal(size=(NUM_VECTORS, depth)), jnp.float32),
            class_normal=unit(*states),
            class_anomalous=unit(*others),
            limit=jnp.float32(5.0),
        )

    return make


@pytest.fixture(scope="session")
def terms():
    """() -> options of the objective as the recipe has them, with changes."""
    section = config_file.load("configs/adp/foundry.py").adp
    recipe = options.of_objective(options.read(section))
    return lambda **changes: recipe._replace(**changes)


@pytest.fixture(scope="session")
def stacked():
    return lambda rows: jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
