import shutil

import numpy as np
import pytest
from PIL import Image

from jaxanom.data import catalog, pools
from jaxanom.data.decoding import inspection
from jaxanom.data.layouts import mvtec


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def spot(side=32, width=8):
    mask = np.zeros((side, side), np.uint8)
    mask[4 : 4 + width, 6 : 6 + width] = 255
    return mask


@pytest.fixture
def part(tmp_path):
    """3 + 1 normal images and a defective one with its mask, 32 px."""
    rng = np.random.default_rng(0)
    names = [f"train/good/{n}.png" for n in range(3)]
    for name in (*names, "test/good/0.png", "test/dent/0.png"):
        save(tmp_path / "part" / name, rng.integers(0, 255, (32, 32, 3), np.uint8))
    save(tmp_path / "part/ground_truth/dent/0.png", spot())
    return tmp_path / "part"


def report(folder, size=32):
    return inspection.inspect(folder, mvtec.read_folder(folder), size)


def test_an_ordinary_folder_gives_no_warning(part):
    assert report(part) == ([], [])


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (spot() // 2 + np.eye(32, dtype=np.uint8) * 40, "more than two values"),
        (spot() * 0, "counts as missing"),
        (255 - spot(), "over half"),
        (np.dstack([spot() * 0] * 3 + [spot()]), "only in the alpha channel"),
        (np.dstack([spot()] * 3 + [spot().T]), "varies and is not read"),
    ],
)
def test_a_strange_mask_is_named(part, mask, said):
    save(part / "ground_truth/dent/0.png", mask)
    (warning,) = report(part).warnings
    assert said in warning and "part/test/dent/0.png" in warning


def test_files_that_are_left_out_are_counted_by_suffix_and_folder(part):
    save(part / "train/good/cam/0.png", spot())
    (part / "train/good/a.heic").write_bytes(b"x")
    assert report(part).warnings == [
        "left out: 1 x .heic in train/good",
        "left out: 1 x .png in train/good/cam",
    ]


def test_equal_pixels_in_train_and_test_are_named_whatever_the_file(part):
    image = Image.open(part / "train/good/0.png")
    image.save(part / "test/good/0.bmp")
    (warning,) = report(part).warnings
    assert "part/train/good/0.png is part/test/good/0.bmp" in warning


@pytest.mark.parametrize(("size", "warned"), [(8, True), (16, False)])
def test_defects_that_vanish_are_named_with_a_way_out(part, size, warned):
    save(part / "ground_truth/dent/0.png", spot(width=4))  # 1 px of 8, 2 px of 16
    warnings = report(part, size).warnings
    assert len(warnings) == warned
    assert not warned or "config.data.tiles=2" in warnings[0]


def test_an_orientation_that_the_mask_lacks_is_named(part):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.asarray(Image.open(part / "test/dent/0.png"))
    save(part / "test/dent/0.png", image, exif=exif)
    (warning,) = report(part).warnings
    assert "EXIF orientation" in warning


def test_images_that_use_a_sliver_of_their_range_are_named(part):
    save(part / "train/good/0.png", spot() // 16)
    assert "fewer bits" in report(part).warnings[0]


def test_every_unreadable_file_is_an_error_of_its_own(part):
    for name in ("train/good/0.png", "train/good/2.png"):
        (part / name).write_bytes(b"no image")
    errors = report(part).errors
    assert len(errors) == 2 and "0.png" in errors[0] and "2.png" in errors[1]


@pytest.mark.parametrize("name", ["Good", "ok", "OK", "normal"])
def test_a_folder_named_like_good_is_taken_as_good_and_said(part, name):
    (part / "test/good").rename(part / "test" / name)
    assert {r.defect_type for r in mvtec.read_folder(part)} == {"good", "dent"}
    assert f"{name} is taken as good" in report(part).warnings[0]


def test_good_beside_defects_is_divided_and_said(tmp_path):
    for n in range(7):
        save(tmp_path / f"nut/good/{n}.png", np.full((8, 8), 100 + n, np.uint8))
    records = mvtec.read_folder(tmp_path / "nut")
    assert [r.split for r in records] == ["train"] * 7  # nothing to test on
    save(tmp_path / "nut/bad/0.png", np.full((8, 8), 90, np.uint8))
    records = mvtec.read_folder(tmp_path)
    tested = [r.name for r in records if r.split == "test"]
    assert tested == ["nut/test/good/4.png", "nut/test/bad/0.png"]
    assert len(records) == 8
    assert "no train and test" in report(tmp_path).warnings[0]
    save(tmp_path / "nut/masks/0.png", spot(8, 2))
    with pytest.raises(ValueError, match=r"put masks into .*ground_truth/<defect>"):
        mvtec.read_folder(tmp_path)


def test_folders_of_folders_are_walked_and_hidden_ones_are_not(part):
    shutil.copytree(part / "train", part / "train/.hidden")
    assert len(mvtec.image_files([part / "train"], nested=True)) == 3
    with pytest.raises(ValueError, match="wanted images"):
        mvtec.image_files([part / "train"])


def test_an_empty_mask_counts_as_missing_where_defects_are_learned(part):
    def dataset():
        return catalog.open_dataset("folder", part, image_size=32)

    defects = catalog.select(dataset(), anomalous=True)
    pools.check_masks(dataset(), defects)
    save(part / "ground_truth/dent/0.png", spot() * 0)
    with pytest.raises(ValueError, match=r"1 defective images .* no mask"):
        pools.check_masks(dataset(), defects)
