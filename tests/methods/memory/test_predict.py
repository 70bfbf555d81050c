import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.memory import predict


def test_the_mean_of_the_top_is_that_of_the_sorted_values(rng):
    values = rng.normal(size=(2, 10, 10)).astype(np.float32)
    top = np.sort(values.reshape(2, -1), 1)[:, -5:].mean(1)
    np.testing.assert_allclose(
        predict.top_mean(jnp.asarray(values), 0.05), top, rtol=1e-6
    )
    largest = predict.top_mean(jnp.asarray(values), 0.0)
    np.testing.assert_array_equal(largest, values.max((1, 2)))


def test_smoothing_is_in_proportion_to_the_grid(rng):
    """A step smoothed on a grid twice as fine is smeared as far in the image."""
    widths = []
    for side in (16, 32):
        step = np.zeros((1, side, side), np.float32)
        step[:, :, side // 2 :] = 1
        row = np.asarray(predict.enlarged(jnp.asarray(step), 0.1, (64, 64)))[0, 32]
        widths.append(int(((row > 0.1) & (row < 0.9)).sum()))
    assert abs(widths[0] - widths[1]) <= 2  # pixels of 64, from the enlargement
    assert widths[0] > 12


def test_a_constant_map_of_any_shape_stays_constant():
    flat = predict.enlarged(jnp.full((1, 4, 12), 3.0), 0.1, (32, 96))
    np.testing.assert_allclose(flat, 3.0, rtol=1e-5)


def test_views_weigh_by_their_levels():
    params = {
        "views": {"0": {"level": jnp.array([2.0])}, "1": {"level": jnp.array([4.0])}}
    }
    maps = [jnp.full((1, 4, 4), 2.0), jnp.full((1, 2, 2), 8.0)]
    joined = predict.fused(params, maps, jnp.zeros(1, jnp.int32))
    assert joined.shape == (1, 4, 4)
    np.testing.assert_allclose(joined, (1 + 2) / 2)


@pytest.mark.parametrize("cut", [0.0, 0.2])
def test_what_looks_like_the_frame_is_background(cut):
    image = np.zeros((1, 7, 7, 2), np.float32)
    image[..., 0] = 1
    image[0, 3, 3] = 0, 1
    mask = np.asarray(predict.foreground([jnp.asarray(image)], jnp.array([cut])))[0]
    assert mask.sum() == (49 if cut == 0 else 9)  # the object and one cell around it
