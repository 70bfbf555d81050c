"""Each measure gives its known value on arrays made for it."""

import numpy as np
import pytest

from benchmarks.quality.defects import measures


def scene(colours, law, side=16):
    """Images of one colour each, with a square whose colour is law(colour)."""
    normal = np.broadcast_to(colours[:, None, None], (len(colours), side, side, 3))
    mask = np.zeros((len(colours), side, side), bool)
    mask[:, 6:10, 5:9] = True
    painted = np.broadcast_to(law(colours)[:, None, None], normal.shape)
    return np.where(mask[..., None], painted, normal), normal, mask


def colours(count=40):
    return np.random.default_rng(0).uniform(0.2, 0.9, (count, 3))


def test_a_colour_that_is_a_function_of_the_background_correlates_fully():
    drawn, normal, mask = scene(colours(), lambda c: 0.45 * c)
    found = measures.colour_correlation(drawn, mask, normal, mask)
    assert found.value == pytest.approx(1.0, abs=1e-9)  # float64 sums
    assert found.error < 1e-6 and found.num_images == 40


def test_always_the_average_colour_does_not_correlate_though_channels_differ():
    rng = np.random.default_rng(1)
    background = colours(400) * np.array([1.0, 0.6, 0.2])
    average = np.array([0.5, 0.3, 0.1])
    law = lambda c: average + 0.01 * rng.standard_normal(c.shape)  # noqa: E731
    drawn, normal, mask = scene(background, law)
    found = measures.colour_correlation(drawn, mask, normal, mask)
    # 1200 independent pairs: the standard deviation of r is 0.03.
    assert abs(found.value) < 0.12
    defect = measures.mean_colour(drawn, mask)
    around = measures.mean_colour(normal, measures.ring(mask))
    # What centring is for: without it the same generator looks aware.
    assert np.corrcoef(defect.ravel(), around.ravel())[0, 1] > 0.7


def test_images_with_an_empty_refined_mask_are_left_out_and_counted():
    drawn, normal, mask = scene(colours(), lambda c: 0.45 * c)
    refined = mask.copy()
    refined[:10] = False
    found = measures.colour_correlation(drawn, refined, normal, mask)
    assert found.num_images == 30
    assert np.isnan(measures.colour_correlation(drawn, 0 * refined, normal, mask).value)


def test_the_ring_lies_outside_the_mask_within_its_width():
    mask = np.zeros((1, 16, 16), bool)
    mask[0, 8, 8] = True
    found = measures.ring(mask, 3)
    assert found.sum() == 7 * 7 - 1 and not (found & mask).any()


def test_background_error_ignores_the_hole_and_is_relative():
    rng = np.random.default_rng(2)
    normal = rng.standard_normal((2, 8, 8, 4))
    mask = np.zeros((2, 8, 8))
    mask[:, 2:5, 2:5] = 1
    inside = mask[..., None] > 0.5
    latents = np.where(inside, 99.0, 1.1 * normal)
    np.testing.assert_allclose(
        measures.background_error(latents, normal, mask), 0.1, rtol=1e-12
    )
    assert (measures.background_error(normal + inside, normal, mask) == 0).all()


def test_kept_share_counts_only_what_was_asked_for():
    asked = np.zeros((2, 4, 4))
    asked[:, :2] = 1
    refined = np.zeros((2, 4, 4))
    refined[0, :1] = 1
    refined[0, 3] = 1
    np.testing.assert_array_equal(measures.kept_share(refined, asked), [0.5, 0.0])


def test_spread_is_the_sample_deviation():
    found = measures.spread([1.0, 3.0])
    assert found["mean"] == 2.0 and found["std"] == pytest.approx(2**0.5)
