"""Realism of a generated set: real ones, noise, and copies, on small towers."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxanom.cli import main
from jaxanom.data import generated
from jaxanom.data.foundry import render
from jaxanom.data.layouts.mvtec import Record
from jaxanom.jobs import evaluate_generated as job
from jaxanom.models.features import towers

CATEGORY, KINDS, SIZE = "pill", ("crack", "stain"), 32
NUM_REAL, FRESH = 6, 1000


def sample(split, index, kind):
    return render.render(CATEGORY, split, index, 0, SIZE, defect_type=kind)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Twelve defects of two types and eight normal images, MVTec layout."""
    root = tmp_path_factory.mktemp("real")
    for index in range(8):
        place = root / CATEGORY / "train" / "good" / f"{index:03d}.png"
        save(place, sample("train", index, "good").image)
    for kind in KINDS:
        for index in range(NUM_REAL):
            shown = sample("test", index, kind)
            name = f"{kind}/{index:03d}"
            save(root / CATEGORY / "test" / f"{name}.png", shown.image)
            masks = root / CATEGORY / "ground_truth"
            save(masks / f"{name}_mask.png", 255 * shown.mask)
    return root


def write_set(directory, image_of, count=NUM_REAL):
    """Writes a set; `image_of` makes an image of (sample, number)."""

    def rows():
        for kind in KINDS:
            for index in range(count):
                shown = sample("test", FRESH + index, kind)
                image = image_of(shown, kind, index)
                prompt = f"a photo of a {kind}"
                places = shown.mask, np.ones_like(shown.mask)
                yield generated.GeneratedRow(
                    CATEGORY, kind, image, *places, "train/good/000.png", prompt, index
                )

    return generated.write(directory, rows()).directory


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Sets of fresh real images, of noise, and of copies of the real ones."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    noise = lambda *_: rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)  # noqa: E731
    return {
        "fresh": write_set(root / "fresh", lambda shown, *_: shown.image),
        "noise": write_set(root / "noise", noise),
        "copies": write_set(
            root / "copies", lambda _, kind, index: sample("test", index, kind).image
        ),
    }


@pytest.fixture(scope="module")
def results(sets, real):
    """What the embedded tower, which knows such pictures, says of the sets."""
    return {
        name: job.evaluate_generated(directory, real, "clip")
        for name, directory in sets.items()
    }


def test_noise_is_less_real_than_fresh_real_images(results):
    fresh, noise = (results[name]["mean"]["generated"] for name in ("fresh", "noise"))
    assert noise["frechet"] > 3 * fresh["frechet"]
    assert noise["kernel"] > fresh["kernel"]
    assert noise["precision"] < fresh["precision"]
    assert noise["nearest"] > 2 * fresh["nearest"]
    # The yardsticks are about the real images alone.
    for row in ("real", "normal"):
        assert results["fresh"]["mean"][row] == results["noise"]["mean"][row]


def test_copies_of_the_real_images_are_caught_by_their_distance(results):
    copies, fresh = (results[name]["mean"] for name in ("copies", "fresh"))
    assert copies["generated"]["nearest"] == pytest.approx(0, abs=1e-4)  # float32
    # A copy is alone with its original; fresh images are as far as real ones.
    assert np.isnan(copies["generated"]["diversity"])
    assert fresh["generated"]["nearest"] > 0.3 * fresh["real"]["nearest"]
    assert fresh["generated"]["diversity"] > 0


def test_the_numbers_are_told_per_category_and_written_as_json(
    sets, real, tiny_backbone, tmp_path
):
    tower, path = f"clip:{tiny_backbone}", tmp_path / "numbers.json"
    told = job.evaluate_generated(sets["fresh"], real, tower, path)
    assert told["num_images"] == {CATEGORY: {"generated": 12, "real": 12, "normal": 8}}
    assert list(told["per_category"]) == [CATEGORY]
    assert list(told["mean"]) == list(job.ROWS)
    assert list(told["mean"]["real"]) == list(job.COLUMNS)
    assert json.loads(path.read_text())["mean"] == told["mean"]
    table = job.table(told)
    assert [row[1] for row in table.rows] == list(job.ROWS.values())


def test_the_command_line_prints_the_table(sets, real, tmp_path, capsys):
    words = ["evaluate", f"--generated={sets['fresh']}", f"--data={real}"]
    out = tmp_path / "numbers.json"
    assert main.main([*words, "--tower=clip", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "by clip." in said and "real defects, other half" in said
    assert json.loads(out.read_text())["tower"] == "clip"


def test_mobilenet_is_a_tower_as_well(sets, real, shared_data):
    tower = f"mobilenet_v2:{shared_data('mobilenet_v2')}"
    told = job.evaluate_generated(sets["copies"], real, tower)
    assert told["tower"] == tower
    assert told["mean"]["generated"]["nearest"] < 1e-3 * told["mean"]["real"]["nearest"]


@pytest.mark.parametrize(("size", "num_edges"), [((64, 32), 3), ((32, 32), 1)])
def test_only_a_square_set_has_real_images_squeezed(tmp_path, size, num_edges):
    """A wide image with a bright upper half has mirrored copies on a tall canvas."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8] = 255
    save(tmp_path / "0.png", pixels)
    record = Record(str(tmp_path / "0.png"), None, CATEGORY, "crack", "test", "0")
    tower = towers.FeatureTower(
        *("flat", {}, 8, (), (), None),
        pooled=lambda params, image: image.mean((2, 3)),
    )
    features = job._extractor(tower, size)([record])
    assert features.shape == (1, 8 * size[0] // size[1])  # the tower's own 8 px wide
    assert np.abs(np.diff((features[0] > 0.5).astype(int))).sum() == num_edges


def test_what_is_missing_is_named(sets, real, tmp_path, capsys):
    def said(*words):
        assert main.main(["evaluate", *words]) == 2
        return capsys.readouterr().err

    assert "is not a generated set" in said(f"--generated={real}", f"--data={real}")
    assert "--data=DIR" in said(f"--generated={sets['fresh']}")
    few = write_set(tmp_path / "few", lambda shown, *_: shown.image, count=1)
    told = said(f"--generated={few}", f"--data={real}")
    assert "2 generated images of 'pill'; at least 4 needed" in told
    good = tmp_path / "good"
    for index in range(4):
        place = good / CATEGORY / "train" / "good" / f"{index:03d}.png"
        save(place, sample("train", index, "good").image)
    told = said(f"--generated={sets['fresh']}", f"--data={good}")
    assert "0 real defects of 'pill'; at least 8 needed" in told
    with pytest.raises(SystemExit):
        main.main(["evaluate", f"--generated={few}", "--run=x"])
