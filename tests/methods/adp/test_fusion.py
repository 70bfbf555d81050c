import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxanom.methods.adp.channels import fusion


@pytest.mark.parametrize(("side", "sigma"), [(16, 2.0), (16, 4.0), (32, 6.0)])
def test_smoothing_is_that_of_the_enlarged_map(side, sigma):
    """Beside scipy on the map enlarged to eight times 256 px: 1e-3 for its pixels."""
    values = np.random.default_rng(0).normal(size=(1, side, side)).astype(np.float32)
    factor = 8 * fusion.SIGMA_AT // side
    enlarged = jax.image.resize(values[0], (side * factor,) * 2, "linear")
    wanted = scipy.ndimage.gaussian_filter(np.asarray(enlarged), 8 * sigma)
    wanted = wanted.reshape(side, factor, side, factor)
    middle = slice(factor // 2 - 1, factor // 2 + 1)  # a cell's centre is between two
    wanted = wanted[:, middle, :, middle].mean((1, 3))
    found = np.asarray(fusion.smooth(jnp.asarray(values), jnp.array([sigma])))[0]
    inside = slice(3, side - 3)  # the two treat the outside differently
    np.testing.assert_allclose(found[inside, inside], wanted[inside, inside], atol=1e-3)
    # A width counts in pixels of the map: it shows however few cells there are.
    assert np.abs(found - values[0]).max() > 0.1


def test_smoothing_keeps_a_constant_and_width_0_everything():
    flat = fusion.smooth(jnp.ones((1, 32, 32)), jnp.array([6.0]))
    np.testing.assert_allclose(flat, 1, atol=1e-5)
    np.testing.assert_allclose(
        fusion.smoothing(16, jnp.float32(0)), np.eye(16), atol=1e-6
    )


def test_shares_that_average_the_same_cells_count_once():
    assert fusion.distinct_shares(16) == (0.0, 0.01, 0.02)  # 1, 1, 3, 5 of 256 cells
    assert fusion.distinct_shares(32) == fusion.SHARES
    assert fusion.distinct_shares(4) == (0.0,)


def test_the_top_mean_is_the_maximum_at_share_0_and_the_mean_at_share_1():
    values = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4)))
    found = fusion.top_mean(values, jnp.array([0.0, 1.0, 0.25]), largest=1.0)
    assert found[0] == pytest.approx(float(values[0].max()))
    assert found[1] == pytest.approx(float(values[1].mean()), abs=1e-6)
    wanted = np.sort(np.asarray(values[2]).ravel())[-4:].mean()
    assert found[2] == pytest.approx(float(wanted), abs=1e-6)


def test_a_score_depends_on_its_own_row_alone():
    values = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 4)))
    whole = jnp.array([1.0, -1.0])
    settings = fusion.Settings(
        None, None, None, jnp.array([0.0, 0.02]), jnp.array([0.5, 0.0])
    )
    both = fusion.image_score(values, whole, settings)
    first = fusion.image_score(
        values[:1],
        whole[:1],
        fusion.Settings(None, None, None, *(x[:1] for x in settings[3:])),
    )
    assert both[0] == first[0]
    assert both[0] == pytest.approx(0.5 * float(values[0].max()) + 0.5)


def test_default_settings_are_near_winclip_plus():
    found = fusion.default((1.0, 1.0, 0.0), has_language=True)
    np.testing.assert_allclose(found.weights, [0.5, 0.5, 0])
    assert (found.sigma, found.share, found.image_weight) == (4, 0, 0.5)
    assert fusion.default((1.0,), has_language=False).image_weight == 0
    # Text alone: the whole image's answer, which no shot has a part in.
    assert fusion.default((1.0,), has_language=True).image_weight == 1
    assert fusion.default((1.0, 0.0), has_language=True).image_weight == 1
    # A tower that cannot be trusted with text has no say in the image score either.
    assert fusion.default((0.0, 1.0), has_language=True).image_weight == 0
