import functools

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
def test_an_affine_quarter_turn_equals_the_exact_one(turns, dtype):
    example = make_example(dtype=dtype)
    exact = transforms.rot90(example, turns)
    turned = transforms.affine(example, angle=90.0 * turns)
    # Bilinear weights of 1e-15 off the grid; at most one grey level by rounding.
    atol = 1 if dtype == np.uint8 else 1e-5
    np.testing.assert_allclose(
        turned["image"].astype(float), exact["image"].astype(float), atol=atol
    )
    np.testing.assert_array_equal(turned["mask"], exact["mask"])


def test_an_affine_move_by_whole_pixels_equals_the_exact_shift():
    example = make_example(14, 18)
    exact = transforms.shift(example, -4, 3)
    moved = transforms.affine(example, down=-4, right=3)
    np.testing.assert_array_equal(moved["image"], exact["image"])
    np.testing.assert_array_equal(moved["mask"], exact["mask"])


def test_enlarging_twice_gives_four_times_the_mask_about_the_centre():
    example = make_example(16, 16)
    example["mask"] = np.zeros((16, 16), np.uint8)
    example["mask"][6:10, 6:10] = 1
    large = transforms.affine(example, scale=2.0)["mask"]
    assert large[4:12, 4:12].all() and large.sum() == 64


@pytest.mark.parametrize("angle", [-10.0, 7.0])
def test_a_small_affine_keeps_image_and_mask_on_each_other(angle):
    y, x = np.indices((64, 64))
    mask = (np.hypot(x - 40, y - 20) < 12).astype(np.uint8)
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    example = {"image": image, "mask": mask}
    moved = transforms.affine(example, angle, 1.1, 3, -2)
    assert set(np.unique(moved["mask"])) == {0, 1}
    # Both are the same bilinear values cut at a half; those within a level of it may
    # fall either way.
    level = moved["image"][..., 0].astype(float)
    wrong = moved["mask"] != (level >= 127.5)
    assert np.abs(level[wrong] - 127.5).max(initial=0) <= 1.5
    assert 1.15 < moved["mask"].sum() / mask.sum() < 1.27  # 1.1 squared = 1.21, edges


def test_a_one_pixel_defect_survives_any_affine_that_keeps_it_in_sight():
    rng = np.random.default_rng(0)
    for _ in range(50):
        example = make_example(32, 32)
        example["mask"] = np.zeros((32, 32), np.uint8)
        example["mask"][rng.integers(8, 24), rng.integers(8, 24)] = 1
        moved = transforms.random_affine(example, rng, 0.1, 15, 0.3)
        assert moved["mask"].any() and moved["label"] == 1


def test_a_defect_moved_out_of_sight_is_no_longer_labelled():
    example = make_example()
    corner = np.zeros_like(example["mask"])
    corner[:2, :2] = 1
    example["mask"] = corner
    # Twice as large about the centre, the corner lies outside.
    without = transforms.affine(example, scale=2.0)
    assert without["label"] == 0 and without["defect_id"] == 0
    assert without["label"].dtype == np.int32
    inside = transforms.affine(example, scale=2.0, down=8, right=8)
    assert inside["label"] == 1 and inside["defect_id"] == 2
    unknown = {**example, "mask": np.zeros_like(example["mask"])}
    assert transforms.affine(unknown, scale=2.0)["label"] == 1  # had no ground truth


def test_a_mask_of_another_size_is_an_error():
    example = {**make_example(), "mask": np.zeros((4, 4), np.uint8)}
    with pytest.raises(ValueError, match="does not belong to image"):
        transforms.flip(example, True)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_photometric_changes_stay_in_range_and_leave_the_mask(dtype):
    example = make_example(dtype=dtype)
    top = 255 if dtype == np.uint8 else 1
    for brightness, contrast in ((0.5, 1.0), (-0.5, 1.0), (0.0, 3.0)):
        changed = transforms.photometric(example, brightness, contrast)
        assert changed["image"].dtype == dtype
        assert 0 <= changed["image"].min() and changed["image"].max() <= top
        assert changed["mask"] is example["mask"]
    brighter = transforms.photometric(example, 0.1)["image"].astype(float)
    unclipped = example["image"] < 0.8 * top
    rise = (brighter - example["image"])[unclipped]
    # One tenth of the range; uint8 rounds 25.5 by half a level.
    np.testing.assert_allclose(rise, 0.1 * top, atol=0.5 if top == 255 else 1e-6)
    same = transforms.photometric(example)["image"].astype(float)
    # The mean is taken off and added again: float32 rounding, below half a level.
    np.testing.assert_allclose(same, example["image"].astype(float), atol=1e-6)
    flat = transforms.photometric(example, contrast=0.0)["image"]
    assert np.ptp(flat) == 0


def test_random_changes_are_functions_of_the_generator():
    settings = {
        "flips": ("horizontal", "vertical", "rot90"),
        "shift": 0.1,
        "affine": (5.0, 0.1),
        "photometric": (0.1, 0.1),
    }

    def run(seed):
        rng = np.random.default_rng(seed)
        return transforms.augment(make_example(), rng, **settings)

    np.testing.assert_array_equal(run(0)["image"], run(0)["image"])
    assert not np.array_equal(run(0)["image"], run(1)["image"])


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


def test_no_settings_change_nothing():
    example = make_example()
    result = transforms.augment(example, np.random.default_rng(0))
    np.testing.assert_array_equal(result["image"], example["image"])
    np.testing.assert_array_equal(result["mask"], example["mask"])


def test_a_view_is_a_function_of_seed_index_and_view():
    settings = {"flips": ("horizontal",), "shift": 0.3, "affine": (10.0, 0.1)}
    view = functools.partial(transforms.views, **settings)
    first, second = make_example(index=1), make_example(index=1)
    np.testing.assert_array_equal(view(first, 3)["image"], view(second, 3)["image"])
    assert view(first, 0) is first
    seen = {view(first, number)["image"].tobytes() for number in range(8)}
    assert len(seen) == 8
    assert not np.array_equal(view(first, 1)["image"], view(first, 1, seed=1)["image"])
    renamed = {**first, "index": np.int32(9)}
    assert not np.array_equal(view(first, 1)["image"], view(renamed, 1)["image"])


def test_read_only_examples_of_a_cache_can_be_augmented():
    example = make_example()
    for key in ("image", "mask"):
        example[key].flags.writeable = False
    settings = {"flips": transforms.FLIPS, "affine": (5.0, 0.1)}
    result = transforms.augment(example, np.random.default_rng(0), **settings)
    assert result["image"].shape == (16, 16, 3)


def test_augmentation_runs_inside_the_pipeline_and_resumes():
    class Rows:
        def __len__(self):
            return 5

        def __getitem__(self, row):
            example = make_example(index=row)
            del example["extra"]
            return example

    transform = functools.partial(
        transforms.augment, flips=("horizontal",), affine=(5.0, 0.1)
    )

    def stream(start):
        return pipeline.batches(Rows(), 2, 0, start, transform=transform, num_steps=5)

    whole = list(stream(0))
    for first, second in zip(whole[3:], stream(3), strict=True):
        np.testing.assert_array_equal(first["image"], second["image"])
        np.testing.assert_array_equal(first["mask"], second["mask"])
