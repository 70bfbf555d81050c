"""CLIP's residual image tower and its text tower on prompts, whole and shared."""

import app_goldens as goldens
import app_towers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.models.clip import prompts, shared_prefix
from jaxanom.models.clip import towers as clip

PRECISIONS = pytest.mark.parametrize("precise", [True, False], ids=["f64", "f32"])
FORMS = {"whole": shared_prefix.whole, "shared": shared_prefix.cut}


@PRECISIONS
def test_image_features_of_all_positions(precise):
    arrays = goldens.load("batches")
    with goldens.precision(precise) as dtype:
        towers = app_towers.load(dtype)
        found = jax.jit(lambda: app_towers.image_features(towers, dtype))()
    golden = goldens.wanted(arrays, "img_seq_features")
    # The README's 2e-5 for features in float32.
    goldens.assert_near(found, golden, precise, single=2e-5)
    pooled = clip.normalise(np.asarray(found, np.float64)[:, 0])
    goldens.assert_within(pooled, arrays["img_pool_norm"], 2e-5)


@PRECISIONS
@pytest.mark.parametrize("form", FORMS)
def test_text_features_of_all_particles_and_classes(form, precise):
    arrays = goldens.load("forward")
    start = goldens.load("prompt_learner_init")["ctx"]
    with goldens.precision(precise) as dtype:
        towers = app_towers.load(dtype)
        found = jax.jit(
            lambda vectors: shared_prefix.text_features(
                towers.text_params,
                towers.text_config,
                FORMS[form](towers.layout),
                vectors,
                dtype,
            )
        )(np.asarray(start, dtype))
    golden = goldens.wanted(arrays, "text_features_init")
    goldens.assert_near(found, golden, precise, single=2e-5)
    if "text_features_norm_init" in arrays:
        normed = clip.normalise(np.asarray(found, np.float64))
        goldens.assert_within(normed, arrays["text_features_norm_init"], 2e-5)


def test_prompts_are_assembled_as_released():
    arrays = goldens.load("forward")
    learner = goldens.load("prompt_learner_init")
    towers = app_towers.load(np.float32)
    table = towers.text_params["text_model"]["embeddings"]["token_embedding"]
    found = prompts.assemble(towers.layout, table["embedding"], learner["ctx"])
    embeddings = np.asarray(found.token_embeddings)
    flat = embeddings.reshape(-1, *embeddings.shape[2:])
    assert np.array_equal(flat, arrays["prompts_init"])
    assert np.array_equal(flat[:, :1], learner["token_prefix"])
    assert np.array_equal(
        flat[:, 1 + towers.layout.num_vectors :], learner["token_suffix"]
    )


def test_a_tower_that_sees_what_follows_is_noticed(monkeypatch):
    """Negative control: without the causal mask features are far from the golden."""
    arrays = goldens.load("forward")
    start = goldens.load("prompt_learner_init")["ctx"]
    monkeypatch.setattr(shared_prefix, "_causal", lambda n: jnp.zeros((n, n)))
    towers = app_towers.load(np.float32)
    found = shared_prefix.text_features(
        towers.text_params,
        towers.text_config,
        shared_prefix.whole(towers.layout),
        jnp.asarray(start),
    )
    with pytest.raises(AssertionError, match="largest gap"):
        golden = goldens.wanted(arrays, "text_features_init")
        goldens.assert_near(found, golden, False, single=2e-5)
