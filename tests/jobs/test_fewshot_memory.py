"""From normal images to verdicts: fewshot, load, detect, with the patch memory."""

import shutil

import ml_collections
import numpy as np
import pytest
from PIL import Image

import jaxanom
from jaxanom import record
from jaxanom.cli import main
from jaxanom.evaluation import calibration
from jaxanom.jobs import detect, fewshot
from jaxanom.models.features import towers
from tests.methods.memory.conftest import TOWER

SMALL = ["--config=configs/memory/folder.py", "--config.data.image_size=32"]
SMALL += ["--config.memory.taps=()", "--config.memory.tower=colours"]


@pytest.fixture(scope="module")
def tower_of_colours():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "load", lambda name: TOWER)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six soft blue images of 80 px, and one of them with a red spot."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = np.full((80, 80, 3), (60, 90, 160)) + rng.integers(-9, 9, (80, 80, 3))
        (folder / "good").mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"good/{number}.png")
    pixels[30:50, 20:40] = 200, 30, 30
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "spot.png")
    return folder


@pytest.fixture(scope="module")
def run(photos, tower_of_colours, tmp_path_factory):
    out = tmp_path_factory.mktemp("fewshot") / "run"
    files = [str(photos / f"good/{number}.png") for number in range(4)]
    words = ["fewshot", "--normal", *files, "--category=plate", f"--out={out}"]
    assert main.main([*words, *SMALL]) == 0
    return out


def verdicts(run, photos, out, **options):
    files = [photos / "good/5.png", photos / "spot.png"]
    return jaxanom.detect(run, files, out, **options)


def test_a_run_gives_verdicts_without_further_images(run, photos, tmp_path, capsys):
    rows = verdicts(run, photos, tmp_path / "out")
    assert rows[1]["anomalous"] and rows[1]["image_score"] > 2 * rows[0]["image_score"]
    assert rows[0]["false_alarm_rate"] == pytest.approx(1 / 5)
    said = capsys.readouterr().err
    assert "4 normal images bound false alarms by 20%; 5% takes 19" in said


def test_the_threshold_is_that_of_the_shots_left_out(run, photos, tmp_path):
    facts = record.read_json(run / record.RECORD)["memory"]["plate"]
    scores = np.asarray(facts["left_out_scores"])
    row = verdicts(run, photos, tmp_path / "out", false_alarm_rate=0.4)[0]
    expected = calibration.from_normals(scores, 0.4)
    # The record rounds to six digits.
    assert row["threshold"] == pytest.approx(expected.value, abs=1e-5)
    assert expected.value < scores.max()  # control: not just the largest


def test_images_given_set_the_threshold_in_its_place(run, photos, tmp_path):
    other = tmp_path / "normal"
    other.mkdir()
    shutil.copyfile(photos / "good/4.png", other / "4.png")
    row = verdicts(run, photos, tmp_path / "out", normal=other)[0]
    assert row["false_alarm_rate"] == pytest.approx(1 / 2)


def test_a_moved_run_gives_the_same_scores(run, photos, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    scores = [
        [row["image_score"] for row in verdicts(place, photos, tmp_path / "out")]
        for place in (run, moved)
    ]
    assert scores[0] == scores[1]


def test_one_image_gives_no_threshold_and_says_so(
    photos, tower_of_colours, tmp_path, capsys
):
    words = ["fewshot", f"--normal={photos / 'good/0.png'}", "--category=plate"]
    assert main.main([*words, f"--out={tmp_path / 'run'}", *SMALL]) == 0
    rows = verdicts(tmp_path / "run", photos, tmp_path / "out")
    assert [row["anomalous"] for row in rows] == [None, None]
    assert "no verdicts: the run knows one normal image" in capsys.readouterr().err


def test_a_method_without_scores_of_its_own_has_no_threshold(run):
    trained = jaxanom.load(run)
    method = trained.prepared.method._replace(normal_scores=None)
    trained = trained._replace(prepared=trained.prepared._replace(method=method))
    assert detect.own_threshold(trained, 0.05) is None


@pytest.mark.parametrize(("side", "recipe"), [(64, "adp"), (65, "memory")])
def test_the_size_of_the_images_decides_the_recipe(tmp_path, side, recipe):
    Image.new("RGB", (200, side)).save(tmp_path / "a.png")
    assert fewshot.recipe(tmp_path) == f"configs/{recipe}/folder.py"


def test_another_tower_brings_its_own_layers():
    config = ml_collections.ConfigDict(
        {"method": "memory", "kept": (), "memory": {"tower": "", "taps": ("e16~",)}}
    )
    lite = fewshot.with_tower(config, "efficientnet_lite2").memory
    assert (lite.tower, lite.taps) == ("efficientnet_lite2", ("e16~",))
    assert fewshot.with_tower(config, "clip").memory.taps == ()
    kept = fewshot.with_tower(config, "mobilenet_v2:weights")
    assert kept.kept == (("memory.tower", "mobilenet_v2:features"),)
