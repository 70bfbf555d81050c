"""APP from config to tables, on a tiny random CLIP and three classes of grey images."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import jaxanom
from jaxanom.cli import main
from jaxanom.data import catalog, generated, pipeline, pools
from jaxanom.jobs import config_file, evaluate, prepare
from jaxanom.methods import by_name
from jaxanom.methods.app import parts

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory):
    """Three classes told apart by their level; two test images each."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 4), ("test", 2)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = 60 * label + rng.integers(0, 60, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def config_of(class_folder, tiny_backbone):
    def make(**changes):
        config = config_file.load("configs/app/folder.py:smoke")
        config.data.name, config.data.directory = "classes", str(class_folder)
        config.data.image_size = 16
        config.data.categories = ()
        config.data.num_train = 3
        config.model.directory = str(tiny_backbone)
        config.app.num_vectors = 2
        config.app.num_particles = 2
        for key, value in changes.items():
            *sections, last = key.split("__")
            node = config
            for section in sections:
                node = node[section]
            assert last in node, key
            node[last] = value
        return config

    return make


@pytest.fixture(scope="module")
def run(config_of, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "base"
    jaxanom.train(config_of(data__class_subset="base"), directory)
    return directory


def test_shots_are_images_per_class(config_of):
    found = prepare.prepare(config_of())
    assert len(found.division.normal) == 9 and len(found.division.test) == 6
    assert found.dataset.categories == CLASSES


def test_a_clip_as_transformers_saves_it_is_the_same_clip(config_of, tiny_clip):
    """Its tokenizer's files lie beside the weights."""
    frozen = [
        prepare.prepare(config).method.init(jax.random.key(0))[1]
        for config in (config_of(), config_of(model__directory=str(tiny_clip)))
    ]
    jax.tree.map(np.testing.assert_array_equal, *frozen)


def test_a_run_on_base_classes_is_tested_on_both_halves(run, capsys):
    assert main.main(["evaluate", f"--run={run}", "--base-to-new"]) == 0
    assert "Harmonic mean" in capsys.readouterr().out
    halves = {}
    for half in ("base", "new"):
        path = run / evaluate.ELSEWHERE / f"data.class_subset={half}"
        halves[half] = json.loads((path / "evaluation.json").read_text())
    assert halves["base"]["num_images"] == {"all": 4}  # two classes of two images
    assert halves["new"]["num_images"] == {"all": 2}
    assert halves["new"]["mean"]["accuracy"] == 1.0  # there is one class to choose
    assert {"accuracy", "nll", "ece"} <= set(halves["base"]["mean"])
    assert not (run / "evaluation.json").exists()


def test_other_images_and_settings_are_tested_elsewhere(run, capsys):
    command = ["evaluate", f"--run={run}", "--on=app.predict.alpha=0.7"]
    assert main.main([*command, "--on=data.class_subset=all"]) == 0
    out = capsys.readouterr().out
    assert "Accuracy" in out and "NLL" in out
    assert main.main([*command, "--on=app.predict.alfa=0.7"]) == 2
    assert "app.predict.alpha" in capsys.readouterr().err


def test_a_run_on_all_classes_has_no_new_ones(run, tmp_path, capsys):
    copy = tmp_path / "run"
    copy.mkdir()
    config = json.loads((run / "config.json").read_text())
    config["data"]["class_subset"] = "all"
    (copy / "config.json").write_text(json.dumps(config))
    assert main.main(["evaluate", f"--run={copy}", "--base-to-new"]) == 2
    assert "class_subset='all'" in capsys.readouterr().err


def test_cached_features_are_those_that_prediction_computes(config_of):
    """Image features are encoded once for training: the same numbers, cached."""
    config = config_of(app__predict__alpha=1.0)
    made = prepare.prepare(config)
    params, frozen = made.method.init(jax.random.key(0))
    source = catalog.source(made.dataset, made.division.test)
    batch = next(pipeline.finite_batches(source, 6))
    cached = jax.jit(made.method.encode)(frozen, batch)
    fresh = made.method.encode(frozen, {**batch, "image": batch["image"][::-1]})
    features = np.asarray(cached["image_features"])
    np.testing.assert_allclose(fresh["image_features"][::-1], features, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, rtol=1e-5)
    found = jax.jit(made.method.predict)(params, frozen, batch, jax.random.key(0))
    probability = np.asarray(found.classes.probability)
    np.testing.assert_allclose(probability.sum(-1), 1, rtol=1e-5)
    assert np.array_equal(found.image_score, found.classes.entropy)


def test_a_dataset_center_encodes_the_training_images(config_of):
    made = prepare.prepare(config_of(app__prior__center="dataset"))
    _, frozen = made.method.init(jax.random.key(0))
    assert frozen["train_features"].shape == (9, made_width(frozen))

    def encoded(numbers):
        source = catalog.source(made.dataset, numbers)
        batch = next(pipeline.finite_batches(source, len(source)))
        return np.asarray(made.method.encode(frozen, batch)["image_features"])

    wanted = encoded(made.division.normal)
    np.testing.assert_allclose(frozen["train_features"], wanted, atol=1e-6)
    # Negative control: test images have other features, and so has each image.
    rest = np.concatenate([encoded(made.division.test), wanted[1:]])
    assert np.abs(rest - wanted[0]).max(axis=1).min() > 1e-4


def test_a_single_class_is_not_trained_on(config_of, tmp_path):
    with pytest.raises(ValueError, match="single class"):
        jaxanom.train(config_of(data__categories=("ant",)), tmp_path / "run")


@pytest.mark.parametrize("task", ["state", "category"])
def test_the_number_of_data_is_that_of_the_images_drawn_from(task, tmp_path):
    """Six normal, four defective and two generated images of two categories."""
    config = config_file.load("configs/app/foundry.py:smoke")
    config.data.categories, config.app.task = ("nut", "pill"), task
    config.data.num_train, config.data.num_per_defect = 3, 2
    config.data.defect_rule, config.data.shots = "shots", 2
    config.data.generated = str(tmp_path / "set")
    generated.write(tmp_path / "set", map(generated_row, range(3)))
    dataset, division = prepare.open_data(config)
    part = pools.training_part(dataset, division)
    assert (len(division.normal), len(division.defect)) == (6, 4)
    weights = config.mixture.particles
    for pooled, wanted in (
        (("normal",), 6),
        (("normal", "defect"), 10),
        (("normal", "defect", "generated"), 12),
    ):
        for name in weights:
            weights[name] = 1.0 if name in pooled else 0.0
        found = parts.assemble(config, part)
        assert found.num_data == wanted
        # S is the mean over classes: two states of two objects, or the two objects.
        num_classes = {"state": 4, "category": 2}[task]
        assert found.weight == pytest.approx(num_classes / wanted)
    config.data.generated = str(tmp_path / "elsewhere")
    assert parts.assemble(config, part).num_data == 10


def generated_row(number):
    """The last one holds nothing and is left out."""
    mask = np.full((8, 8), number < 2, np.uint8)
    image = np.zeros((8, 8, 3), np.uint8)
    return generated.GeneratedRow(
        "nut", "crack", image, mask, mask, "0.png", "", number
    )


def made_width(frozen):
    return frozen["text"]["text_projection"]["kernel"].shape[1]


REFUSED = {
    "app.task='kind'": {"app__task": "kind"},
    "app.particles.update": {"app__particles__update": "adam"},
    "app.particles.integrator": {"app__particles__integrator": "leapfrog"},
    "app.prior.support": {"app__prior__support": "none"},
    "app.prior.lambda_rule": {"app__prior__lambda_rule": "none"},
    "app.predict.average": {"app__predict__average": "votes"},
    "app.predict.alpha": {"app__predict__alpha": 1.5},
    "phases.prior.num_steps=0": {"app__prior__train": "frozen_random"},
    "app.num_vectors=30": {"app__num_vectors": 30},
    "class_subset": {"data__class_subset": "old"},
    "update='sgld'.*makes its own steps": {"app__particles__update": "sgld"},
    "integrator='wag' makes its own steps": {"app__particles__integrator": "wag"},
    "app.prior.sigma2=0": {"app__prior__sigma2": 0.0},
    "app.num_particles=0": {"app__num_particles": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_configs_that_do_not_fit_are_refused_by_their_keys(config_of, message):
    with pytest.raises(ValueError, match=message):
        prepare.prepare(config_of(**REFUSED[message]))


def test_unknown_keys_are_refused(config_of):
    config = config_of()
    config.app.particles.kernel = "rbf"
    made = prepare.open_data(config)
    with pytest.raises(ValueError, match="'kernel'"):
        by_name.make(config, made[0])
