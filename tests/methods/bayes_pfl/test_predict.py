"""Predictions: their own image and key decide them, and what their spread says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from tiny_bayes_pfl import SIZE, Made, batch

from jaxanom.methods.bayes_pfl import distributions, features, predict


@pytest.fixture(scope="module")
def made(tiny_backbone):
    return Made(tiny_backbone)


def scored(made, rows, key=5):
    run = jax.jit(made.method.predict)
    found = run(made.params, made.frozen, rows, jax.random.key(key))
    return jax.tree.map(np.asarray, found)


@pytest.fixture(scope="module")
def found(made):
    return scored(made, batch())


def test_predictions_have_maps_scores_and_spreads(found):
    for map_like in (found.anomaly_map, found.anomaly_map_std):
        assert map_like.shape == (4, SIZE, SIZE) and map_like.dtype == np.float32
    for score_like in (found.image_score, found.image_score_std):
        assert score_like.shape == (4,)
    assert (found.anomaly_map >= 0).all() and (found.anomaly_map <= 1).all()
    assert (found.anomaly_map_std > 0).all() and (found.image_score_std > 0).all()
    # The score is the weighted sum of its parts.
    np.testing.assert_allclose(found.image_score, found.score_parts.mean(1), rtol=1e-5)


def test_a_row_does_not_feel_its_neighbours(made, found):
    rows = batch()
    order = np.array([2, 0, 0, 3])
    other = scored(made, {name: value[order] for name, value in rows.items()})
    for ours, theirs in zip(*map(jax.tree.leaves, (found, other)), strict=True):
        # The same operations on other rows; float32 sums may be blocked otherwise.
        np.testing.assert_allclose(theirs, ours[order], rtol=1e-5, atol=1e-6)
    # Negative control: another image is another prediction, and so is another key.
    assert np.abs(other.anomaly_map[0] - other.anomaly_map[1]).max() > 1e-3
    again = scored(made, rows, key=6)
    assert np.abs(again.image_score - found.image_score).max() > 1e-4


def test_cached_features_predict_the_same(made, found):
    encoded = jax.jit(made.method.encode)(made.frozen, batch())
    assert "image" not in encoded
    other = scored(made, encoded)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, other)), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)


def test_the_shortcuts_predict_what_the_released_form_does(made, tiny_backbone, found):
    plain = Made(tiny_backbone, shortcuts=False, sigma=1.0)
    whole = plain.frozen["names"]["words"].shape[1]
    assert whole > made.frozen["names"]["words"].shape[1]
    other = scored(plain, batch())
    for ours, theirs in zip(*map(jax.tree.leaves, (found, other)), strict=True):
        # Two orders of float32 sums through both towers.
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


def test_one_draw_has_no_spread(tiny_backbone):
    one = Made(tiny_backbone, draws_test=1, iad_noise="image")
    alone = scored(one, batch(2))
    assert not alone.anomaly_map_std.any() and not alone.image_score_std.any()
    assert np.isfinite(alone.anomaly_map).all()


def test_top_shares_average_to_the_mean_maps_own_top():
    rng = np.random.default_rng(0)
    maps = rng.uniform(size=(2, 3, 4, 5)).astype(np.float32)
    found = np.asarray(predict.top_shares(jnp.asarray(maps), jnp.array([4, 100])))
    mean = maps.mean(1).reshape(2, -1)
    wanted = np.sort(mean[0])[-4:].mean()
    np.testing.assert_allclose(found[0].mean(), wanted, rtol=1e-6)
    # More pixels than there are: all of them.
    np.testing.assert_allclose(found[1], maps[1].mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("size, sigma", [(16, 1.0), (9, 8.0), (40, 2.3)])
def test_the_smoothing_matrix_is_scipys_filter(size, sigma):
    rng = np.random.default_rng(1)
    picture = rng.normal(size=(size, size))
    matrix = predict.gaussian_matrix(size, sigma)
    wanted = ndimage.gaussian_filter(picture, sigma)
    np.testing.assert_allclose(matrix @ picture @ matrix.T, wanted, atol=1e-6)
    other = ndimage.gaussian_filter(picture, sigma, mode="constant")
    assert np.abs(other - wanted).max() > 1e-3
    np.testing.assert_array_equal(predict.gaussian_matrix(size, 0), np.eye(size))


def test_rescaling_is_over_all_images_and_optional(tiny_backbone, made):
    assert made.method.rescale is None
    rescale = Made(
        tiny_backbone, image_minmax="category", map_weight=0.25
    ).method.rescale
    parts = np.array([[0.2, 3.0], [0.4, 1.0], [0.3, 2.0]])
    np.testing.assert_allclose(rescale(parts), [0.25, 0.75, 0.5], atol=1e-6)
    assert rescale(parts[:2])[0] == pytest.approx(0.25, abs=1e-6)
    assert np.isfinite(rescale(np.ones((3, 2)))).all()


def test_noise_is_seeded_by_every_pixel_of_the_image():
    image = batch(1)["image"]
    seed = features.row_seeds(image)
    assert features.row_seeds(jnp.concatenate([image, image]))[1] == seed[0]
    # Rounding of a stored 8-bit value does not matter, one level of one pixel does.
    assert features.row_seeds(image * (1 + 1e-6))[0] == seed[0]
    for place in ((0, 0, 0, 0), (0, 7, 3, 1), (0, 15, 15, 2)):
        changed = image.at[place].set((image[place] * 255 + 1) / 255 % 1.0)
        assert features.row_seeds(changed)[0] != seed[0]


def test_state_noise_is_one_per_run_or_one_per_image():
    seeds = jnp.array([7, 9, 7], jnp.uint32)
    for shared, rows in ((True, 1), (False, 3)):
        noise = distributions.row_noise(jax.random.key(0), seeds, 2, 4, shared)
        assert noise.normal.shape == (rows, 2, 4)
        np.testing.assert_array_equal(noise.context[0], noise.context[2])
        assert not np.allclose(noise.context[0], noise.context[1])
        assert not np.allclose(noise.normal[0], noise.abnormal[0])
