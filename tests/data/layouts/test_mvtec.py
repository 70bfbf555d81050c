from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxanom.data.layouts import mvtec


def write(path, size=(8, 6), value=100):
    """Writes a grey file of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, np.uint8)).save(path)


def make_category(root, num_train=3, num_defects=2, masks=True):
    for i in range(num_train):
        write(root / "train" / "good" / f"{i}.png")
    write(root / "test" / "good" / "0.png")
    for i in range(num_defects):
        write(root / "test" / "crack" / f"{i}.png")
        if masks:
            write(root / "ground_truth" / "crack" / f"{i}_mask.png", value=255)
    return root


def test_a_category_folder_and_a_root_of_it_give_the_same_records(tmp_path):
    make_category(tmp_path / "nut")
    from_root = mvtec.read_folder(tmp_path)
    assert from_root == mvtec.read_folder(tmp_path / "nut")
    assert from_root == mvtec.read_folder(str(tmp_path), ["nut"])
    kinds = [(r.split, r.defect_type, r.mask is not None) for r in from_root]
    assert kinds == [
        *[("train", "good", False)] * 3,
        ("test", "good", False),
        *[("test", "crack", True)] * 2,
    ]
    assert from_root[-1].name == "nut/test/crack/1.png"
    assert from_root[-1].mask.endswith("ground_truth/crack/1_mask.png")
    assert len({r.name for r in from_root}) == len(from_root)


def test_a_category_is_named_by_its_folder_even_when_given_as_a_dot(
    tmp_path, monkeypatch
):
    make_category(tmp_path / "nut")
    monkeypatch.chdir(tmp_path / "nut")
    assert {r.category for r in mvtec.read_folder(".")} == {"nut"}


def test_categories_come_in_the_order_asked_for(tmp_path):
    for name in ("a2", "a10", "b"):
        make_category(tmp_path / name)

    def order(categories=None):
        records = mvtec.read_folder(tmp_path, categories)
        return list(dict.fromkeys(r.category for r in records))

    assert order() == ["a2", "a10", "b"]
    assert order(["b", "a2"]) == ["b", "a2"]
    assert order(["b", "b"]) == ["b"]


def test_files_are_in_natural_order(tmp_path):
    for name in ("10", "9", "100", "a2", "a10", "1"):
        write(tmp_path / "nut" / "train" / "good" / f"{name}.png")
    names = [Path(r.image).stem for r in mvtec.read_folder(tmp_path)]
    assert names == ["1", "9", "10", "100", "a2", "a10"]
    assert names != sorted(names)  # the plain order differs


def test_hidden_files_other_files_and_other_folders_are_left_alone(tmp_path):
    root = make_category(tmp_path / "nut")
    write(root / "train" / "good" / ".hidden.png")
    (root / "train" / "good" / "notes.txt").write_text("x")
    (root / "train" / "good" / "Thumbs.db").write_text("x")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "runs").mkdir()
    write(root / "validation" / "good" / "0.png")
    write(root / "ground_truth" / "good" / "0.png")
    write(root / ".cache" / "train" / "good" / "0.png")
    assert len(mvtec.read_folder(tmp_path)) == 6


def test_masks_are_optional_and_found_by_either_name(tmp_path):
    root = make_category(tmp_path / "nut", masks=False)
    assert all(r.mask is None for r in mvtec.read_folder(root))
    write(root / "ground_truth" / "crack" / "0.png")
    write(root / "ground_truth" / "crack" / "1_mask.png")
    masks = [r.mask for r in mvtec.read_folder(root) if r.mask]
    assert [Path(m).name for m in masks] == ["0.png", "1_mask.png"]


def test_a_folder_of_masks_per_image_is_one_mask(tmp_path):
    root = make_category(tmp_path / "nut", masks=False)
    for image, count in (("0", 2), ("1", 1)):
        for i in range(count):
            write(root / "ground_truth" / "crack" / image / f"{i}.png")
    records = [r for r in mvtec.read_folder(root) if r.mask]
    assert [len(mvtec.mask_files(r.mask)) for r in records] == [2, 1]
    mvtec.check(records)


def test_train_good_alone_is_enough(tmp_path):
    write(tmp_path / "nut" / "train" / "good" / "0.png")
    assert len(mvtec.read_folder(tmp_path)) == 1


def test_no_such_folder_and_a_file_in_its_place_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        mvtec.read_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"file is a file"):
        mvtec.read_folder(tmp_path / "file")


def test_a_missing_train_good_error_says_what_was_found(tmp_path):
    write(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"no train/good in .*holds a\.png; put"):
        mvtec.read_folder(tmp_path)
    write(tmp_path / "nut" / "train" / "ok" / "0.png")
    with pytest.raises(ValueError, match=r"nut has no train/good; .*train holds ok/"):
        mvtec.read_folder(tmp_path)
    write(tmp_path / "cap" / "test" / "good" / "0.png")
    with pytest.raises(ValueError, match=r"cap has no train/good; .*cap holds test/"):
        mvtec.read_folder(tmp_path, ["cap"])
    assert len(mvtec.read_folder(tmp_path, ["cap"], require_train=False)) == 1


def test_empty_folders_are_errors(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"nothing holds nothing"):
        mvtec.read_folder(tmp_path / "nothing")
    root = make_category(tmp_path / "nut")
    (root / "test" / "empty").mkdir()
    (root / "test" / "empty" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"empty holds no images; .*holds a\.txt"):
        mvtec.read_folder(root)


def test_defects_under_train_are_an_error(tmp_path):
    root = make_category(tmp_path / "nut")
    write(root / "train" / "crack" / "0.png")
    with pytest.raises(ValueError, match=r"train holds crack beside good"):
        mvtec.read_folder(root)


def test_an_unknown_category_error_names_the_nearest_and_lists_all(tmp_path):
    make_category(tmp_path / "hazelnut")
    make_category(tmp_path / "grid")
    with pytest.raises(ValueError, match=r"mean 'hazelnut'. known: grid, hazelnut"):
        mvtec.read_folder(tmp_path, ["hazlenut"])


def test_masks_for_a_part_of_the_images_are_an_error(tmp_path):
    root = make_category(tmp_path / "nut", num_defects=3)
    (root / "ground_truth" / "crack" / "1_mask.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images have no mask .*1\.png"):
        mvtec.read_folder(root)


def test_two_images_that_share_a_mask_are_an_error(tmp_path):
    root = make_category(tmp_path / "nut")
    write(root / "test" / "crack" / "0.jpg")
    with pytest.raises(ValueError, match=r"0\.jpg and .*0\.png share the mask"):
        mvtec.read_folder(root)


def test_check_passes_good_files_and_names_a_mask_of_another_size(tmp_path):
    root = make_category(tmp_path / "nut")
    mvtec.check(mvtec.read_folder(root))
    write(root / "ground_truth" / "crack" / "1_mask.png", size=(8, 7))
    with pytest.raises(
        ValueError, match=r"1_mask\.png is 8 x 7, its image .*1\.png is 8 x 6"
    ):
        mvtec.check(mvtec.read_folder(root))


def test_check_names_several_bad_files_at_once(tmp_path):
    root = make_category(tmp_path / "nut")
    (root / "train" / "good" / "1.png").write_bytes(b"no image")
    write(root / "ground_truth" / "crack" / "0_mask.png", size=(2, 2))
    with pytest.raises(ValueError) as caught:
        mvtec.check(mvtec.read_folder(root))
    message = str(caught.value)
    assert message.startswith("2 of 6 images are bad")
    assert "good/1.png" in message and "0_mask.png is 2 x 2" in message


def test_an_empty_mask_folder_of_an_image_is_an_error(tmp_path):
    root = make_category(tmp_path / "nut", num_defects=1, masks=False)
    (root / "ground_truth" / "crack" / "0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"crack/0 holds no mask"):
        mvtec.check(mvtec.read_folder(root))


@pytest.mark.parametrize(
    ("name", "num_train", "num_good", "num_defective", "masks"),
    [
        ("hazelnut_toy", 28, 6, 17, True),
        ("magnetic_tile", 300, 140, 388, True),
        ("mvtec_grid_mini", 25, 3, 11, True),
        ("mvtec_bottle_nomask", 209, 20, 63, False),
        ("kolektor_sdd", 216, 117, 50, True),
    ],
)
def test_real_folders_have_the_counts_their_readmes_state(
    name, num_train, num_good, num_defective, masks, shared_data
):
    records = mvtec.read_folder(shared_data(name))
    mvtec.check(records)
    normal = [r for r in records if r.defect_type == "good"]
    assert sum(r.split == "train" for r in normal) == num_train
    assert sum(r.split == "test" for r in normal) == num_good
    defective = [r for r in records if r.defect_type != "good"]
    assert len(defective) == num_defective
    assert {r.split for r in defective} == {"test"}
    assert all((r.mask is not None) == masks for r in defective)
