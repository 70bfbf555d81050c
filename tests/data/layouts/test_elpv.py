"""ELPV: its table, its division and its copy, on a small package of the same form."""

import numpy as np
import pytest
from PIL import Image

from jaxanom.cli import main
from jaxanom.data import catalog
from jaxanom.data.layouts import elpv, mvtec
from jaxanom.data.layouts.mvtec import GOOD
from jaxanom.errors import UserError

SIZE, PER_LEVEL = 8, 6
LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder `data` of an installed package that must not be imported."""
    site = tmp_path / "site"
    root = site / elpv.PACKAGE / "data"
    (root / "images").mkdir(parents=True)
    (site / elpv.PACKAGE / "__init__.py").write_text("raise SystemExit('was run')\n")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(PER_LEVEL * 2 * len(LEVELS)):
        level, kind = LEVELS[number // 2 % len(LEVELS)], elpv.CATEGORIES[number % 2]
        name = f"images/cell{number:04d}.png"
        pixels = rng.integers(0, 256, (SIZE, SIZE)).astype(np.uint8)
        Image.fromarray(pixels).save(root / name)
        lines.append(f"{name}  {level!s:<18}  {kind}")
    (root / elpv.TABLE).write_text("\n".join(lines) + "\n\n")
    monkeypatch.syspath_prepend(str(site))
    return root


def counts(records):
    groups = {}
    for row in records:
        group = row.category, row.split, row.defect_type
        groups[group] = groups.get(group, 0) + 1
    return groups


def test_sure_cells_are_divided_and_unsure_ones_left_out(package):
    assert elpv.folder() == package
    expected = {}
    for category in elpv.CATEGORIES:
        expected[category, "train", GOOD] = PER_LEVEL // 2
        expected[category, "test", GOOD] = PER_LEVEL // 2
        expected[category, "test", elpv.DEFECT] = PER_LEVEL
    records = elpv.read(package)
    assert counts(records) == expected
    assert all(row.mask is None for row in records)
    levels = {cell.image.name: cell.probability for cell in elpv.table(package)}
    for row in records:
        level = levels[row.name.rsplit("/")[-1]]
        assert level == (0 if row.defect_type == GOOD else 1)


def test_a_threshold_tests_unsure_cells_and_trains_on_the_same_ones(package):
    sure, all_cells = elpv.read(package), elpv.read(package, threshold=0.5)
    assert len(all_cells) == 2 * PER_LEVEL * len(LEVELS)
    groups = counts(all_cells)
    for category in elpv.CATEGORIES:
        assert groups[category, "test", elpv.DEFECT] == 2 * PER_LEVEL
        assert groups[category, "test", GOOD] == PER_LEVEL + PER_LEVEL // 2
    trained = lambda records: [row for row in records if row.split == "train"]  # noqa: E731
    assert trained(all_cells) == trained(sure)
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="threshold"):
            elpv.read(package, threshold=wrong)


def test_the_division_is_that_of_the_seed_and_not_of_the_other_category(package):
    assert elpv.read(package) == elpv.read(package)
    poly = [row for row in elpv.read(package) if row.category == "poly"]
    assert elpv.read(package, ("poly",)) == poly
    # Negative control: another seed draws other cells.
    assert elpv.read(package, seed=1) != elpv.read(package)
    with pytest.raises(UserError, match=r"unknown category 'pol'.*'poly'"):
        elpv.read(package, ("pol",))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("images/cell0001.png 1.0", "2 columns"),
        ("images/cell0001.png 1.0 mono poly", "4 columns"),
        ("images/cell0001.png high mono", "probability 'high'"),
        ("images/cell0001.png nan mono", "probability 'nan'"),
        ("images/cell0001.png 1.5 mono", "probability '1.5'"),
        ("images/cell0001.png 1.0 thin", "unknown kind 'thin'"),
        ("images/nowhere.png 1.0 mono", "no file .*nowhere.png"),
        ("images/cell0000.png 1.0 mono", "cell0000.png is there twice"),
    ],
)
def test_a_malformed_row_is_refused_by_file_and_line(package, line, complaint):
    path = package / elpv.TABLE
    lines = path.read_text().splitlines()
    lines[1] = line
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"{path}:2: .*{complaint}"):
        elpv.read(package)


def test_a_table_that_is_missing_empty_or_no_text_is_refused(package):
    path = package / elpv.TABLE
    path.write_text("\n")
    with pytest.raises(UserError, match=r"labels\.csv is empty"):
        elpv.read(package)
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match=r"labels\.csv is no table"):
        elpv.read(package)
    path.unlink()
    with pytest.raises(UserError, match=r"labels\.csv is no table"):
        elpv.read(package)


def test_the_command_writes_a_tree_that_opens_and_says_the_licence(
    package, tmp_path, capsys
):
    out = tmp_path / "cells"
    assert main.main(["data", "elpv", f"--out={out}"]) == 0
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
    assert "CC BY-NC-SA 4.0" in (out / elpv.NOTICE).read_text()
    written, listed = mvtec.read_folder(out), elpv.read(package)
    mvtec.check(written)
    assert [row.name for row in written] == [row.name for row in listed]
    dataset = catalog.open_dataset("folder", out, image_size=SIZE)
    source = {row.name: row.image for row in listed}
    for row in written:
        pixels = np.asarray(Image.open(source[row.name]).convert("RGB"))
        np.testing.assert_array_equal(dataset.load(row)[0], pixels)
    assert sum(mvtec.unmasked(written).values()) == 2 * PER_LEVEL
    assert sorted(path.name for path in out.parent.iterdir()) == ["cells", "site"]


def test_a_folder_with_anything_else_in_it_is_left_alone(package, tmp_path, capsys):
    out = tmp_path / "cells"
    words = ["data", "elpv", f"--out={out}"]
    out.mkdir()  # an empty folder is free to take
    assert main.main(words) == main.main(words) == 0  # and the same tree stays
    for more in ("--seed=1", "--threshold=0.5", "--categories=mono"):
        assert main.main([*words, more]) == 2
        assert "choose another --out" in capsys.readouterr().err
    image = next(out.rglob("cell*.png"))
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])
    assert main.main(words) == 2
    image.write_bytes(whole)
    (out / "notes.txt").write_text("mine")
    assert main.main(words) == 2
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("part", [["elpv"], ["tfds", "elpv"]])
def test_a_missing_package_is_named_with_its_extra(part, tmp_path, monkeypatch, capsys):
    if part[0] == "tfds":
        pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(elpv, "PACKAGE", "no_such_package")
    out = tmp_path / "out"
    assert main.main(["data", *part, f"--out={out}"]) == 2
    assert "pip install 'jaxanom[data]'" in capsys.readouterr().err
    assert not (out / "mono").exists()


def test_through_tensorflow_datasets_every_pixel_and_name_stays(
    package, tmp_path, capsys
):
    pytest.importorskip("tensorflow_datasets")
    out = tmp_path / "prepared"
    assert main.main(["data", "tfds", "elpv", f"--out={out}", "--seed=3"]) == 0
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
    dataset = catalog.open_dataset("tfds", out / "elpv" / "1.0.0", image_size=SIZE)
    source = {row.name: row for row in elpv.read(package, seed=3)}
    assert source.keys() == {row.name for row in dataset.records}
    for row in dataset.records:
        original = source[row.name]
        assert (row.split, row.mask) == (original.split, None)
        pixels = np.asarray(Image.open(original.image).convert("RGB"))
        np.testing.assert_array_equal(dataset.load(row)[0], pixels)
