import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.losses import segmentation

GOLDEN = pathlib.Path(__file__).parents[1] / "parity/data/bayes_pfl/losses.npz"


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(2 * rng.standard_normal((3, 6, 6, 2)), jnp.float32)
    mask = jnp.asarray(rng.random((3, 6, 6)) < 0.2, jnp.float32)
    return logits, mask


def test_focal_without_focus_is_the_cross_entropy(case):
    logits, mask = case
    log_prob = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_prob, mask[..., None].astype(int), -1)
    found = segmentation.focal(logits, mask, gamma=0.0)
    # Means of 108 float32 numbers.
    assert float(found) == pytest.approx(float(-chosen.mean()), rel=1e-5)


def test_focal_of_known_probabilities():
    probability = np.array([0.9, 0.6, 0.1, 0.2])
    logits = np.log(np.stack([1 - probability, probability], -1))[None, None]
    mask = np.array([1, 0, 1, 0])[None, None]
    true = np.array([0.9, 0.4, 0.1, 0.8])
    wanted = -((1 - true) ** 2) * np.log(true)
    found = segmentation.focal(jnp.asarray(logits), jnp.asarray(mask))
    assert float(found) == pytest.approx(wanted.mean(), rel=1e-5)
    balanced = segmentation.focal(
        jnp.asarray(logits), jnp.asarray(mask), class_balanced=True
    )
    assert float(balanced) == pytest.approx(wanted[::2].mean() + wanted[1::2].mean())
    # Negative control: the classes may not be exchanged.
    assert float(segmentation.focal(jnp.asarray(logits), jnp.asarray(1 - mask))) != (
        pytest.approx(wanted.mean(), rel=0.05)
    )


def test_focal_of_log_odds_is_focal_on_the_difference_of_logits(case):
    logits, mask = case
    for balanced in (False, True):
        pair = segmentation.focal(logits, mask, class_balanced=balanced)
        single = segmentation.focal(
            logits[..., 1] - logits[..., 0], mask, class_balanced=balanced
        )
        assert float(single) == pytest.approx(float(pair), rel=1e-5)


def test_confident_mistakes_keep_value_and_gradient_finite():
    logits = jnp.array([[[200.0, -200.0]]])
    mask = jnp.ones((1, 1, 2)).at[0, 0, 1].set(0)
    value, grads = jax.value_and_grad(segmentation.focal)(-logits, mask)
    assert float(value) == pytest.approx(200, rel=1e-6)
    np.testing.assert_allclose(grads, [[[-0.5, 0.5]]], rtol=1e-5)
    # Negative control: the logarithm of a float32 probability would be infinite.
    assert np.isinf(jnp.log(jax.nn.sigmoid(-logits))).any()


def test_dice_of_known_overlaps():
    mask = jnp.zeros((1, 4, 4)).at[0, :2].set(1)  # 8 pixels
    guess = jnp.zeros((1, 4, 4)).at[0, 1:3].set(1)  # 8 pixels, 4 shared
    assert float(segmentation.dice(guess, mask)) == pytest.approx(0.5, abs=1e-5)
    assert float(segmentation.dice(mask, mask)) == pytest.approx(0, abs=1e-6)
    assert float(segmentation.dice(1 - mask, mask)) == pytest.approx(1, abs=1e-5)
    nothing = jnp.zeros((1, 4, 4))
    assert float(segmentation.dice(nothing, nothing)) == 0


@pytest.mark.parametrize("options", [{}, {"class_balanced": True}])
def test_padding_rows_change_nothing(case, options):
    logits, mask = case
    valid = jnp.array([True, True, False])
    alone = segmentation.focal(logits[:2], mask[:2], **options)
    found = segmentation.focal(logits, mask, **options, valid=valid)
    assert float(found) == pytest.approx(float(alone), rel=1e-5)
    assert float(segmentation.focal(logits, mask, **options)) != pytest.approx(
        float(alone), rel=1e-3
    )


def test_padding_rows_do_not_enter_dice(case):
    logits, mask = case
    guess = jax.nn.softmax(logits)[..., 1]
    valid = jnp.array([True, True, False])
    found = segmentation.dice(guess, mask, valid=valid)
    alone = segmentation.dice(guess[:2], mask[:2])
    assert float(found) == pytest.approx(float(alone), rel=1e-5)


def test_all_normal_batch_has_a_finite_balanced_focal(case):
    logits, mask = case
    found = segmentation.focal(logits, mask * 0, class_balanced=True)
    plain = segmentation.focal(logits, mask * 0)
    assert float(found) == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize("suffix", ["", "_emptymask"])
def test_balanced_focal_and_dice_match_the_released_code(suffix):
    golden = np.load(GOLDEN)
    logits = jnp.asarray(golden["seg_logits"].transpose(0, 2, 3, 1))
    mask = jnp.asarray(golden["seg_mask"]) * (0.0 if suffix else 1.0)

    def focal(logits):
        return segmentation.focal(logits, mask, class_balanced=True)

    def dice(logits):
        return segmentation.dice(jax.nn.softmax(logits)[..., 1], mask)

    for name, loss in (("focal", focal), ("dice", dice)):
        value, grads = jax.value_and_grad(loss)(logits)
        # Tolerances of the fixture; theirs adds 1e-8 inside the logarithm.
        assert float(value) == pytest.approx(float(golden[name + suffix]), rel=1e-4)
        key = f"{name}{suffix}_grad" if suffix else f"{name}_grad_logits"
        wanted = golden[key].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(grads, wanted, atol=1e-3 * np.abs(wanted).max())
