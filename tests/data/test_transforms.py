import functools
import itertools

import numpy as np
import pytest

from jaxanom.data import pipeline, transforms


def make_example(height=16, width=16, dtype=np.uint8, index=0):
    """An image whose red channel is bright exactly where the mask is set."""
    rng = np.random.default_rng(index)
    image = rng.integers(0, 100, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[3:7, 8:11] = 1
    image[..., 0] = np.where(mask, 255, image[..., 0])
    if dtype != np.uint8:
        image = (image / 255).astype(dtype)
    return {
        "image": image,
        "mask": mask,
        "label": np.int32(1),
        "defect_id": np.int32(2),
        "index": np.int32(index),
        "extra": "kept",
    }


def marked(example):
    """Returns where the image itself says the mask is."""
    top = 255 if example["image"].dtype == np.uint8 else 1
    return example["image"][..., 0] > 0.7 * top


EXACT = {
    "horizontal": lambda e: transforms.flip(e, horizontal=True),
    "vertical": lambda e: transforms.flip(e, vertical=True),
    "quarter": lambda e: transforms.rot90(e, 1),
    "shift": lambda e: transforms.shift(e, 5, -3),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("name", EXACT)
def test_image_and_mask_move_together_and_keep_their_types(name, dtype):
    example = make_example(16, 20, dtype)
    before = {k: np.copy(example[k]) for k in ("image", "mask")}
    moved = EXACT[name](example)
    np.testing.assert_array_equal(moved["mask"], marked(moved))
    assert moved["image"].dtype == dtype and moved["mask"].dtype == np.uint8
    assert not np.array_equal(moved["mask"], example["mask"])  # it did move
    assert moved["extra"] == "kept" and moved["label"] == 1
    for key, value in before.items():
        np.testing.assert_array_equal(example[key], value)


def test_flips_and_turns_have_their_inverse():
    example = make_example(12, 16)
    back = [
        transforms.flip(transforms.flip(example, True, True), True, True),
        transforms.rot90(transforms.rot90(example, 1), 3),
        transforms.flip(transforms.rot90(example, 2), True, True),
    ]
    for result in back:
        np.testing.assert_array_equal(result["image"], example["image"])
        np.testing.assert_array_equal(result["mask"], example["mask"])
    flipped = transforms.flip(example, horizontal=True)
    np.testing.assert_array_equal(flipped["image"], example["image"][:, ::-1])
    assert not np.array_equal(flipped["image"], example["image"][::-1])


def test_a_shift_moves_down_and_right_and_mirrors_at_the_border():
    moved = transforms.shift(make_example(), 2, 1)
    example = make_example()
    image = moved["image"]
    np.testing.assert_array_equal(image[2:, 1:], example["image"][:-2, :-1])
    np.testing.assert_array_equal(image[:2, 1:], example["image"][1::-1, :-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_rotation_by_quarters_equals_the_exact_turn(turns, dtype):
    example = make_example(dtype=dtype)
    exact = transforms.rot90(example, turns)
    turned = transforms.rotate(example, 90.0 * turns)
    # Bilinear weights of 1e-15 off the grid; at most one grey level by rounding.
    atol = 1 if dtype == np.uint8 else 1e-5
    np.testing.assert_allclose(
        turned["image"].astype(float), exact["image"].astype(float), atol=atol
    )
    np.testing.assert_array_equal(turned["mask"], exact["mask"])


@pytest.mark.parametrize("angle", [-10.0, 7.0])
def test_a_rotation_keeps_image_and_mask_on_each_other(angle):
    y, x = np.indices((64, 64))
    mask = (np.hypot(x - 40, y - 20) < 12).astype(np.uint8)
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    example = {"image": image, "mask": mask}
    moved = transforms.rotate(example, angle)
    assert set(np.unique(moved["mask"])) == {0, 1}
    # Both are the same bilinear values cut at a half; those within a level of it may
    # fall either way.
    level = moved["image"][..., 0].astype(float)
    wrong = moved["mask"] != (level >= 127.5)
    assert np.abs(level[wrong] - 127.5).max(initial=0) <= 1.5
    assert 0.97 < moved["mask"].sum() / mask.sum() < 1.03  # a turn keeps areas, edges
    # Counter-clockwise: the disc, right of the centre and above it, moves up and left.
    down = np.nonzero(moved["mask"])[0].mean() - np.nonzero(mask)[0].mean()
    assert np.sign(down) == -np.sign(angle)


def test_a_one_pixel_defect_survives_any_turn_and_shift_that_keep_it_in_sight():
    rng = np.random.default_rng(0)
    for _ in range(50):
        example = make_example(32, 32)
        example["mask"] = np.zeros((32, 32), np.uint8)
        example["mask"][rng.integers(8, 24), rng.integers(8, 24)] = 1
        turned = transforms.rotate(example, float(rng.uniform(-15, 15)))
        moved = transforms.random_shift(turned, rng, 0.1)
        assert moved["mask"].any() and moved["label"] == 1


def test_a_defect_moved_out_of_sight_is_no_longer_labelled():
    example = make_example()
    corner = np.zeros_like(example["mask"])
    corner[:2, :2] = 1
    example["mask"] = corner
    # Turned by an eighth, the corners lie outside.
    without = transforms.rotate(example, 45.0)
    assert without["label"] == 0 and without["defect_id"] == 0
    assert without["label"].dtype == np.int32
    inside = transforms.rotate(transforms.shift(example, 4, 4), 45.0)
    assert inside["label"] == 1 and inside["defect_id"] == 2
    unknown = {**example, "mask": np.zeros_like(example["mask"])}
    assert transforms.rotate(unknown, 45.0)["label"] == 1  # had no ground truth


def test_a_mask_of_another_size_is_an_error():
    example = {**make_example(), "mask": np.zeros((4, 4), np.uint8)}
    with pytest.raises(ValueError, match="does not belong to image"):
        transforms.flip(example, True)


def test_random_flips_reach_all_eight_symmetries_of_a_square_and_four_of_a_rectangle():
    rng = np.random.default_rng(0)
    for width, count in ((6, 8), (9, 4)):
        example = make_example(16, 16)
        for key in ("image", "mask"):
            example[key] = example[key][:6, :width]
        found = {
            transforms.random_flip(example, rng, transforms.FLIPS)["image"].tobytes()
            for _ in range(200)
        }
        assert len(found) == count
    only = {
        transforms.random_flip(example, rng, ("vertical",))["image"].tobytes()
        for _ in range(50)
    }
    assert only == {example["image"].tobytes(), example["image"][::-1].tobytes()}
    with pytest.raises(ValueError, match="wanted some of horizontal, vertical, rot90"):
        transforms.random_flip(example, rng, ("diagonal",))


def test_a_view_is_a_function_of_seed_index_and_view():
    settings = {"flips": ("horizontal",), "max_shift": 0.3}
    view = functools.partial(transforms.views, **settings)
    first, second = make_example(index=1), make_example(index=1)
    np.testing.assert_array_equal(view(first, 3)["image"], view(second, 3)["image"])
    assert view(first, 0) is first
    seen = {view(first, number)["image"].tobytes() for number in range(8)}
    assert len(seen) == 8
    assert not np.array_equal(view(first, 1)["image"], view(first, 1, seed=1)["image"])
    renamed = {**first, "index": np.int32(9)}
    assert not np.array_equal(view(first, 1)["image"], view(renamed, 1)["image"])
    plain = transforms.views(first, 1)  # no settings change nothing
    np.testing.assert_array_equal(plain["image"], first["image"])
    np.testing.assert_array_equal(plain["mask"], first["mask"])


def test_read_only_examples_of_a_cache_can_be_augmented():
    example = make_example()
    for key in ("image", "mask"):
        example[key].flags.writeable = False
    result = transforms.views(transforms.rotate(example, 5.0), 1, 0, transforms.FLIPS)
    assert result["image"].shape == (16, 16, 3)


def test_augmentation_runs_inside_the_pipeline_and_resumes():
    class Rows:
        def __len__(self):
            return 5

        def __getitem__(self, row):
            example = make_example(index=row)
            del example["extra"]
            return example

    transform = functools.partial(transforms.random_flip, flips=transforms.FLIPS)

    def taken(start, count):
        stream = pipeline.batches(Rows(), 2, 0, start, transform=transform)
        return list(itertools.islice(stream, count))

    whole = taken(0, 5)
    for first, second in zip(whole[3:], taken(3, 2), strict=True):
        np.testing.assert_array_equal(first["image"], second["image"])
        np.testing.assert_array_equal(first["mask"], second["mask"])
