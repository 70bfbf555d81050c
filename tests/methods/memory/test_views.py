import numpy as np
import pytest

from jaxanom.errors import UserError
from jaxanom.methods.memory import views
from tests.methods.memory.conftest import TOWER


def test_every_group_at_every_scale_is_a_view():
    seen = views.make(TOWER, ("colour+square", "colour~"), (1.0, 2.0), 0, (32, 64))
    assert seen.names == (
        "colour+square 1",
        "colour~ 1",
        "colour+square 2",
        "colour~ 2",
    )
    assert seen.shapes == ((4, 8, 6), (4, 8, 3), (8, 16, 6), (8, 16, 3))


def test_patches_are_unit_and_averaged_unless_they_ask_not_to_be(rng):
    image = rng.uniform(size=(1, 32, 32, 3)).astype(np.float32)
    looks = {}
    for tap in ("colour", "colour~"):
        seen = views.make(TOWER, (tap,), (1.0,), 0, (32, 32))
        looks[tap] = np.asarray(seen.look(seen.params, image)[0])
        np.testing.assert_allclose(np.linalg.norm(looks[tap], axis=-1), 1, atol=1e-5)
    assert np.ptp(looks["colour"]) < np.ptp(looks["colour~"])


def test_a_border_of_mirrored_content_is_cut_off_again(rng):
    image = rng.uniform(size=(1, 32, 64, 3)).astype(np.float32)
    looks = []
    for border in (0, 16):
        seen = views.make(TOWER, ("colour~",), (1.0,), border, (32, 64))
        looks.append(np.asarray(seen.look(seen.params, image)[0]))
    # This tower looks at no neighbour but at the edge of a cell's own resize.
    np.testing.assert_allclose(
        looks[0][:, 1:-1, 1:-1], looks[1][:, 1:-1, 1:-1], atol=1e-3
    )


def test_a_layer_that_the_tower_lacks_is_refused():
    with pytest.raises(UserError, match=r"memory\.taps.*no layers \['p9'\]"):
        views.make(TOWER, ("p9",), (1.0,), 0, (32, 32))


def test_copies_know_their_shot_and_odd_turns_are_of_squares():
    square = np.arange(2 * 4 * 4).reshape(2, 4, 4, 1)
    assert len(views.copies(square, (0, 1, 2, 3), True)) == 8
    every = views.copies(square[:, :2], (0, 1, 2, 3), True)
    assert len(every) == 4 and all(a.shape == (2, 2, 4, 1) for a, _ in every)
    np.testing.assert_array_equal(every[1][0][0], square[0, :2][::-1, ::-1])
    assert views.num_copies((4, 4), (0, 2), False) == 2
