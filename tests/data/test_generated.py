import json

import numpy as np
import pytest
from PIL import Image

from jaxanom.data import catalog, generated
from jaxanom.data.layouts import mvtec
from jaxanom.errors import UserError


def make_row(number=0, category="nut", defect_type="crack", empty=False):
    rng = np.random.default_rng(number)
    requested = np.zeros((12, 20), np.uint8)
    requested[2:6, 3:9] = 1
    mask = np.zeros_like(requested)
    if not empty:
        mask[3:5, 4:8] = 1
    return generated.GeneratedRow(
        category=category,
        defect_type=defect_type,
        image=rng.integers(0, 256, (12, 20, 3), dtype=np.uint8),
        mask=mask,
        requested_mask=requested,
        source_name=f"{category}/train/good/{number:03d}.png",
        prompt=f"a {category} with a {defect_type}",
        seed=number,
    )


NORMAL = np.full((12, 20, 3), 7, np.uint8)


def tree(directory):
    files = directory.rglob("*")
    return sorted(str(f.relative_to(directory)) for f in files if f.is_file())


def test_a_set_has_both_layouts_and_a_manifest(tmp_path):
    rows = [make_row(0), make_row(1), make_row(2, defect_type="hole")]
    written = generated.write(tmp_path / "set", rows, {"nut": [NORMAL]})
    assert written == (tmp_path / "set", 3, 0)
    expected = ["manifest.jsonl", "nut/train/good/000.png"]
    for kind, stems in (("crack", ("000", "001")), ("hole", ("000",))):
        for stem in stems:
            expected += [
                f"nut/test/{kind}/{stem}.png",
                f"nut/ground_truth/{kind}/{stem}_mask.png",
                f"nut/{kind}/image/{stem}.png",
                f"nut/{kind}/mask/{stem}.png",
                f"nut/{kind}/requested_mask/{stem}.png",
            ]
    assert tree(tmp_path / "set") == sorted(expected)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    manifest = generated.read_manifest(tmp_path / "set")
    assert [entry["seed"] for entry in manifest] == [0, 1, 2]
    for row, entry in zip(rows, manifest, strict=True):
        pixels = np.asarray(Image.open(tmp_path / "set" / entry["image"]))
        np.testing.assert_array_equal(pixels, row.image)
        for key in ("mask", "requested_mask"):
            pixels = np.asarray(Image.open(tmp_path / "set" / entry[key]))
            np.testing.assert_array_equal(pixels, getattr(row, key) * 255)
            assert entry[f"{key}_area"] == getattr(row, key).sum()
        assert entry["prompt"] == row.prompt
        assert entry["source_name"] == row.source_name


def test_a_process_beside_the_writer_draws_every_row_and_writes_nothing(tmp_path):
    drawn = []

    def rows():
        for number in range(3):
            drawn.append(number)
            yield make_row(number, empty=number == 1)

    found = generated.leave_to_another(tmp_path / "set", rows())
    assert drawn == [0, 1, 2] and not list(tmp_path.iterdir())
    assert found == generated.write(tmp_path / "set", rows())
    with pytest.raises(ValueError, match="not empty"):
        generated.leave_to_another(tmp_path / "set", rows())
    with pytest.raises(ValueError, match="none of 1 rows"):
        generated.leave_to_another(tmp_path / "other", [make_row(empty=True)])


def test_a_set_opens_as_a_dataset_and_examples_come_back(tmp_path):
    rows = [make_row(number) for number in range(12)]
    generated.write(tmp_path / "set", rows, {"nut": [NORMAL, NORMAL]})
    dataset = catalog.open_dataset("folder", tmp_path / "set", image_size=(12, 20))
    assert dataset.categories == ("nut",)
    assert dataset.defect_types == ("good", "crack")
    source = catalog.source(dataset, catalog.select(dataset, anomalous=True))
    assert len(source) == 12
    for number in range(12):
        np.testing.assert_array_equal(source[number]["image"], rows[number].image)
        np.testing.assert_array_equal(source[number]["mask"], rows[number].mask)


def test_a_set_without_normal_images_is_read_as_records(tmp_path):
    generated.write(tmp_path / "set", [make_row()])
    records = generated.read(tmp_path / "set")
    assert [r.name for r in records] == ["nut/test/crack/000.png"]
    names = ("good", "bent", "crack")
    dataset = catalog.from_records("set", records, (12, 20), defect_types=names)
    assert catalog.source(dataset)[0]["defect_id"] == 2
    with pytest.raises(ValueError, match="no train/good"):
        mvtec.read_folder(tmp_path / "set")


def test_normal_images_can_be_files(tmp_path):
    normal = tmp_path / "a.JPG"
    Image.fromarray(NORMAL).save(normal)
    generated.write(tmp_path / "set", [make_row()], {"nut": [normal, str(normal)]})
    copies = sorted((tmp_path / "set/nut/train/good").iterdir())
    assert [copy.name for copy in copies] == ["000.jpg", "001.jpg"]
    assert copies[0].read_bytes() == normal.read_bytes()


def test_rows_with_an_empty_final_mask_are_left_out_and_listed(tmp_path):
    rows = [make_row(0), make_row(1, empty=True), make_row(2)]
    written = generated.write(tmp_path / "set", rows)
    assert (written.num_images, written.num_left_out) == (2, 1)
    manifest = generated.read_manifest(tmp_path / "set")
    assert [entry["image"] is None for entry in manifest] == [False, True, False]
    assert manifest[1]["mask_area"] == 0 and manifest[1]["requested_mask_area"] == 24
    assert len(generated.read(tmp_path / "set")) == 2
    with pytest.raises(ValueError, match="none of 1 rows has a non-empty mask"):
        generated.write(tmp_path / "other", [make_row(empty=True)])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writing_leaves_nothing_new_and_the_old_set_whole(tmp_path, error):
    def broken():
        yield make_row(5)
        raise error("stop")

    with pytest.raises(error):
        generated.write(tmp_path / "set", broken())
    assert list(tmp_path.iterdir()) == []
    generated.write(tmp_path / "set", [make_row(0)])
    before = tree(tmp_path / "set")
    with pytest.raises(error):
        generated.write(tmp_path / "set", broken(), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert tree(tmp_path / "set") == before
    assert generated.read_manifest(tmp_path / "set")[0]["seed"] == 0


def test_a_set_is_not_visible_before_it_is_complete(tmp_path):
    def rows():
        for number in range(3):
            assert not (tmp_path / "set").exists()
            yield make_row(number)

    generated.write(tmp_path / "set", rows())
    assert (tmp_path / "set").exists()


def test_only_a_generated_set_is_overwritten_and_only_when_asked(tmp_path):
    target = tmp_path / "set"
    generated.write(target, [make_row(0)])
    with pytest.raises(ValueError, match="is not empty; give another directory"):
        generated.write(target, [make_row(1)])
    assert generated.read_manifest(target)[0]["seed"] == 0
    generated.write(target, [make_row(1)], overwrite=True)
    assert generated.read_manifest(target)[0]["seed"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["set"]

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("precious")
    with pytest.raises(ValueError, match="not a generated set"):
        generated.write(tmp_path / "photos", [make_row()], overwrite=True)
    assert (tmp_path / "photos" / "a.txt").read_text() == "precious"
    with pytest.raises(ValueError, match=r"a\.txt is a file"):
        generated.write(tmp_path / "photos" / "a.txt", [make_row()])
    (tmp_path / "empty").mkdir()
    assert generated.write(tmp_path / "empty", [make_row()]).num_images == 1


def test_a_link_to_a_set_stays_a_link(tmp_path):
    disk, link = tmp_path / "disk", tmp_path / "link"
    (disk / "set").mkdir(parents=True)
    link.symlink_to(disk / "set")
    for number in range(2):
        written = generated.write(link, [make_row(number)], overwrite=True)
        assert link.is_symlink() and written.directory == disk / "set"
        assert generated.read_manifest(link)[0]["seed"] == number
        assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link"]
        assert [p.name for p in disk.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "../nut"}, "category '../nut' cannot be a folder name"),
        ({"defect_type": ""}, "defect_type '' cannot be a folder name"),
        ({"defect_type": "good"}, "row 0: defect_type 'good' is taken"),
        ({"image": NORMAL / 255}, "row 0: image is float64"),
        ({"image": NORMAL[..., 0]}, "row 0: image is uint8"),
        ({"mask": np.ones((3, 3), np.uint8)}, "row 0: mask is uint8"),
        ({"requested_mask": np.ones((12, 20))}, "row 0: requested_mask is float64"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        generated.write(tmp_path / "set", [make_row()._replace(**change)])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_generated_set_is_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"has no manifest\.jsonl"):
        generated.read(tmp_path)


def test_the_manifest_is_one_json_object_a_line(tmp_path):
    generated.write(tmp_path / "set", [make_row(0), make_row(1)])
    lines = (tmp_path / "set" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1]


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / generated.MANIFEST).write_text('{"image": ')
    with pytest.raises(UserError, match=r"manifest\.jsonl is damaged"):
        generated.read_manifest(tmp_path)
