import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.losses import contrastive


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((2, 5, 8)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(texts)


def loss(images, texts, scale, caption_ids):
    """Equal captions are positives of each other."""
    ids = jnp.asarray(caption_ids)
    return contrastive.loss(images, texts, scale, ids[:, None] == ids)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_distinct_captions_give_the_usual_symmetric_loss(case):
    images, texts = case
    logits = 5.0 * unit(np.asarray(images)) @ unit(np.asarray(texts)).T
    rows = np.diag(logits) - np.log(np.exp(logits).sum(1))
    columns = np.diag(logits) - np.log(np.exp(logits).sum(0))
    found, metrics = loss(images, texts, 5.0, jnp.arange(5))
    # Logits up to 5 in float32.
    assert float(metrics["image_to_text"]) == pytest.approx(-rows.mean(), rel=1e-5)
    assert float(metrics["text_to_image"]) == pytest.approx(-columns.mean(), rel=1e-5)
    assert float(found) == pytest.approx(-(rows + columns).mean() / 2, rel=1e-5)
    assert float(metrics["floor"]) == 0
    # Negative control: the directions are not the same number.
    assert abs(rows.mean() - columns.mean()) > 1e-3


def test_equal_captions_are_positives_and_the_floor_is_reached():
    """Two groups at right angles: no loss is left but the entropy of the targets."""
    ids = jnp.array([0, 0, 0, 1])
    features = jnp.eye(2)[ids]
    found, metrics = loss(features, features, 50.0, ids)
    floor = (3 * np.log(3) + 0) / 4
    assert float(metrics["floor"]) == pytest.approx(floor, rel=1e-6)
    assert float(found) == pytest.approx(floor, rel=1e-5)
    assert float(metrics["accuracy"]) == 1
    grads = jax.grad(lambda x: loss(x, features, 50.0, ids)[0])(features)
    assert np.abs(grads).max() < 1e-5
    # Negative control: as negatives of each other they pull the towers apart.
    single, _ = loss(features, features, 50.0, jnp.arange(4))
    jitter = features + jnp.array([[0.0, 0.1], [0.0, 0.0], [0.0, -0.1], [0.0, 0.0]])
    pulled = jax.grad(lambda x: loss(x, jitter, 50.0, jnp.arange(4))[0])(features)
    assert float(single) == pytest.approx(floor, rel=1e-5)
    assert np.abs(pulled).max() > 0.1


def test_permuting_the_batch_changes_nothing(case):
    images, texts = case
    ids = jnp.array([3, 1, 3, 0, 1])
    order = jnp.array([4, 2, 0, 1, 3])
    first, _ = loss(images, texts, 7.0, ids)
    second, _ = loss(images[order], texts[order], 7.0, ids[order])
    assert float(first) == pytest.approx(float(second), rel=1e-5)
    broken, _ = loss(images[order], texts, 7.0, ids)  # negative control
    assert abs(float(broken) - float(first)) > 1e-2


def test_only_directions_of_features_matter(case):
    images, texts = case
    ids = jnp.arange(5)
    first, _ = loss(images, texts, 7.0, ids)
    second, _ = loss(3 * images, 0.2 * texts, 7.0, ids)
    assert float(first) == pytest.approx(float(second), rel=1e-5)


def test_one_pair_has_no_loss(case):
    images, texts = case
    found, metrics = loss(images[:1], texts[:1], 7.0, jnp.array([4]))
    assert float(found) == 0 and float(metrics["accuracy"]) == 1


def test_bfloat16_features_are_compared_in_float32(case):
    images, texts = case
    found, _ = loss(
        images.astype(jnp.bfloat16), texts.astype(jnp.bfloat16), 100.0, jnp.arange(5)
    )
    assert found.dtype == jnp.float32
