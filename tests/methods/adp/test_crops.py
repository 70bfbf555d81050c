import numpy as np
import pytest

from jaxanom.methods.adp.memory import crops


def test_the_pyramid_overlaps_by_half_and_stays_inside():
    found = crops.pyramid((1, 2, 4), jitter=0.05, seed=3)
    assert found.level_sizes.tolist() == [1, 9, 49]
    assert found.level_starts.tolist() == [0, 1, 10]
    assert found.boxes.shape == (59, 4)
    ends = found.boxes[:, :2] + found.boxes[:, 2:]
    assert found.boxes.min() >= 0 and ends.max() <= 1 + 1e-6
    np.testing.assert_array_equal(found.boxes[0], [0, 0, 1, 1])
    plain = crops.pyramid((1, 2), jitter=0.0).boxes
    assert sorted(set(plain[1:, 0].tolist())) == [0, 0.25, 0.5]


def test_a_pyramid_without_the_whole_image_is_refused():
    with pytest.raises(ValueError, match=r"adp\.pyramid"):
        crops.pyramid((2, 4))


def test_a_crop_of_whole_cells_is_the_image_there():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(8, 8, 3)).astype(np.float32)
    boxes = np.array([[0, 0, 1, 1], [0.25, 0.5, 0.5, 0.5]], np.float32)
    found = crops.crop(image, boxes, 4)
    # Rows are tops: row 2 and column 4 begin this box.
    np.testing.assert_allclose(found[1], image[2:6, 4:8], atol=1e-6)
    whole = crops.crop(image, boxes[:1], 8)[0]
    np.testing.assert_allclose(whole, image, atol=1e-6)


def test_views_zoom_but_never_show_the_whole_image():
    boxes = crops.views(20, 0.12, seed=1)
    assert np.all(boxes[:, 2] < 1) and np.all(boxes[:, 2] >= 0.88)
    assert np.all(boxes[:, :2] + boxes[:, 2:] <= 1)


def test_turned_copies_stand_beside_their_shot():
    images = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
    turned, owners = crops.turned(images, (0, 2))
    assert owners.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(turned[::2], images)
    np.testing.assert_array_equal(turned[1], images[0, ::-1, ::-1])


@pytest.mark.parametrize("side", [2, 3, 5])
def test_cell_means_keep_a_masks_area_on_any_grid(side):
    mask = (np.random.default_rng(1).random((2, 6, 6)) < 0.4).astype(np.uint8)
    found = crops.cell_means(mask, side)
    np.testing.assert_allclose(found.mean((1, 2)), mask.mean((1, 2)), atol=1e-6)
    if side == 3:
        wanted = mask.reshape(2, 3, 2, 3, 2).mean((2, 4))
        np.testing.assert_allclose(found, wanted, atol=1e-6)
