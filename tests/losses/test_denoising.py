import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.losses import denoising


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    target, noise_pred = rng.standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
    mask = np.zeros((3, 4, 4, 1), np.float32)
    mask[0, :2, :3] = 1
    mask[1, 3, 3] = 1
    return jnp.asarray(target), jnp.asarray(noise_pred), jnp.asarray(mask)


def test_regression_is_the_mean_square(case):
    target, noise_pred, _ = case
    found = denoising.regression(target, noise_pred)
    # Sums of 96 float32 numbers.
    assert float(found) == pytest.approx(float(((target - noise_pred) ** 2).mean()))


def test_masked_regression_counts_the_mask_over_all_elements(case):
    target, noise_pred, mask = case
    found = denoising.regression(target, noise_pred, mask)
    wanted = np.mean((np.asarray(mask) * np.asarray(target - noise_pred)) ** 2)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    both = found + denoising.regression(target, noise_pred, 1 - mask)
    whole = denoising.regression(target, noise_pred)
    assert float(both) == pytest.approx(float(whole), rel=1e-5)


def test_area_balance_gives_each_mask_its_own_mean(case):
    target, _, mask = case
    found = denoising.regression(target, target - 2.0, mask, area_balanced=True)
    # Every masked element has square 4; the third row has no mask and counts 0.
    assert float(found) == pytest.approx(4 * 2 / 3, rel=1e-6)
    plain = denoising.regression(target, target - 2.0, mask)
    assert float(plain) == pytest.approx(4 * (6 + 1) / 48, rel=1e-6)


def test_nan_outside_the_mask_reaches_neither_value_nor_gradient(case):
    target, noise_pred, mask = case
    spoiled = jnp.where(mask > 0.5, noise_pred, jnp.nan)
    value, grads = jax.value_and_grad(denoising.regression, 1)(target, spoiled, mask)
    assert np.isfinite(value) and np.isfinite(grads).all()
    assert np.abs(grads).max() > 0
    # Negative control: multiplication would have let it through.
    assert np.isnan(jnp.mean((mask * (target - spoiled)) ** 2))


def test_the_mean_of_rows_leaves_padding_out():
    rows = jnp.array([1.0, 3.0, jnp.nan])
    assert float(denoising.row_mean(rows, jnp.array([True, True, False]))) == 2
    assert float(denoising.row_mean(rows[:2])) == 2
    assert float(denoising.row_mean(rows, jnp.zeros(3, bool))) == 0


def test_row_weights_scale_rows(case):
    target, noise_pred, _ = case
    weights = jnp.array([2.0, 0.0, 0.0])
    found = denoising.regression(target, noise_pred, weights=weights)
    wanted = 2 * float(((target[0] - noise_pred[0]) ** 2).mean()) / 3
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_bfloat16_predictions_are_compared_in_float32(case):
    target, noise_pred, _ = case
    found = denoising.regression(target, noise_pred.astype(jnp.bfloat16))
    assert found.dtype == jnp.float32
