import json

import numpy as np
import pytest
from PIL import Image

from jaxanom.data import catalog
from jaxanom.data.layouts import classes

NAMES = ("cat", "dog", "emu")


def write(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10, 3), level, np.uint8)).save(path)


def write_split(root, change=None):
    entries = {split: [] for split in ("train", "val", "test")}
    for label, name in enumerate(NAMES):
        for split, count in (("train", 3), ("val", 1), ("test", 2)):
            for number in range(count):
                file = f"{name}/{split}_{number}.png"
                write(root / "images" / file)
                entries[split].append([file, label, name])
    if change is not None:
        change(entries)
    (root / "split.json").write_text(json.dumps(entries))
    return root


def test_a_split_file_gives_its_own_division(tmp_path):
    records, names = classes.read(write_split(tmp_path))
    assert names == NAMES
    dataset = catalog.open_dataset("classes", tmp_path, image_size=8)
    assert dataset.categories == NAMES and len(records) == 15  # none to validate on
    assert len(catalog.select(dataset, "train", "dog")) == 3
    example = catalog.source(dataset, catalog.select(dataset, "test"))[5]
    assert example["category_id"] == 2 and example["label"] == 0
    assert example["image"].shape == (8, 8, 3)


def test_labels_and_not_names_decide_the_order(tmp_path):
    def swap(entries):
        for rows in entries.values():
            for row in rows:
                row[1] = 2 - row[1]

    _, names = classes.read(write_split(tmp_path, swap))
    assert names == NAMES[::-1]


def test_folders_of_both_splits_are_read(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for name in NAMES:
            for number in range(count):
                write(tmp_path / split / name / f"{number}.png")
    records, names = classes.read(tmp_path)
    assert names == NAMES
    assert [r.split for r in records if r.category == "cat"] == ["train"] * 3 + [
        "test"
    ] * 2


def test_plain_class_folders_are_divided_by_the_seed(tmp_path):
    for name in NAMES:
        for number in range(7):
            write(tmp_path / name / f"{number}.png")
    first, again, other = (classes.read(tmp_path, seed)[0] for seed in (0, 0, 1))
    assert first == again != other
    for name in NAMES:
        splits = [r.split for r in first if r.category == name]
        assert (splits.count("train"), splits.count("test")) == (4, 3)


def test_base_and_new_are_halves_by_label(tmp_path):
    write_split(tmp_path)
    base, new = (
        catalog.open_dataset("classes", tmp_path, image_size=8, class_subset=which)
        for which in ("base", "new")
    )
    assert base.categories == ("cat", "dog") and new.categories == ("emu",)
    assert {r.category for r in new.records} == {"emu"}
    chosen = catalog.open_dataset("classes", tmp_path, ("emu", "cat"), 8)
    assert chosen.categories == ("emu", "cat")


def relabel(label, place, value):
    """Changes one field of every row of a label."""

    def change(entries):
        for row in (row for rows in entries.values() for row in rows):
            if row[1] == label:
                row[place] = value

    return change


WRONG = {
    "calls label 0 both": lambda e: e["test"][0].__setitem__(2, "cow"),
    "skips a label": relabel(2, 1, 5),
    "two labels the same": relabel(1, 2, "cat"),
    "not below": lambda e: e["train"][0].__setitem__(0, "cat/none.png"),
    r"wanted \[path": lambda e: e["train"].append(["cat/train_0.png", 0]),
    "no lists": lambda e: e.pop("test"),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_damaged_split_file_says_what_is_wrong(tmp_path, message):
    with pytest.raises(ValueError, match=message):
        classes.read(write_split(tmp_path, WRONG[message]))


def test_directories_without_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 classes"):
        classes.read(tmp_path)
    with pytest.raises(ValueError, match="no directory"):
        classes.read(tmp_path / "none")
    with pytest.raises(ValueError, match="class_subset='half'"):
        classes.subset(NAMES, "half")


def test_the_real_small_set_is_read(shared_data):
    root = shared_data("caltech101_small")
    dataset = catalog.open_dataset("classes", root, image_size=32)
    names = (root / "classnames.txt").read_text().split("\n")
    assert list(dataset.categories) == [n.strip() for n in names if n.strip()]
    counts = [len(catalog.select(dataset, split)) for split in ("train", "test")]
    assert counts == [320, 400]
