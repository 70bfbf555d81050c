"""Augmentation of auxiliary images: what moves, what only the image does, mosaics."""

import numpy as np
import pytest

from jaxanom.data import augmentation, catalog, images, pipeline

CATEGORIES = ("nut", "carpet")


@pytest.fixture(scope="module")
def dataset():
    return catalog.open_dataset("foundry", None, CATEGORIES, 32, 0, 1, 2, 2)


@pytest.fixture(scope="module")
def defects(dataset):
    return tuple(catalog.select(dataset, "test", anomalous=True))


def example_of(dataset, number):
    return catalog.source(dataset, [number])[0]


def generator(row):
    return pipeline.generator(3, 99, row)


def test_an_example_is_a_function_of_its_generator(dataset, defects):
    example = example_of(dataset, defects[0])
    kept = {name: np.copy(value) for name, value in example.items()}
    one, two, other = (
        augmentation.augment(example, generator(row)) for row in (5, 5, 6)
    )
    for name in kept:
        np.testing.assert_array_equal(example[name], kept[name])  # nothing is written
        np.testing.assert_array_equal(one[name], two[name])
    assert not np.array_equal(one["image"], other["image"])
    assert one["image"].dtype == one["mask"].dtype == np.uint8
    assert one["image"].shape == (32, 32, 3) and set(np.unique(one["mask"])) <= {0, 1}


def test_each_change_has_its_share(dataset, defects):
    """Of 200 draws; a share of one half has a deviation of 0.035."""
    example = example_of(dataset, defects[0])
    # A grey square with a mark: geometry moves the mark, the rest does not.
    mask = np.zeros((32, 32), np.uint8)
    mask[4:9, 2:20] = 1
    image = np.repeat((60 + 120 * mask)[..., None], 3, 2).astype(np.uint8)
    example = {**example, "image": image, "mask": mask}
    found = [augmentation.augment(example, generator(row)) for row in range(200)]
    same_mask = np.mean([np.array_equal(one["mask"], mask) for one in found])
    same_image = np.mean([np.array_equal(one["image"], image) for one in found])
    # No turn (1/2) and no quarter turns (1/2 + 1/8): 0.31; nothing else (1/8).
    assert 0.2 < same_mask < 0.42
    assert 0.01 < same_image < 0.09


def test_geometry_moves_the_mask_with_the_image(dataset, defects):
    example = example_of(dataset, defects[0])
    mask = np.zeros((32, 32), np.uint8)
    mask[6:14, 5:22] = 1
    image = np.repeat((40 + 180 * mask)[..., None], 3, 2).astype(np.uint8)
    example = {**example, "image": image, "mask": mask}
    for row in range(20):
        found = augmentation.augment(example, generator(row))
        level = found["image"].mean(2)
        inside = level[found["mask"] == 1].mean()
        assert inside > level[found["mask"] == 0].mean() + 80, row


@pytest.mark.parametrize("change", augmentation.FILTERS)
def test_a_filter_keeps_size_and_type_and_changes_values(dataset, defects, change):
    picture = example_of(dataset, defects[0])["image"]
    found = change(picture, generator(1))
    assert found.shape == picture.shape and found.dtype == np.uint8
    assert not np.array_equal(found, picture)
    flat = np.full((8, 8, 3), 77, np.uint8)
    if change is not augmentation.colour_jitter:
        np.testing.assert_array_equal(change(flat, generator(1)), flat)


def test_the_mean_filter_is_the_mean_of_nine(dataset, defects):
    picture = example_of(dataset, defects[0])["image"]
    found = augmentation.mean_filter(picture, generator(0))
    wanted = picture[10:13, 7:10].astype(float).mean((0, 1))
    np.testing.assert_allclose(found[11, 8], wanted, atol=1)  # rounding


def test_a_mosaic_holds_four_defects_of_its_own_category(dataset, defects):
    normal = catalog.select(dataset, "test", "carpet", anomalous=False)[0]
    transform = augmentation.make(dataset, defects, mosaic=1.0)
    example = example_of(dataset, normal)
    found = transform(example, generator(0))
    assert found["label"] == 1 and found["defect_id"] > 0
    assert found["category_id"] == CATEGORIES.index("carpet")
    assert found["image"].shape == (32, 32, 3) and found["mask"].shape == (32, 32)
    quarters = [
        found["mask"][rows, columns].any()
        for rows in (slice(16), slice(16, 32))
        for columns in (slice(16), slice(16, 32))
    ]
    assert all(quarters)
    # Each quarter is a whole defective image of the category, made smaller.
    category = "carpet"
    own = [n for n in defects if dataset.records[n].category == category]
    small = [
        images.resize_image(example_of(dataset, n)["image"], (16, 16)) for n in own
    ]
    corners = [
        found["image"][rows, columns]
        for rows in (slice(16), slice(16, 32))
        for columns in (slice(16), slice(16, 32))
    ]
    for corner in corners:
        assert any(np.array_equal(corner, part) for part in small)
    assert len(own) >= 4 and len({corner.tobytes() for corner in corners}) == 4
    # Negative control: the other category's are of its own defects.
    nut = catalog.select(dataset, "test", "nut", anomalous=False)[0]
    other = transform(example_of(dataset, nut), generator(0))["image"][:16, :16]
    assert not any(np.array_equal(other, part) for part in small)


def test_a_mosaic_takes_an_odd_side(dataset, defects):
    part = example_of(dataset, defects[0])
    whole = {
        **part,
        "image": np.zeros((7, 9, 3), np.uint8),
        "mask": np.zeros((7, 9), np.uint8),
    }
    found = augmentation.join(whole, [part] * 4)
    assert found["image"].shape == (7, 9, 3) and found["mask"].shape == (7, 9)


def test_mosaics_come_as_often_as_asked(dataset, defects):
    normal = catalog.select(dataset, "test", "nut", anomalous=False)[0]
    example = example_of(dataset, normal)
    transform = augmentation.make(dataset, defects, mosaic=0.4)
    labels = [transform(example, generator(row))["label"] for row in range(200)]
    assert 0.3 < np.mean(labels) < 0.5  # 0.4 with a deviation of 0.035
    assert augmentation.make(dataset, defects) is None


def test_what_makes_no_sense_is_refused(dataset, defects):
    with pytest.raises(ValueError, match="augmentation='strong'"):
        augmentation.make(dataset, defects, "strong")
    with pytest.raises(ValueError, match=r"mosaic=1.5"):
        augmentation.make(dataset, defects, mosaic=1.5)
    with pytest.raises(ValueError, match="no defective image"):
        augmentation.make(dataset, (), mosaic=0.4)
    example = example_of(dataset, defects[0])
    with pytest.raises(ValueError, match="8-bit"):
        augmentation.augment(
            {**example, "image": example["image"] / 255.0}, generator(0)
        )
