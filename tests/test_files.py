"""What is written appears whole, replaces what was there, or leaves it as it was."""

import os

import pytest

from jaxanom import files


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_a_folder_replace_what_was_there(tmp_path):
    for name in ("first", "second"):
        with files.replacing(tmp_path / "deep" / "a.txt") as building:
            building.write_text(name)
            assert building.name == "a.txt"  # suffixes decide formats
        with files.replacing(tmp_path / "folder") as building:
            building.mkdir()
            (building / name).touch()
    assert (tmp_path / "deep" / "a.txt").read_text() == "second"
    assert leftovers(tmp_path / "folder") == ["second"]
    assert leftovers(tmp_path) == ["deep", "folder"]


def test_others_may_read_what_is_written(tmp_path):
    # Temporary files are private; what takes a name is as any new file.
    with files.replacing(tmp_path / "a.txt") as building:
        building.write_text("a")
    (tmp_path / "plain").write_text("b")
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["a.txt"] == modes["plain"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_what_was_there(tmp_path, error, kind):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("before")
    else:
        target.mkdir()
        (target / "before").touch()
    with pytest.raises(error), files.replacing(target) as building:
        if kind == "file":
            building.write_text("half")
        else:
            building.mkdir()
        raise error
    assert leftovers(tmp_path) == ["target"]
    assert target.read_text() == "before" if kind == "file" else leftovers(target)


def test_a_folder_comes_back_when_its_successor_cannot_take_its_place(
    tmp_path, monkeypatch
):
    target = tmp_path / "target"
    target.mkdir()
    (target / "before").touch()

    def refuse(*_):
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no room"), files.replacing(target) as building:
        building.mkdir()
    assert leftovers(tmp_path) == ["target"] and leftovers(target) == ["before"]
