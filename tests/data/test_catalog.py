import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from jaxanom.data import catalog
from jaxanom.data.foundry import render


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def root(tmp_path):
    """Two categories of images 12 x 20 (height x width); image k has the value k."""
    for category, kinds in (("nut", ("hole", "crack")), ("cap", ("dent",))):
        for k in range(3):
            flat = np.full((12, 20, 3), k, np.uint8)
            write(tmp_path / category / "train" / "good" / f"{k}.png", flat)
        write(tmp_path / category / "test" / "good" / "0.png", flat)
        for kind in kinds:
            write(tmp_path / category / "test" / kind / "0.png", flat + 100)
            mask = np.zeros((12, 20), np.uint8)
            mask[0, 0] = 9
            write(tmp_path / category / "ground_truth" / kind / "0_mask.png", mask)
    return tmp_path


def test_examples_have_the_documented_types_and_ids(root):
    dataset = catalog.open_dataset("folder", root, image_size=(6, 4))
    assert dataset.name == root.name
    assert dataset.categories == ("cap", "nut")
    assert dataset.defect_types == ("good", "crack", "dent", "hole")
    assert dataset.image_size == (6, 4)
    rows = catalog.source(dataset)
    assert len(rows) == len(dataset.records) == 11
    for row, record in enumerate(dataset.records):
        example = rows[row]
        assert example["image"].shape == (6, 4, 3)
        assert example["image"].dtype == example["mask"].dtype == np.uint8
        assert example["mask"].sum() == (record.defect_type != "good")
        assert example["label"] == (record.defect_type != "good")
        assert dataset.categories[example["category_id"]] == record.category
        assert dataset.defect_types[example["defect_id"]] == record.defect_type
        assert example["index"] == row
        for key in ("label", "category_id", "defect_id", "index"):
            assert example[key].dtype == np.int32 and example[key].shape == ()


def test_a_source_of_chosen_records_counts_its_own_rows(root):
    dataset = catalog.open_dataset("folder", root, image_size=8)
    numbers = catalog.select(dataset, "train", "nut")
    rows = catalog.source(dataset, numbers[::-1])
    assert [int(rows[i]["image"][0, 0, 0]) for i in range(3)] == [2, 1, 0]
    assert [int(rows[i]["index"]) for i in range(3)] == [0, 1, 2]
    assert len(list(rows)) == 3  # iteration ends
    assert len(catalog.source(dataset, [])) == 0


def test_record_numbers_out_of_range_are_an_error(root):
    dataset = catalog.open_dataset("folder", root, image_size=8)
    with pytest.raises(ValueError, match=r"\[11, -1\] are outside 0\.\.10"):
        catalog.source(dataset, [0, 11, -1])


def test_select_divides_the_records_without_overlap(root):
    dataset = catalog.open_dataset("folder", root, image_size=8)
    parts = [
        catalog.select(dataset, split, category, anomalous=anomalous)
        for split, category, anomalous in itertools.product(
            ("train", "test"), dataset.categories, (False, True)
        )
    ]
    assert sorted(itertools.chain(*parts)) == list(range(11))
    assert catalog.select(dataset) == list(range(11))
    crack = catalog.select(dataset, defect_type="crack")
    assert [dataset.records[n].name for n in crack] == ["nut/test/crack/0.png"]
    assert catalog.select(dataset, "train", anomalous=True) == []


def test_select_names_what_it_does_not_know(root):
    dataset = catalog.open_dataset("folder", root, image_size=8)
    with pytest.raises(ValueError, match=r"unknown category 'nuts'; did .* 'nut'"):
        catalog.select(dataset, category="nuts")
    with pytest.raises(ValueError, match=r"unknown defect type 'crak'; .*'crack'"):
        catalog.select(dataset, defect_type="crak")
    with pytest.raises(ValueError, match=r"unknown split 'val'"):
        catalog.select(dataset, split="val")


def test_open_dataset_names_what_is_wrong(root):
    with pytest.raises(ValueError, match=r"unknown dataset 'foundy'; did .*'foundry'"):
        catalog.open_dataset("foundy")
    with pytest.raises(ValueError, match=r"config\.data\.directory"):
        catalog.open_dataset("folder")
    with pytest.raises(ValueError, match=r"image_size=\(0, 0\)"):
        catalog.open_dataset("folder", root, image_size=0)
    (root / "nut" / "train" / "good" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read image .*good/1\.png"):
        catalog.open_dataset("folder", root, image_size=8)


def test_a_dataset_can_take_the_ids_of_another(root):
    whole = catalog.open_dataset("folder", root, image_size=8)
    part = catalog.from_records(
        "part",
        [r for r in whole.records if r.category == "nut"],
        (8, 8),
        whole.categories,
        whole.defect_types,
    )
    rows = catalog.source(part)
    assert {int(rows[i]["category_id"]) for i in range(len(rows))} == {1}
    with pytest.raises(ValueError, match=r"unknown category 'nut'; known: cap"):
        catalog.from_records("x", part.records, (8, 8), categories=["cap"])
    with pytest.raises(ValueError, match=r"unknown defect type 'crack'; known: good"):
        catalog.from_records("x", part.records, (8, 8), defect_types=["good"])
    with pytest.raises(ValueError, match=r"start with 'crack'"):
        catalog.from_records("x", part.records, (8, 8), defect_types=["crack", "good"])
    with pytest.raises(ValueError, match=r"no records"):
        catalog.from_records("x", [], (8, 8))


def test_a_defect_without_a_mask_loads_as_zeros_and_is_reported(root):
    dataset = catalog.open_dataset("folder", root, image_size=8)
    assert not catalog.unmasked(dataset)
    (root / "cap" / "ground_truth" / "dent" / "0_mask.png").unlink()
    dataset = catalog.open_dataset("folder", root, image_size=8)
    assert catalog.unmasked(dataset) == {"cap/ground_truth/dent": 1}
    assert not catalog.unmasked(dataset, catalog.select(dataset, category="nut"))
    dent = catalog.source(dataset, catalog.select(dataset, defect_type="dent"))[0]
    assert dent["label"] == 1 and dent["mask"].sum() == 0


def _counting_load(size=(4, 4)):
    calls = []

    def load(record):
        calls.append(record.name)
        return np.full((*size, 3), len(record.name), np.uint8), np.zeros(size, np.uint8)

    return load, calls


def _records(count):
    names = [f"nut/train/good/{'x' * k}" for k in range(count)]
    return [catalog.Record(n, None, "nut", "good", "train", n) for n in names]


def test_cached_arrays_are_decoded_once_and_cannot_be_written():
    load, calls = _counting_load()
    cached = catalog.Cached(load)
    records = _records(3)
    for record in records * 4:
        image, mask = cached(record)
        assert image[0, 0, 0] == len(record.name)
        for array in (image, mask):
            with pytest.raises(ValueError, match=r"read-only"):
                array[0] = 1
    assert sorted(calls) == sorted(r.name for r in records)


def test_the_cache_keeps_to_its_limit():
    load, calls = _counting_load()
    cached = catalog.Cached(load, limit_bytes=2 * 4 * 4 * 4)  # two of three examples
    for record in _records(3) * 4:
        cached(record)
    assert len(calls) == 1 + 1 + 4


def test_threads_see_equal_arrays():
    load, _ = _counting_load()
    cached = catalog.Cached(load, limit_bytes=5 * 64)
    records = _records(8)
    wrong = []

    def read():
        for record in records * 50:
            if cached(record)[0][0, 0, 0] != len(record.name):
                wrong.append(record)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_mask_that_changed_size_after_the_check_is_still_an_error(root):
    dataset = catalog.open_dataset("folder", root, image_size=8)
    other = np.full((3, 3), 255, np.uint8)
    write(root / "cap" / "ground_truth" / "dent" / "0_mask.png", other)
    rows = catalog.source(dataset, catalog.select(dataset, defect_type="dent"))
    with pytest.raises(ValueError, match=r"0_mask.png is 3 x 3, its image .* 20 x 12"):
        rows[0]


FOUNDRY = {
    "categories": ("nut", "tile"),
    "image_size": 32,
    "num_train": 3,
    "num_test_good": 2,
    "num_per_defect": 2,
}


def test_the_foundry_opens_as_a_dataset_with_masks_of_its_defects():
    dataset = catalog.open_dataset("foundry", **FOUNDRY)
    assert dataset.categories == ("nut", "tile")
    assert len(catalog.select(dataset, "train")) == 6
    for category in dataset.categories:
        assert len(catalog.select(dataset, "test", category, "good")) == 2
        assert len(catalog.select(dataset, "test", category, "crack")) == 2
    assert not catalog.unmasked(dataset)
    rows = catalog.source(dataset, catalog.select(dataset, "test"))
    for row in range(len(rows)):
        assert rows[row]["image"].shape == (32, 32, 3)
        assert bool(rows[row]["mask"].any()) == bool(rows[row]["label"])


def test_rendered_and_written_foundry_images_are_the_same(tmp_path):
    rendered = catalog.open_dataset("foundry", **FOUNDRY, seed=3)
    counts = {key: n for key, n in FOUNDRY.items() if key.startswith("num_")}
    render.write_mvtec(tmp_path, FOUNDRY["categories"], 32, 3, **counts)
    written = catalog.open_dataset("folder", tmp_path, ("nut", "tile"), 32)
    by_name = {record.name: record for record in written.records}
    assert by_name.keys() == {record.name for record in rendered.records}
    other = catalog.open_dataset("foundry", **FOUNDRY, seed=4)
    for record in rendered.records:
        image, mask = rendered.load(record)
        written_image, written_mask = written.load(by_name[record.name])
        np.testing.assert_array_equal(image, written_image)
        np.testing.assert_array_equal(mask, written_mask)
        assert not np.array_equal(image, other.load(record)[0])


def test_no_defective_foundry_image_is_the_twin_of_a_normal_one():
    dataset = catalog.open_dataset("foundry", **FOUNDRY)
    source = catalog.source(dataset, catalog.select(dataset, "test", "tile"))
    examples = list(source)
    for first, second in itertools.combinations(examples, 2):
        clean = ~(first["mask"] | second["mask"]).astype(bool)
        assert not np.array_equal(first["image"][clean], second["image"][clean])


def test_foundry_images_can_be_wide():
    wide = {**FOUNDRY, "image_size": (16, 32), "categories": ("nut",)}
    example = catalog.source(catalog.open_dataset("foundry", **wide))[0]
    assert example["image"].shape == (16, 32, 3) and example["mask"].shape == (16, 32)


def test_an_unknown_foundry_category_is_named():
    with pytest.raises(ValueError, match=r"unknown category 'nutt'"):
        catalog.open_dataset("foundry", categories=["nutt"])


def test_no_real_defect_vanishes_when_shrunk(shared_data):
    folder = shared_data("magnetic_tile")
    dataset = catalog.open_dataset("folder", folder, image_size=32)
    numbers = catalog.select(dataset, defect_type="crack")
    rows = catalog.source(dataset, numbers)
    assert len(rows) == 57
    assert all(rows[row]["mask"].any() for row in range(len(rows)))
