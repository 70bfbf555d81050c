"""Published layouts, written small: in place, and through tensorflow-datasets."""

import numpy as np
import pytest
from PIL import Image

from jaxanom.data import catalog
from jaxanom.data.layouts import published
from jaxanom.data.layouts.mvtec import GOOD
from jaxanom.errors import UserError

SIZE = 12


def save(path, rng, mask=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (SIZE, SIZE + 2, 3)).astype(np.uint8)
    if mask:
        pixels = np.zeros((SIZE, SIZE + 2), np.uint8)
        pixels[2:5, 3:9] = 255
    Image.fromarray(pixels).save(path)


def write_mvtec(root, rng, kinds=("scratch",), folder_masks=False):
    for category in ("nut", "bolt"):
        save(root / category / "train" / "good" / "0.png", rng)
        save(root / category / "test" / "good" / "0.png", rng)
        for kind in kinds:
            save(root / category / "test" / kind / "0.png", rng)
            truth = root / category / "ground_truth" / kind
            save(truth / ("0/000.png" if folder_masks else "0_mask.png"), rng, True)


def write_btad(root, rng):
    for category in ("01", "02"):
        save(root / category / "train" / "ok" / "0.bmp", rng)
        save(root / category / "test" / "ok" / "1.bmp", rng)
        save(root / category / "test" / "ko" / "0.bmp", rng)
        save(root / category / "ground_truth" / "ko" / "0.png", rng, True)


def write_visa(root, rng):
    rows = ["object,split,label,image,mask"]
    for category in ("candle", "pcb1"):
        for number, split, label in ((0, "train", "normal"), (1, "test", "normal")):
            image = f"{category}/Data/Images/Normal/{number}.JPG"
            save(root / image, rng)
            rows.append(f"{category},{split},{label},{image},")
        image = f"{category}/Data/Images/Anomaly/0.JPG"
        mask = f"{category}/Data/Masks/Anomaly/0.png"
        save(root / image, rng)
        save(root / mask, rng, True)
        rows.append(f"{category},test,anomaly,{image},{mask}")
    (root / "split_csv").mkdir()
    (root / published.VISA_TABLE).write_text("\n".join(rows) + "\n")


def write_kolektor(root, rng):
    for split in ("train", "test"):
        for number, marked in ((1, False), (2, True)):
            save(root / split / f"{number}.png", rng)
            save(root / split / f"{number}_GT.png", rng, mask=True)
            if not marked:
                empty = Image.new("L", (SIZE + 2, SIZE))
                empty.save(root / split / f"{number}_GT.png")


def write_kolektor_sdd(root, rng):
    for item in ("kos01", "kos02", "kos33"):
        for number, marked in ((0, False), (1, True)):
            save(root / item / f"Part{number}.jpg", rng)
            save(root / item / f"Part{number}_label.bmp", rng, mask=True)
            if not marked:
                empty = Image.new("L", (SIZE + 2, SIZE))
                empty.save(root / item / f"Part{number}_label.bmp")


WRITERS = {
    "mvtec_ad": write_mvtec,
    "mvtec_loco": lambda root, rng: write_mvtec(
        root, rng, ("logical_anomalies", "structural_anomalies"), True
    ),
    "btad": write_btad,
    "visa": write_visa,
    "kolektor": write_kolektor,
    "kolektor_sdd": write_kolektor_sdd,
}


@pytest.fixture(params=sorted(WRITERS))
def unpacked(request, tmp_path):
    WRITERS[request.param](tmp_path / request.param, np.random.default_rng(3))
    return request.param, tmp_path / request.param


def test_every_reader_has_a_layout_here():
    assert WRITERS.keys() == published.READERS.keys()


def test_a_published_layout_opens_in_place(unpacked):
    name, root = unpacked
    dataset = catalog.open_dataset(name, root, image_size=SIZE)
    assert len({record.name for record in dataset.records}) == len(dataset.records)
    for category in dataset.categories:
        assert catalog.select(dataset, "train", category, anomalous=False)
        assert catalog.select(dataset, "test", category, anomalous=False)
        assert catalog.select(dataset, "test", category, anomalous=True)
    assert not catalog.unmasked(dataset)
    for record in dataset.records:
        _, mask = dataset.load(record)
        assert mask.any() == (record.defect_type != GOOD)


def test_categories_are_chosen_in_the_order_asked_for(tmp_path):
    write_btad(tmp_path, np.random.default_rng(0))
    found = published.read("btad", tmp_path, ("02", "01"))
    assert list(dict.fromkeys(r.category for r in found)) == ["02", "01"]
    with pytest.raises(ValueError, match="unknown category '03'"):
        published.read("btad", tmp_path, ("03",))


def test_kolektor_sdd_trains_on_normal_images_of_its_first_items_alone(tmp_path):
    write_kolektor_sdd(tmp_path, np.random.default_rng(0))
    (tmp_path / "notes").mkdir()
    save(tmp_path / "notes" / "Part0.jpg", np.random.default_rng(0))
    found = published.read("kolektor_sdd", tmp_path)
    trained = [r.name for r in found if r.split == "train"]
    names = ("kos01_Part0.jpg", "kos02_Part0.jpg")
    assert trained == [f"commutator/train/good/{name}" for name in names]
    tested = [r.name.removeprefix("commutator/test/") for r in found[2:]]
    cracks = [f"crack/{item}_Part1.jpg" for item in ("kos01", "kos02", "kos33")]
    assert tested == ["good/kos33_Part0.jpg", *cracks]
    (tmp_path / "kos02" / "Part1_label.bmp").unlink()
    with pytest.raises(ValueError, match=r"Part1\.jpg has no Part1_label\.bmp"):
        published.read("kolektor_sdd", tmp_path)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_an_empty_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=tmp_path.name):
        published.read(name, tmp_path)


def test_a_table_of_other_columns_is_refused_by_line(tmp_path):
    write_visa(tmp_path, np.random.default_rng(0))
    (tmp_path / published.VISA_TABLE).write_text("image,mask\na,b\n")
    with pytest.raises(ValueError, match=r"1cls\.csv:2"):
        published.read("visa", tmp_path)
    (tmp_path / published.VISA_TABLE).write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match=r"1cls\.csv is no table"):
        published.read("visa", tmp_path)


def test_through_tensorflow_datasets_every_pixel_and_name_stays(unpacked):
    pytest.importorskip("tensorflow_datasets")
    from jaxanom.data.layouts import builders

    name, root = unpacked
    builder = builders.make(name, root.parent / "out", root.parent)
    builder.download_and_prepare()
    wanted = catalog.open_dataset(name, root, image_size=SIZE)
    found = catalog.open_dataset("tfds", builder.data_path, image_size=SIZE)
    assert found.categories == wanted.categories
    assert found.defect_types == wanted.defect_types
    by_name = {record.name: record for record in found.records}
    assert by_name.keys() == {record.name for record in wanted.records}
    for record in wanted.records:
        ours, theirs = found.load(by_name[record.name]), wanted.load(record)
        for array, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, other)
        assert by_name[record.name].split == record.split
    # Negative control: images differ from each other, so that a mix-up would show.
    first, second = (found.load(record)[0] for record in found.records[:2])
    assert not np.array_equal(first, second)


def test_what_was_prepared_before_is_not_taken_for_another(tmp_path, monkeypatch):
    from jaxanom.data.layouts import builders

    class Builder:
        def __init__(self, data_dir, file_format):
            self.data_path = f"{data_dir}/foundry/1.0.0"

    monkeypatch.setattr(builders, "_check_installed", lambda: None)
    monkeypatch.setattr(builders, "_builder_class", lambda *arguments: Builder)
    (tmp_path / "old" / "foundry" / "1.0.0").mkdir(parents=True)
    assert builders.make("foundry", tmp_path / "new", seed=1)
    with pytest.raises(ValueError, match=r"is there already.*choose another --out"):
        builders.make("foundry", tmp_path / "old", seed=1)


def test_foundry_through_tensorflow_datasets_is_what_is_rendered(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    from jaxanom.data.foundry import names, render
    from jaxanom.data.layouts import builders

    counts = {"num_train": 2, "num_test_good": 1, "num_per_defect": 1}
    planned = render.records
    monkeypatch.setattr(
        render,
        "records",
        lambda chosen, *positional, seed=0: planned(
            chosen, *(positional or counts.values()), seed=seed
        ),
    )
    category = names.CATEGORIES[0]
    builder = builders.make("foundry", tmp_path, categories=(category,), size=32)
    builder.download_and_prepare()
    found = catalog.open_dataset("tfds", builder.data_path, image_size=32)
    wanted = catalog.open_dataset("foundry", None, (category,), 32, 0, *counts.values())
    by_name = {record.name: record for record in found.records}
    assert len(by_name) == len(wanted.records)
    for record in wanted.records:
        for ours, theirs in zip(
            found.load(by_name[record.name]), wanted.load(record), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
