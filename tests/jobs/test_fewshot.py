"""What a run keeps is copied whole, found again, and put over nothing of the user's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxanom import record
from jaxanom.data.layouts import mvtec
from jaxanom.jobs import config_file, fewshot, prepare
from jaxanom.models.features import mobilenet_v2, towers


def photos(directory, names=("a.png", "b.PNG"), value=0):
    directory.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.full((4, 4, 3), value + number, np.uint8)
        Image.fromarray(pixels).save(directory / name, "PNG")
    return [directory / name for name in names]


def keep(files, directory, category="hex nut", weights="", method="adp"):
    config = config_file.load(f"configs/{method}/folder.py")
    tower = f"mobilenet_v2:{weights}" if weights else ""
    return fewshot.keep(config, files, category, directory, tower)


def tree(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def read(config, directory):
    """Bytes of the images that a run on this config learns from, in order."""
    dataset, division = prepare.open_data(prepare.located(config, directory))
    return [Path(dataset.records[n].image).read_bytes() for n in division.normal]


def test_all_images_are_copied_and_read_in_their_order(tmp_path):
    names = [f"{n}{suffix}" for n, suffix in enumerate(mvtec.images.SUFFIXES)]
    files = photos(tmp_path / "in", names[::-1])
    config = keep(files, tmp_path / "run")
    assert config.kept == (("data.directory", "shots"),)
    assert read(config, tmp_path / "run") == [file.read_bytes() for file in files]
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["shots"]


@pytest.mark.parametrize("name", ["c.gif", "c.jfif", "c"])
def test_a_file_that_would_not_be_read_back_is_refused(tmp_path, name):
    files = photos(tmp_path / "in", ("a.png", name))
    with pytest.raises(ValueError, match=rf"{name} has suffix .*wanted one of .png"):
        keep(mvtec.image_files(files), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a/b", " ", "", "..", ".nut", "test", "Train"])
def test_a_name_that_is_no_category_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"category name {name!r}"):
        keep(photos(tmp_path / "in"), tmp_path / "run", name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", ["shots", "shots/nut/train/good"])
def test_images_in_the_place_of_the_copies_stay(tmp_path, folder):
    files = photos(tmp_path / "nut" / folder)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"a\.png lies in .*shots.*another --out"):
        keep(files, tmp_path / "nut", "nut")
    assert tree(tmp_path) == before


def test_other_files_in_the_place_of_the_copies_stay(tmp_path):
    photos(tmp_path / "run" / "shots")
    files = photos(tmp_path / "in", value=9)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"no copies of a run, such as a\.png"):
        keep(files, tmp_path / "run")
    assert tree(tmp_path) == before


def test_copies_of_a_refused_command_are_replaced_and_what_was_added_is_not(tmp_path):
    run = tmp_path / "run"
    keep(photos(tmp_path / "first", ("a.png", "b.png", "c.png")), run, "bolt")
    files = photos(tmp_path / "second", value=9)
    config = keep(files, run)
    assert read(config, run) == [file.read_bytes() for file in files]
    assert [p.name for p in (run / "shots").iterdir() if p.is_dir()] == ["hex nut"]
    photos(run / "shots", ("mine.png",))
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"such as mine\.png"):
        keep(files[:1], run)
    assert tree(tmp_path) == before


def test_the_same_command_again_changes_nothing(tmp_path):
    run, files = tmp_path / "run", photos(tmp_path / "in")
    record.claim(run, keep(files, run))
    before = tree(run)
    keep(files, run)
    keep(mvtec.image_files([run / "shots/hex nut/train/good"]), run)
    assert tree(run) == before
    with pytest.raises(ValueError, match="holds images of another run"):
        keep(files[:1], run)
    assert tree(run) == before


def test_an_interrupted_copy_leaves_what_was_there(tmp_path, monkeypatch):
    run, files = tmp_path / "run", photos(tmp_path / "in")
    keep(files, run)
    before, copy = tree(run), shutil.copyfile

    def interrupted(source, target):
        if Path(source).name == "b.PNG":
            raise KeyboardInterrupt
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep(files[::-1], run)
    assert tree(run) == before and len(list(run.iterdir())) == 1


def weights(directory, content):
    directory.mkdir()
    (directory / mobilenet_v2.WEIGHTS).write_bytes(content)
    return directory


@pytest.fixture
def any_weights(monkeypatch):
    """What is in the file of weights does not matter here."""
    monkeypatch.setattr(mobilenet_v2, "load", lambda directory: None)


def test_nothing_is_written_into_a_run_of_others(tmp_path, any_weights):
    run, files = tmp_path / "run", photos(tmp_path / "in")
    old, new = weights(tmp_path / "old", b"old"), weights(tmp_path / "new", b"new")
    config = keep(files, run, weights=old)
    assert ("adp.feature_tower", "mobilenet_v2:features") in config.kept
    record.claim(run, config)
    before = tree(run)
    others = photos(tmp_path / "others", value=9)
    for more, told, said in (
        (others, old, "images of another run"),
        (others, new, "other weights"),
        (files, new, "other weights"),
        (files, "", "another config"),
    ):
        with pytest.raises(ValueError, match=said):
            keep(more, run, weights=told)
        assert tree(run) == before
    keep(files, run, weights=run / "features")
    assert tree(run) == before


def test_a_folder_without_weights_is_refused_before_anything_is_copied(tmp_path):
    with pytest.raises(ValueError, match="MobileNetV2"):
        keep(photos(tmp_path / "in"), tmp_path / "run", weights=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_feature_tower_is_copied_into_the_run_and_found_there(tmp_path, shared_data):
    weights = shared_data("mobilenet_v2")
    config = keep(photos(tmp_path / "in"), tmp_path / "run", weights=weights)
    found = prepare.located(config, tmp_path / "run").adp.feature_tower
    assert towers.load(found).params.keys() >= {"L00", "L52"}
    # A config that keeps nothing in its run is handed on as it is.
    other = config_file.load("configs/adp/folder.py")
    assert prepare.located(other, tmp_path) is other
