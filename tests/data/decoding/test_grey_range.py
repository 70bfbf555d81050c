import numpy as np
import pytest
from PIL import Image

from jaxanom.data import images


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def grey(path):
    return images.load_image(path)[..., 0]


def test_twelve_bits_in_a_file_of_sixteen_keep_256_levels(tmp_path):
    path = write(tmp_path / "a.png", np.arange(0, 4096, dtype=np.uint16)[None])
    assert len(np.unique(grey(path))) == 256
    assert grey(path)[0, -1] == 255


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_to_255_in_wide_files_are_read_as_they_are(tmp_path, dtype):
    values = np.arange(0, 256, dtype=dtype)[None]
    np.testing.assert_array_equal(grey(write(tmp_path / "a.tif", values)), values)


def test_a_dark_image_is_scaled_as_a_bright_one_of_its_category(tmp_path):
    dark = write(tmp_path / "nut/test/dent/0.png", np.full((2, 2), 400, np.uint16))
    alone = write(tmp_path / "alone/0.png", np.full((2, 2), 400, np.uint16))
    write(tmp_path / "nut/train/good/0.png", np.full((2, 2), 4000, np.uint16))
    write(tmp_path / "nut/ground_truth/dent/0.png", np.full((2, 2), 65535, np.uint16))
    assert grey(dark)[0, 0] == round(400 / 4095 * 255)
    assert grey(alone)[0, 0] == round(400 / 1023 * 255)  # nothing to compare with


def test_integers_beyond_sixteen_bits_are_refused_by_name(tmp_path):
    path = write(tmp_path / "a.tif", np.full((2, 2), 70000, np.int32))
    with pytest.raises(ValueError, match=r"a\.tif has values 70000 to 70000"):
        images.load_image(path)
