import numpy as np
import pytest
from PIL import Image

from jaxanom.data import images


def load(tmp_path, values, mode=None, suffix="png"):
    path = tmp_path / f"mask.{suffix}"
    picture = Image.fromarray(values)
    (picture.convert(mode) if mode else picture).save(path)
    return images.load_mask([path])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_of_shades_a_defect_is_at_least_half_of_the_maximum(tmp_path, mode):
    shades = np.array([[0, 3, 99, 100, 200]], np.uint8)
    np.testing.assert_array_equal(load(tmp_path, shades, mode), [[0, 0, 0, 1, 1]])


def test_a_jpeg_mask_has_the_area_that_was_painted(tmp_path):
    mask = np.zeros((96, 96), np.uint8)
    mask[41:53, 38:50] = 255
    loaded = load(tmp_path, mask, suffix="jpg")
    assert loaded.sum() == 144
    stored = np.asarray(Image.open(tmp_path / "mask.jpg"))
    assert (stored > 0).sum() > 144  # what any non-zero value would call a defect


def test_small_integers_number_defects_and_all_of_them_count(tmp_path):
    numbers = np.array([[0, 1, 2, 15]], np.uint8)
    np.testing.assert_array_equal(load(tmp_path, numbers), [[0, 1, 1, 1]])


@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_that_is_only_in_the_alpha_channel_is_read_there(tmp_path, colour):
    values = np.full((4, 5, 4), colour, np.uint8)
    values[..., 3] = 0
    values[1, 2, 3] = 255
    np.testing.assert_array_equal(load(tmp_path, values), values[..., 3] > 0)


def test_alpha_does_not_count_where_colours_tell_pixels_apart(tmp_path):
    values = np.zeros((4, 5, 4), np.uint8)
    values[0, 0, :3] = values[1, 1, 3] = 255
    np.testing.assert_array_equal(load(tmp_path, values), values[..., 0] > 0)
