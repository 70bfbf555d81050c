import numpy as np

from jaxanom.methods.adp.channels import fusion
from jaxanom.models.features import patches

RNG = np.random.default_rng(3)


def test_calibrated_maps_have_mean_0_and_deviation_1_in_every_cell():
    maps = (
        RNG.normal(size=(3, 6, 4, 4)) * np.array([1, 5, 0.01])[:, None, None, None] + 2
    )
    found = fusion.calibrate(maps, RNG.normal(size=(2, 6)))
    standard = fusion.standardised(maps, found)
    # V9 of the method's targets allows 0.05; statistics of the same maps are exact.
    np.testing.assert_allclose(standard.mean((1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(standard.std((1, 2, 3)), 1, atol=1e-4)


def test_a_constant_map_does_not_divide_by_zero():
    found = fusion.calibrate(np.ones((1, 2, 2, 2)), np.ones((1, 2)))
    assert found.spread[0] == np.float32(fusion.SMALLEST_SPREAD)
    assert np.isfinite(fusion.standardised(np.ones((1, 2, 2, 2)), found)).all()


def test_several_shots_are_each_left_out():
    shots = RNG.uniform(size=(3, 8, 8, 3)).astype(np.float32)
    images, left_out = fusion.calibration_images(shots, least=8)
    assert len(images) == len(left_out) >= 8
    assert sorted(set(left_out.tolist())) == [0, 1, 2]
    for shot in range(3):  # the shot itself, told nothing of itself
        first = np.flatnonzero(left_out == shot)[0]
        np.testing.assert_array_equal(images[first], shots[shot])


def test_one_shot_is_never_shown_itself():
    shots = RNG.uniform(size=(1, 8, 8, 3)).astype(np.float32)
    images, left_out = fusion.calibration_images(shots)
    assert len(images) == fusion.LEAST_VIEWS
    assert set(left_out.tolist()) == {patches.NOBODY}
    assert min(np.abs(image - shots[0]).max() for image in images) > 0.05
