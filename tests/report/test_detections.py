"""Results of one call in a folder: all of them, and none of an earlier call."""

import numpy as np
import pytest
from PIL import Image

from jaxanom import record
from jaxanom.report import detections
from jaxanom.types import Predictions

pytest.importorskip("matplotlib")


def photos(directory, names):
    directory.mkdir()
    for name in names:
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(directory / name)
    return [directory / name for name in names]


def write(directory, files):
    maps = np.linspace(0, 1, 4 * len(files), dtype=np.float32).reshape(-1, 2, 2)
    found = Predictions(anomaly_map=maps, image_score=maps.max((1, 2)))
    return detections.write(directory, files, found, None)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_earlier_results_are_removed_and_other_files_are_not(tmp_path):
    files = photos(tmp_path / "in", ["a.png", "b.png", "c.png"])
    out = tmp_path / "out"
    write(out, files)
    (out / "0007_mine.png").write_bytes(b"mine")
    rows = write(out, files[2:])
    assert names(out) == ["0000_c.png", "0007_mine.png", "detections.jsonl"]
    assert list(record.read_metrics(out / "detections.jsonl")) == rows


def test_a_picture_that_is_listed_elsewhere_is_left_alone(tmp_path):
    files = photos(tmp_path / "in", ["0000_a.png", "b.png"])
    out = tmp_path / "out"
    write(out, files[1:])
    lines = [{"picture": str(file)} for file in files] + [{"picture": "../in/b.png"}]
    for line in lines:
        record.append_metrics(out / "detections.jsonl", line)
    write(out, files[1:])
    assert names(out) == ["0000_b.png", "detections.jsonl"]
    assert names(tmp_path / "in") == ["0000_a.png", "b.png"]


def test_an_interrupted_call_lists_nothing_and_the_next_one_tidies_up(
    tmp_path, monkeypatch
):
    files = photos(tmp_path / "in", ["a.png", "b.png", "c.png"])
    out, load = tmp_path / "out", detections.images.load_image
    write(out, files[:1])

    def interrupted(file):
        if file == files[2]:
            raise KeyboardInterrupt
        return load(file)

    monkeypatch.setattr(detections.images, "load_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(out, files)
    assert not (out / "detections.jsonl").exists()
    write(out, files[:1])
    assert names(out) == ["0000_a.png", "detections.jsonl"]


def test_an_image_is_not_written_over(tmp_path):
    files = photos(tmp_path / "in", ["a.png", "0000_a.png"])
    before = files[1].read_bytes()
    with pytest.raises(ValueError, match=r"0000_a\.png is an image to score"):
        write(tmp_path / "in", files)
    assert files[1].read_bytes() == before and len(names(tmp_path / "in")) == 2
