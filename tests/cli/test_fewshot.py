"""From a folder of normal images to a run that works wherever it is copied."""

import json
import shutil

import jax
import numpy as np
import pytest

import jaxanom
from jaxanom import record
from jaxanom.cli import main
from jaxanom.data.layouts import mvtec
from jaxanom.jobs import fewshot, load
from jaxanom.methods.adp import options
from jaxanom.methods.adp.tuning import choose, pairs

pytest.importorskip("matplotlib")

TINY = {
    "data.image_size": 16,
    "data.batch_size": 2,
    "phases.invert.num_steps": 2,
    "train.log_every": 1,
    "adp.channels": options.CHANNELS,
    "adp.feature_layers": (0, 1),
    "adp.windows": (1, 2),
    "adp.compare_layers": (1,),
    "adp.map_size": 4,
    "adp.pyramid": (1, 2),
    "adp.walk_steps": 2,
    "adp.num_noises": 1,
    "adp.gap_steps": 3,
    "adp.num_synthetic": 32,
    "adp.num_settings": 8,
}


@pytest.fixture(scope="module")
def command(tiny_backbone):
    values = {**TINY, "model.directory": str(tiny_backbone)}
    return [f"--config.{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def run(tiny_folder, command, tmp_path_factory):
    """The verb itself, on two images, every channel switched on.

    Random towers draw nothing sensible; all that they draw is accepted here.
    """
    normal = tmp_path_factory.mktemp("normal")
    for file in sorted((tiny_folder / "bolt/train/good").iterdir())[:2]:
        shutil.copyfile(file, normal / file.name)
    out = tmp_path_factory.mktemp("fewshot") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "CHANGE_FLOOR", 0.0)
        patch.setattr(pairs, "CHANGE_FACTOR", 0.0)
        patch.setattr(pairs, "DISTANCE_FACTOR", 1e6)
        patch.setattr(pairs, "WHOLE_PROBABILITY", 1.0)
        patch.setattr(choose, "LEAST_IMAGES", 16)
        words = ["fewshot", f"--normal={normal}", "--category=hex bolt"]
        assert main.main([*words, f"--out={out}", *command]) == 0
    shutil.rmtree(normal)
    return out


def test_the_run_says_how_it_was_tuned_and_how_much_it_flatters_itself(run):
    facts = record.read_json(run / record.RECORD)["adp"]["hex bolt"]
    assert facts["tuned"] and facts["num_images"] >= 16
    assert set(facts["channels"]) == set(options.CHANNELS)
    assert np.isfinite(facts["optimism"]) and facts["num_settings"] == 9
    assert len(facts["accepted"]) == 6  # three kinds of normals, of anomalies


def test_the_run_keeps_its_images_and_names_no_other_place(run):
    found = mvtec.read_folder(run / fewshot.SHOTS)
    assert [(r.category, r.split) for r in found] == [("hex bolt", "train")] * 2
    config = record.read_json(run / record.CONFIG)
    assert config["kept"] == [["data.directory", "shots"]]
    assert config["data"]["directory"] == ""


def test_a_copied_run_gives_the_same_scores(run, tiny_folder, tmp_path, capsys):
    pictures = tiny_folder / "bolt/test/scratch"
    found = []
    for place in ("here", "there"):
        where = run
        if place == "there":
            where = tmp_path / "elsewhere" / "renamed"
            shutil.copytree(run, where)
        words = ["detect", f"--weights={where}", f"--out={tmp_path / place}"]
        assert main.main([*words, str(pictures)]) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = [json.loads(line) for line in lines if line.startswith("{")]
        found.append([row["image_score"] for row in rows])
    assert found[0] == found[1] and len(set(found[0])) == 4
    assert (tmp_path / "there" / "detections.jsonl").is_file()


def test_a_score_does_not_depend_on_its_batch(run):
    trained = jaxanom.load(run)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (16, 16, 3)).astype(np.uint8) for _ in range(3)]
    every = jaxanom.predict(trained, images)
    order = jaxanom.predict(trained, [images[2], images[0], images[1]])
    # V7: one program, other neighbours and another padding row.
    np.testing.assert_allclose(
        order.anomaly_map, every.anomaly_map[[2, 0, 1]], atol=1e-5
    )
    np.testing.assert_allclose(
        order.image_score, every.image_score[[2, 0, 1]], atol=1e-5
    )
    assert np.ptp(every.image_score) > 1e-3


def test_smoothing_is_of_maps_and_images_are_scored_before_it(run):
    trained = jaxanom.load(run)
    shown = np.random.default_rng(1).uniform(size=(1, 16, 16, 3)).astype(np.float32)
    batch = {"image": shown, "category_id": np.zeros(1, np.int32)}
    apply = jax.jit(trained.prepared.method.predict)
    scoring, found = trained.params["scoring"], []
    for sigma in (2.0, 6.0):
        settings = {**scoring["settings"], "sigma": np.float32([sigma])}
        params = {**trained.params, "scoring": {**scoring, "settings": settings}}
        found.append(apply(params, trained.frozen, batch, jax.random.key(0)))
    assert found[0].image_score == found[1].image_score
    assert np.abs(found[0].anomaly_map - found[1].anomaly_map).max() > 1e-3


def test_a_run_holds_the_moved_token_and_what_scores_and_no_tower(run):
    """V3: the towers are no parameters, so no step can have moved them."""
    trained = jaxanom.load(run)
    assert set(trained.params) == {"particles", "scoring"}
    start = trained.prepared.method.init(None)[0]["particles"]["tokens"]
    assert np.abs(trained.params["particles"]["tokens"] - start).max() > 1e-4


def test_a_run_of_other_images_is_not_overwritten(run, tiny_folder, command, capsys):
    before = (run / load.PARAMS).read_bytes()
    other = tiny_folder / "bolt/test/good"
    words = ["fewshot", f"--normal={other}", "--category=hex bolt", f"--out={run}"]
    assert main.main([*words, *command]) == 2
    assert "holds images of another run" in capsys.readouterr().err
    assert (run / load.PARAMS).read_bytes() == before


def test_a_threshold_is_not_set_by_images_that_were_trained_on(
    run, tiny_folder, tmp_path, capsys
):
    words = ["detect", f"--weights={run}", f"--out={tmp_path / 'out'}"]
    picture = str(next((tiny_folder / "bolt/test/scratch").iterdir()))
    for place in (run / fewshot.SHOTS / "hex bolt/train/good", "bolt/train/good"):
        normal = f"--normal={tiny_folder / place}"
        assert main.main([*words, normal, picture]) == 2
        assert "was trained on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_category_that_the_run_does_not_know_is_told_what_it_knows(
    run, tiny_folder, capsys
):
    words = ["detect", f"--weights={run}", "--category=Hex bolt"]
    assert main.main([*words, str(tiny_folder / "bolt/test/good")]) == 2
    assert "known: hex bolt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("adp.baseline=winclip", "num_steps=400"),
        ("adp.token=word", "'learned'"),
        ("adp.channels=(language,memory)", "adp.channels='memory'"),
        ("adp.windows=(9,)", "adp.windows has 9"),
        ("adp.walk_steps=0", "walk_steps=0"),
    ],
)
def test_a_wrong_option_is_refused_before_training(
    change, said, tiny_folder, tiny_backbone, tmp_path, capsys
):
    words = [
        "fewshot",
        f"--normal={tiny_folder / 'bolt/train/good'}",
        "--category=bolt",
        f"--out={tmp_path / 'run'}",
        f"--config.model.directory={tiny_backbone}",
        "--config.adp.feature_layers=(0,)",
        f"--config.{change}",
    ]
    assert main.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_recipe_of_another_method_is_refused(tmp_path, tiny_folder, capsys):
    words = ["fewshot", f"--normal={tiny_folder / 'bolt/train/good'}", "--category=a"]
    recipe = "--config=configs/detector/folder.py:unet"
    assert main.main([*words, f"--out={tmp_path / 'run'}", recipe]) == 2
    assert "wanted one of ['adp', 'memory']" in capsys.readouterr().err
