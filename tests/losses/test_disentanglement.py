import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import inversion
from jaxanom.losses import disentanglement


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    noise, defect, background = rng.standard_normal((3, 2, 6, 6, 4)).astype(np.float32)
    mask = np.zeros((2, 6, 6, 1), np.float32)
    mask[0, 1:3, 2:5] = 1
    mask[1, 4:, :2] = 1
    return tuple(map(jnp.asarray, (noise, defect, background, mask)))


def two_lines(noise, defect, background, mask):
    """Both printed forms of Eq. 5 in float64: two terms, and one norm."""
    noise, defect, background, mask = (
        np.asarray(a, np.float64) for a in (noise, defect, background, mask)
    )
    first = np.mean((mask * (noise - defect)) ** 2)
    first += np.mean(((1 - mask) * (noise - background)) ** 2)
    second = np.mean((noise - mask * defect - (1 - mask) * background) ** 2)
    return first, second


def test_loss_equals_both_printed_forms_for_a_binary_mask(case):
    found, terms = disentanglement.loss(*case)
    first, second = two_lines(*case)
    assert first == pytest.approx(second, rel=1e-12)
    assert float(found) == pytest.approx(first, rel=1e-6)
    assert float(terms["matching"] + terms["background"]) == pytest.approx(float(found))


def test_the_printed_forms_part_for_a_soft_mask(case):
    """Why masks are thresholded: negative control of the test above."""
    noise, defect, background, mask = case
    soft = 0.25 + 0.5 * mask
    first, second = two_lines(noise, defect, background, soft)
    assert abs(first - second) > 1e-3 * first
    # The library selects instead, so a soft mask gives the binary result.
    binary, _ = disentanglement.loss(*case)
    found, _ = disentanglement.loss(noise, defect, background, soft)
    assert float(found) == float(binary)


def test_background_sample_is_the_masked_noised_latent_bit_for_bit():
    """Eq. 7 is (1 - m) times Eq. 6: no second noising is needed."""
    rng = np.random.default_rng(1)
    clean, noise = rng.standard_normal((2, 3, 5, 5, 4)).astype(np.float32)
    mask = (rng.random((3, 5, 5, 1)) < 0.3).astype(np.float32)
    signal, spread = np.float32(0.6), np.float32(0.8)
    noised = signal * clean + spread * noise
    second_noising = signal * ((1 - mask) * clean) + spread * ((1 - mask) * noise)
    hidden = inversion.hide_defect(jnp.asarray(noised), jnp.asarray(mask))
    np.testing.assert_array_equal(hidden, second_noising)
    # Negative control: the ablation shows the defect to the background branch.
    assert np.abs(noised - second_noising).max() > 0.1


def test_each_branch_gets_gradient_on_its_own_side_only(case):
    noise, defect, background, mask = case
    grads = jax.grad(
        lambda d, b: disentanglement.loss(noise, d, b, mask)[0], argnums=(0, 1)
    )(defect, background)
    assert np.all(np.asarray(grads[0] * (1 - mask)) == 0)
    assert np.all(np.asarray(grads[1] * mask) == 0)
    # Negative control: on their own sides both do get gradient.
    assert np.all(np.asarray(grads[0] + grads[1]) != 0)
    size = noise.size
    np.testing.assert_allclose(
        grads[0], mask * 2 * (defect - noise) / size, rtol=1e-5, atol=1e-9
    )


def test_loss_does_not_see_the_hole_of_the_background_branch(case):
    noise, defect, background, mask = case
    found, _ = disentanglement.loss(*case)
    spoiled = jnp.where(mask > 0.5, jnp.nan, background)
    again, _ = disentanglement.loss(noise, defect, spoiled, mask)
    assert float(found) == float(again)
    spoiled = jnp.where(mask > 0.5, background, background + 1)  # negative control
    other, _ = disentanglement.loss(noise, defect, spoiled, mask)
    assert abs(float(other) - float(found)) > 0.1


def test_without_regulariser_only_the_matching_term_is_left(case):
    found, terms = disentanglement.loss(*case, background_weight=0.0)
    assert float(found) == float(terms["matching"])
    assert float(terms["background"]) > 0  # still reported


def test_area_balance_weighs_small_and_large_masks_alike(case):
    noise, *_, mask = case
    _, terms = disentanglement.loss(
        noise, noise - 2, noise - 3, mask, area_balanced=True
    )
    assert float(terms["matching"]) == pytest.approx(4, rel=1e-6)
    assert float(terms["background"]) == pytest.approx(9, rel=1e-6)
    _, plain = disentanglement.loss(noise, noise - 2, noise - 3, mask)
    assert float(plain["matching"]) == pytest.approx(4 * (6 + 4) / 72, rel=1e-6)


@pytest.mark.parametrize("filled", [0.0, 1.0])
def test_empty_and_full_masks_leave_one_term(case, filled):
    noise, defect, background, mask = case
    whole = jnp.full_like(mask, filled)
    found, terms = disentanglement.loss(noise, defect, background, whole)
    seen = defect if filled else background
    wanted = float(jnp.mean((noise - seen) ** 2))
    assert float(found) == pytest.approx(wanted, rel=1e-6)
    assert float(terms["background" if filled else "matching"]) == 0


def test_gap_measures_disagreement_about_the_background_only(case):
    _, defect, _, mask = case
    inside = jnp.where(mask > 0.5, defect + 5, defect)
    assert float(disentanglement.gap(defect, inside, mask)) == 0
    outside = jnp.where(mask > 0.5, defect, defect - 5)
    found = float(disentanglement.gap(defect, outside, mask))
    assert found == pytest.approx(5 * (1 - 10 / 72), rel=1e-5)
