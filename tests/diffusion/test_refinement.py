import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import refinement

SIZE = 64


def scene(noise=0.01, drawn=0.3, seed=0):
    """A mask of two squares; the left one alone was drawn into, slightly noisy."""
    rng = np.random.default_rng(seed)
    reference = np.full((1, SIZE, SIZE, 3), 0.4, np.float32)
    mask = np.zeros((1, SIZE, SIZE), np.float32)
    left, right = (slice(10, 30), slice(8, 24)), (slice(36, 56), slice(40, 56))
    mask[0][left] = mask[0][right] = 1
    generated = reference + noise * rng.standard_normal(reference.shape)
    generated[0][left] += drawn * np.array([1.0, -0.5, 0.8])
    return np.clip(generated, 0, 1).astype(np.float32), reference, mask, left, right


def refine(generated, reference, mask, **options):
    """Refined masks without specks, with their share of the requested ones."""
    drawn, threshold = refinement.changed(generated, reference, mask, **options)
    kept = refinement.drop_small(np.asarray(drawn))
    area = kept.sum((1, 2))
    share = area / np.maximum((mask > 0.5).sum((1, 2)), 1)
    return types.SimpleNamespace(
        mask=kept, kept=share, empty=area == 0, threshold=np.asarray(threshold)
    )


def test_a_blob_in_which_nothing_was_drawn_vanishes():
    generated, reference, mask, left, right = scene()
    refined = refine(generated, reference, mask)
    assert refined.mask[0][left].mean() > 0.95  # smoothing may round its corners
    assert not refined.mask[0][right].any()
    assert refined.kept[0] == pytest.approx(0.5, abs=0.03)
    assert not refined.empty[0]


def test_no_change_gives_an_empty_mask_and_not_split_noise():
    generated, reference, mask, *_ = scene(drawn=0.0)
    refined = refine(generated, reference, mask)
    assert refined.empty[0] and refined.kept[0] == 0 and not refined.mask.any()
    # Negative control: Otsu without the floor keeps much of the noise.
    bare = refine(generated, reference, mask, floor=0.0)
    assert bare.kept[0] > 0.2 and not bare.empty[0]


def test_identical_images_give_an_empty_mask_even_without_a_floor():
    _, reference, mask, *_ = scene()
    refined = refine(reference, reference, mask, floor=0.0)
    assert refined.empty[0]


def test_a_fully_drawn_mask_is_kept_whole():
    """The ring outside the mask is Otsu's second class."""
    generated, reference, mask, _, right = scene()
    generated[0][right] += np.float32(0.3)
    refined = refine(generated, reference, mask)
    assert refined.kept[0] > 0.95


def test_a_weak_rim_around_a_strong_middle_is_kept_by_the_floor_alone():
    generated, reference, mask, left, _ = scene(noise=0.0, drawn=0.2)
    generated[0, 14:26, 12:20] = 1.0
    rim = np.zeros(mask.shape, bool)
    rim[0][left] = True
    rim[0, 12:28, 10:22] = False
    plain = refine(generated, reference, mask, otsu=False)
    # Smoothing rounds its corners.
    assert plain.mask[rim].mean() > 0.9 and plain.threshold[0] == np.float32(0.08)
    split = refine(generated, reference, mask)  # the control
    assert split.mask[rim].mean() < 0.1 and split.threshold[0] > 0.15


def test_change_outside_the_mask_is_never_kept():
    generated, reference, mask, *_ = scene()
    generated[0, :6] = 1.0
    refined = refine(generated, reference, mask)
    assert not (refined.mask & (mask < 0.5)).any()


def test_empty_masks_and_mixed_batches_are_refined_row_by_row():
    generated, reference, mask, *_ = scene()
    images = np.concatenate([generated, generated, reference])
    references = np.concatenate([reference] * 3)
    masks = np.concatenate([mask, mask * 0, mask])
    refined = refine(images, references, masks)
    alone = refine(generated, reference, mask)
    np.testing.assert_array_equal(refined.mask[:1], alone.mask)
    assert refined.empty.tolist() == [False, True, True]
    assert refined.kept[1] == 0 and np.isfinite(refined.threshold).all()


def test_small_regions_are_dropped_and_diagonal_neighbours_are_one_region():
    masks = np.zeros((1, 100, 100), bool)
    masks[0, 10:12, 10:12] = True  # 4 pixels
    masks[0, 50, 50] = masks[0, 51, 51] = masks[0, 52, 52] = True
    masks[0, 53, 53] = masks[0, 54, 54] = True  # 5 on a diagonal
    kept = refinement.drop_small(masks, min_fraction=5e-4)  # at least 5 of 10000
    assert kept.sum() == 5 and kept[0, 50, 50] and not kept[0, 10, 10]
    np.testing.assert_array_equal(refinement.drop_small(masks, 0.0), masks)
    assert not refinement.drop_small(masks * False).any()


def test_device_part_compiles_once_and_equals_the_eager_one():
    generated, reference, mask, *_ = scene()
    eager, threshold = refinement.changed(generated, reference, mask)
    jitted = jax.jit(refinement.changed)
    found, jitted_threshold = jitted(generated, reference, mask)
    np.testing.assert_array_equal(found, eager)
    np.testing.assert_allclose(threshold, jitted_threshold, rtol=1e-5)


def test_smoothing_keeps_constants_and_the_integral():
    np.testing.assert_allclose(
        refinement.smooth(jnp.full((1, 9, 9), 0.7)), 0.7, rtol=1e-6
    )
    point = jnp.zeros((1, 9, 9)).at[0, 4, 3].set(1.0)
    spread = np.asarray(refinement.smooth(point))
    assert spread.sum() == pytest.approx(1, rel=1e-6)
    assert spread[0, 4, 5] > spread[0, 4, 6] == 0  # a window of 5
    assert np.unravel_index(spread.argmax(), spread.shape) == (0, 4, 3)


def test_dilation_is_a_square_of_the_given_radius():
    mask = jnp.zeros((1, 12, 12), bool).at[0, 5, 2].set(True)
    grown = np.asarray(refinement.dilate(mask, 3))
    wanted = np.zeros((1, 12, 12), bool)
    wanted[0, 2:9, 0:6] = True
    np.testing.assert_array_equal(grown, wanted)


def test_otsu_splits_two_classes_in_the_middle_of_the_gap():
    values = jnp.array([0.1] * 30 + [0.5] * 10 + [9.0] * 5)
    region = jnp.arange(45) < 40  # the last five are outside
    threshold = float(refinement.otsu_threshold(values, region))
    assert threshold == pytest.approx(0.3, abs=2 * 0.4 / refinement.NUM_BINS)


def test_otsu_maximises_the_variance_between_classes():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.2, 0.05, 400), rng.normal(0.6, 0.1, 100)])

    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return low.size * high.size * (low.mean() - high.mean()) ** 2

    best = max(between(t) for t in np.sort(values)[:-1])
    found = float(refinement.otsu_threshold(jnp.asarray(values), jnp.ones(500, bool)))
    # The histogram may miss the best split by a bin.
    assert between(found) > 0.995 * best
    assert between(found + 0.2) < 0.9 * best  # negative control
