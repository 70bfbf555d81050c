import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.losses import classification


def test_cross_entropy_is_minus_the_log_of_the_softmax():
    logits = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    target = np.array([0, 3, 1, 2, 2])
    found = classification.cross_entropy(jnp.asarray(logits), jnp.asarray(target))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = -np.log(probability[:, np.arange(5), target]).mean(1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_padding_rows_count_nowhere():
    logits = jnp.asarray([[2.0, 0.0], [0.0, 5.0], [9.0, -9.0]])
    target, valid = jnp.asarray([0, 0, 1]), jnp.asarray([True, True, False])
    for measure in (classification.cross_entropy, classification.accuracy):
        found = measure(logits, target, valid)
        assert float(found) == pytest.approx(float(measure(logits[:2], target[:2])))
        assert float(found) != pytest.approx(float(measure(logits, target)))


def test_a_confident_mistake_has_a_finite_value_and_gradient():
    value, grads = jax.value_and_grad(
        lambda logits: classification.cross_entropy(logits, jnp.asarray([1]))
    )(jnp.asarray([[1e4, -1e4]]))
    assert float(value) == pytest.approx(2e4)
    np.testing.assert_allclose(grads, [[1.0, -1.0]])


def test_accuracy_of_each_particle():
    logits = jnp.asarray([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    found = classification.accuracy(logits, jnp.asarray([0, 0]))
    np.testing.assert_allclose(found, [1.0, 0.5])
