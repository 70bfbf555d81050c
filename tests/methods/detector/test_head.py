"""The head reads single places as it reads whole grids."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.detector.head import Head, bilinear


def layers(batch=2, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, 8, 12, 5), (batch, 4, 6, 7), (batch, 3, 4, 3)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


HEAD = Head((5, 7, 3), 6)
PARAMS = HEAD.init(jax.random.key(0), layers())["params"]


def test_a_place_is_read_as_the_whole_grid_has_it():
    whole = HEAD.apply({"params": PARAMS}, layers())
    assert whole.shape == (2, 8, 12)
    places = jnp.asarray([[0, 11, 95, 50, 84], [1, 3, 94, 13, 60]])
    some = HEAD.apply({"params": PARAMS}, layers(), places, method="at")
    expected = np.take_along_axis(np.asarray(whole).reshape(2, -1), places, axis=1)
    # float32 sums in another order.
    np.testing.assert_allclose(some, expected, atol=1e-5)
    assert np.std(expected) > 1e-2


def test_reading_beyond_the_border_gives_the_edge_and_between_cells_the_mean():
    layer = jnp.arange(6.0).reshape(2, 3, 1)
    rows, columns = jnp.asarray([-3.0, 9.0, 0.5]), jnp.asarray([-3.0, 9.0, 1.5])
    np.testing.assert_allclose(bilinear(layer, rows, columns)[:, 0], [0, 5, 3])


def test_measured_constants_standardise_their_layer():
    data = layers()
    shifted = [5 + 3 * data[0], *data[1:]]
    means = {**PARAMS, "mean_0": jnp.full(5, 5.0), "std_0": jnp.full(5, 3.0)}
    plain = HEAD.apply({"params": PARAMS}, data)
    np.testing.assert_allclose(HEAD.apply({"params": means}, shifted), plain, atol=1e-5)
    assert np.abs(HEAD.apply({"params": PARAMS}, shifted) - plain).max() > 0.1


def test_a_coarser_head_reads_the_middle_of_four_cells():
    coarse = Head((5, 7, 3), 6, coarse=2)
    whole = coarse.apply({"params": PARAMS}, layers())
    assert whole.shape == (2, 4, 6)
    places = jnp.asarray([[0, 23, 9], [5, 6, 17]])
    some = coarse.apply({"params": PARAMS}, layers(), places, method="at")
    expected = np.take_along_axis(np.asarray(whole).reshape(2, -1), places, axis=1)
    # float32 sums in another order.
    np.testing.assert_allclose(some, expected, atol=1e-5)
