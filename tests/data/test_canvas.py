"""Images of any ratio in one canvas: nothing squeezed, nothing lost, labels true."""

import numpy as np
import pytest
from PIL import Image

from jaxanom.data import canvas, catalog, images
from jaxanom.errors import UserError


def picture(height, width):
    """A disc in the middle, a third of the shorter side wide, on a gradient."""
    y, x = np.mgrid[:height, :width]
    radius = min(height, width) / 6
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2
    image = np.stack([200 * inside, x * 255 // width, y * 255 // height], -1)
    return image.astype(np.uint8), inside.astype(np.uint8)


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([(645, 256), (640, 256), (200, 200)], (576, 224)),  # the median, not the mean
        ([(100, 300)], (224, 672)),
        ([(512, 512)], (224, 224)),
        ([(10, 1000)], (224, 896)),  # never longer than four times
    ],
)
def test_a_canvas_has_the_median_ratio_and_its_side_is_the_shorter(shapes, size):
    assert canvas.size_for(shapes, 224) == size


def test_both_sides_can_be_halved_as_often():
    assert canvas.size_for([(645, 256)], 112) == (288, 112)
    assert canvas.size_for([(645, 256)], 100) == (252, 100)


def proportions(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.ptp(rows) / np.ptp(columns)


def test_a_disc_stays_a_disc_where_stretching_squeezes_it():
    _, mask = picture(600, 200)
    size = (224, 160)
    kept = canvas.content(canvas.fit_mask(mask, size), mask.shape)
    assert kept.shape == (224, 75)
    # A disc of 25 pixels: one pixel more or less in a side.
    assert 0.9 < proportions(kept) < 1.1
    assert not 0.5 < proportions(images.resize_mask(mask, size)) < 2


def test_the_border_is_the_mirrored_inside_of_image_and_mask_alike():
    image, mask = picture(200, 160)
    mask[:30] = 1  # a defect at the upper edge
    size, place = (224, 320), canvas.region((200, 160), (224, 320))
    fitted, marked = canvas.fit_image(image, size), canvas.fit_mask(mask, size)
    left, right = place.left, place.left + place.width
    np.testing.assert_array_equal(
        fitted[:, left - 5 : left][:, ::-1], fitted[:, left : left + 5]
    )
    np.testing.assert_array_equal(
        marked[:, right : right + 5][:, ::-1], marked[:, right - 5 : right]
    )
    assert marked[2, 0] == 1 and marked[-2, 0] == 0


def test_near_ratios_fill_the_canvas_and_far_ones_do_not():
    assert canvas.region((645, 256), (576, 224)) == (0, 0, 576, 224)
    assert canvas.region((400, 256), (576, 224)).height < 400


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1), (33, 65)])
def test_any_shape_fits_and_a_defect_survives(shape):
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 2, shape[1] // 2] = 1
    fitted = canvas.fit_mask(mask, (64, 96))
    assert fitted.shape == (64, 96) and canvas.content(fitted, shape).any()
    image = canvas.fit_image(np.zeros((*shape, 3), np.uint8), (64, 96))
    assert image.shape == (64, 96, 3)


def test_a_folder_of_tall_images_opens_tall(tmp_path):
    for split, count in (("train/good", 2), ("test/crack", 1)):
        folder = tmp_path / "part" / split
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(300, 100)[0]).save(folder / f"{number}.png")
    tall = catalog.open_dataset("folder", tmp_path, image_size=64, aspect="keep")
    assert tall.image_size == (192, 64) and tall.keeps_aspect
    assert tall.load(tall.records[0])[0].shape == (192, 64, 3)
    square = catalog.open_dataset("folder", tmp_path, image_size=64)
    assert square.image_size == (64, 64) and not square.keeps_aspect
    with pytest.raises(UserError, match="aspect"):
        catalog.open_dataset("folder", tmp_path, image_size=64, aspect="kept")


def test_very_different_ratios_are_told_and_a_few_odd_images_are_not():
    mixed = [(300, 100), (100, 100), (100, 250)] * 5
    assert canvas.varies(mixed)
    assert not canvas.varies([(645, 256)] * 20 + [(256, 256)])
    assert not canvas.varies([(200, 160)])


def test_a_folder_of_very_different_ratios_is_stretched(tmp_path):
    folder = tmp_path / "part" / "train" / "good"
    folder.mkdir(parents=True)
    for number, shape in enumerate([(300, 100), (100, 100), (100, 300)]):
        Image.fromarray(picture(*shape)[0]).save(folder / f"{number}.png")
    dataset = catalog.open_dataset("folder", tmp_path, image_size=64, aspect="keep")
    assert dataset.image_size == (64, 64) and not dataset.keeps_aspect
