import numpy as np
import pytest
from PIL import Image

from jaxanom.data import images


def _ramp(height=9, width=14):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "PNG"])
def test_colour_files_decode_exactly(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(_ramp()).save(path)
    np.testing.assert_array_equal(images.load_image(path), _ramp())


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_files_decode_to_the_same_size(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    smooth = np.full((9, 14, 3), (200, 100, 40), np.uint8)
    Image.fromarray(smooth).save(path, quality=95)
    # A flat colour loses only rounding in the colour transform.
    np.testing.assert_allclose(images.load_image(path).astype(int), smooth, atol=4)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_decodes_to_three_channels(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture = Image.fromarray(_ramp()).convert(mode)
    picture.save(path)
    image = images.load_image(path)
    assert image.dtype == np.uint8 and image.shape == (9, 14, 3)
    # What Pillow itself shows of it, opaque as these are.
    np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))
    assert np.ptp(image) > 50, "not one grey for all"


def test_grey_is_repeated_over_channels(tmp_path):
    grey = _ramp()[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    image = images.load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_full_range(tmp_path, suffix):
    values = np.array([[0, 257, 128 * 257], [65535, 1, 400]], np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    expected = [[0, 1, 128], [255, 0, 2]]  # value / 257, rounded
    np.testing.assert_array_equal(images.load_image(path)[..., 1], expected)


def test_values_outside_every_range_are_an_error_naming_the_file(tmp_path):
    good, bad = tmp_path / "good.tif", tmp_path / "bad.tif"
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(good)
    Image.fromarray(np.array([[-0.5, 0.5, 20.0]], np.float32)).save(bad)
    np.testing.assert_array_equal(images.load_image(good)[0, :, 0], [0, 128, 255])
    with pytest.raises(ValueError, match=r"bad\.tif has values -0\.5 to 20\.0"):
        images.load_image(bad)


def test_transparency_lies_over_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = [[[10, 20, 30], [255, 255, 255]]]
    np.testing.assert_array_equal(images.load_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied_to_pixels_and_header_size(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn clockwise to look at it
    stored = np.zeros((8, 24, 3), np.uint8)
    stored[:, :12] = 255
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).save(path, exif=exif, quality=95)
    image = images.load_image(path)
    assert image.shape == (24, 8, 3)
    assert image[:10].min() > 200 and image[14:].max() < 50  # left half is now on top
    assert images.header_size(path) == (8, 24)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "I;16", "LA", "RGBA"])
def test_two_values_of_a_mask_in_any_mode_are_ground_and_defect(tmp_path, mode):
    flags = np.zeros((5, 7), np.uint8)
    flags[1, 2], flags[4, 6] = 200, 200
    path = tmp_path / "m.png"
    if mode == "I;16":
        Image.fromarray(flags.astype(np.uint16)).save(path)
    elif mode == "1":
        Image.fromarray(flags > 0).save(path)
    elif mode == "P":
        image = Image.fromarray(np.where(flags, 1, 0).astype(np.uint8), mode="P")
        image.putpalette([0, 0, 0, 128, 0, 0])
        image.save(path)
    else:
        Image.fromarray(flags).convert(mode).save(path)
    mask = images.load_mask([path])
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, flags > 0)


def test_several_mask_files_are_their_union(tmp_path):
    first, second = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    first[0, 0], second[3, 3] = 255, 7
    for name, mask in (("0.png", first), ("1.png", second)):
        Image.fromarray(mask).save(tmp_path / name)
    mask = images.load_mask([tmp_path / "0.png", tmp_path / "1.png"])
    np.testing.assert_array_equal(mask, (first | second) > 0)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1.png is 5 x 4, .*0.png is 4 x 4"):
        images.load_mask([tmp_path / "0.png", tmp_path / "1.png"])


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("kept", [0.6, 0.0])
def test_a_truncated_file_is_named_by_header_check_and_by_decoding(
    tmp_path, suffix, kept
):
    path = tmp_path / f"broken.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    assert images.header_size(path) == (64, 64)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    for read in (images.header_size, images.load_image):
        with pytest.raises(ValueError, match=rf"cannot read image .*broken\.{suffix}"):
            read(path)


def test_a_whole_png_or_jpeg_header_is_read_without_decoding(tmp_path, monkeypatch):
    for suffix in ("png", "jpg"):
        Image.fromarray(_ramp()).save(tmp_path / f"a.{suffix}")

    def fail(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    for suffix in ("png", "jpg"):
        assert images.header_size(tmp_path / f"a.{suffix}") == (14, 9)
    with pytest.raises(AssertionError, match=r"decoded"):  # the patch does bite
        images.load_image(tmp_path / "a.png")


def test_shrinking_an_image_averages_instead_of_skipping_pixels():
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    small = images.resize_image(image, (16, 8))
    assert small.shape == (16, 8, 3)
    # Every output pixel sees as many white as black pixels but at the border, where the
    # bicubic window is cut; skipping pixels would give 0 or 255 everywhere.
    np.testing.assert_allclose(small.astype(int), 127, atol=16)


@pytest.mark.parametrize("size", [(13, 11), (32, 32), (7, 90), (97, 101), (200, 150)])
def test_a_single_defect_pixel_survives_any_resize_wherever_it_is(size):
    rng = np.random.default_rng(0)
    height, width = 97, 101
    for place in rng.choice(height * width, 200, replace=False):
        mask = np.zeros((height, width), np.uint8)
        mask.flat[place] = 1
        small = images.resize_mask(mask, size)
        assert small.shape == size and small.dtype == np.uint8
        assert 0 < small.sum() and set(np.unique(small)) <= {0, 1}


def test_cutting_at_one_half_alone_would_lose_a_small_defect():
    mask = np.zeros((64, 64), np.uint8)
    mask[10, 10] = 1
    area = mask.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    assert not (area >= 0.5).any()
    np.testing.assert_array_equal(images.resize_mask(mask, (16, 16)), area > 0)


def test_a_large_defect_keeps_its_area_and_does_not_grow():
    y, x = np.indices((256, 256)) - 127.5
    mask = (np.hypot(x, y) < 80).astype(np.uint8)
    small = images.resize_mask(mask, (64, 64))
    touched = mask.reshape(64, 4, 64, 4).any(axis=(1, 3))
    # About 126 boundary pixels of 1257, each off by 0.29 px (one sigma), in eight equal
    # octants: sqrt(126 * 8) * 0.29 = 9 px = 0.7 %; three sigma.
    assert abs(small.mean() / mask.mean() - 1) < 0.02
    assert touched.mean() / mask.mean() - 1 > 0.04  # counting every touched pixel


def test_every_defect_of_a_mask_survives_beside_a_large_one():
    mask = np.zeros((128, 128), np.uint8)
    mask[64:, 64:] = 1
    mask[5, 5] = mask[40, 100] = 1
    small = images.resize_mask(mask, (16, 16))
    assert small[0, 0] and small[5, 12] and small[8:, 8:].all()
    assert small.sum() == 64 + 2


def test_resizing_to_the_same_size_changes_nothing():
    image, mask = _ramp(), _ramp()[..., 0] % 2
    assert images.resize_image(image, (9, 14)) is image
    assert images.resize_mask(mask, (9, 14)) is mask
