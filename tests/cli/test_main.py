"""Wrong inputs end in exit code 2 and a message, before anything is compiled."""

import shutil

import numpy as np
import pytest
from PIL import Image

from jaxanom import record
from jaxanom.cli import main
from jaxanom.errors import UserError
from jaxanom.jobs import defects_to_detector
from jaxanom.parallel import distributed
from jaxanom.training import loop

DETECTOR = "--config=configs/detector/folder.py:unet"
GENERATOR = "--config=configs/defect_generation/folder.py"
SIZE = 16


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs a command that must be refused; returns what it said."""

    def no_training(*args, **keywords):
        raise AssertionError("training began")

    monkeypatch.setattr(loop, "run", no_training)

    def call(*words):
        code = main.main([*words])
        said = capsys.readouterr().err
        assert code == 2, said
        assert said.startswith(f"jaxanom {words[0]}: ") and "Traceback" not in said
        return said

    return call


@pytest.fixture
def train(refused, tmp_path, tiny_folder):
    """Refused training on a copy of the tiny folder, with changes to the command."""

    def call(*words, folder=None, config=DETECTOR):
        run = tmp_path / "run"
        said = refused(
            "train",
            config,
            f"--run={run}",
            f"--config.data.directory={folder or tiny_folder}",
            f"--config.data.image_size={SIZE}",
            "--config.data.shots=4",
            *words,
        )
        assert not run.exists(), "a refused config must not claim its directory"
        return said

    return call


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A copy of the tiny folder, to be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "images")


def test_no_such_folder(train):
    assert "nowhere does not exist" in train(folder="nowhere")


def test_no_folder_given(train):
    assert "config.data.directory" in train("--config.data.directory=")


def test_no_normal_training_images(train, folder):
    shutil.rmtree(folder / "bolt" / "train")
    assert "train/good" in train(folder=folder)


def test_a_mask_of_another_size(train, folder):
    path = folder / "bolt" / "ground_truth" / "dent" / "000_mask.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)
    said = train(folder=folder)
    assert "000_mask.png" in said and "9 x 9" in said


def test_defects_without_masks(train, folder, capsys):
    shutil.rmtree(folder / "bolt" / "ground_truth" / "dent")
    said = train(folder=folder)
    assert "2 defective images" in said and "config.mixture.<phase>.defect=0" in said
    assert "<image>_mask.png into bolt/ground_truth/dent" in said
    assert main.main(["data", "check", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "bolt/ground_truth/dent has no masks of 4 defective images" in told


def test_an_unreadable_image(train, folder):
    path = folder / "bolt" / "train" / "good" / "003.png"
    path.write_bytes(path.read_bytes()[:60])
    assert "003.png" in train(folder=folder)


def test_an_unknown_category(train):
    said = train("--config.data.categories=bold")
    assert "'bold'" in said and "'bolt'" in said


def test_an_unknown_rule(train):
    said = train("--config.data.defect_rule=thirds")
    assert "config.data.defect_rule='thirds'" in said and "first_third" in said


def test_more_shots_than_defects(train):
    assert "shots=99" in train("--config.data.shots=99")


def test_a_misspelt_key(train):
    said = train("--config.data.bach_size=4")
    assert "--config.data.batch_size?" in said


def test_a_value_of_another_type(train):
    assert "wanted int" in train("--config.data.batch_size=four")


def test_a_phase_setting_that_does_not_exist(train):
    assert "optimizer='adm'" in train("--config.phases.segment.optimizer=adm")


def test_a_batch_that_does_not_split_into_microbatches(train):
    said = train("--config.phases.segment.accumulate=3")
    assert "accumulate" in said


def test_weight_on_a_generated_set_that_is_not_there(train):
    said = train("--config.mixture.segment.generated=0.25")
    assert "config.mixture.segment.generated=0.25" in said
    assert "config.data.generated" in said


def test_a_generated_set_that_is_none(train, tmp_path):
    said = train(
        f"--config.data.generated={tmp_path}", "--config.mixture.segment.generated=0.5"
    )
    assert "not a generated set" in said


def test_views_that_a_detector_does_not_make(train):
    said = train("--config.data.flips=horizontal")
    assert "config.data.num_views" in said and "augments by its own keys" in said


def test_a_mesh_that_does_not_fit_the_devices(train):
    assert "config.mesh.data=7" in train("--config.mesh.data=7")


def test_a_depth_that_does_not_halve_the_image(train):
    assert "depth" in train("--config.detector.depth=5")


def test_no_such_backbone(train):
    said = train("--config.model.directory=nowhere", config=GENERATOR)
    assert "config.model.directory" in said


def test_an_unknown_method(train):
    assert "did you mean 'detector'" in train("--config.method=detectr")


def test_a_run_of_another_config_is_left_alone(refused, tmp_path, tiny_folder):
    run = tmp_path / "run"
    record.write_json(run / record.CONFIG, {"method": "detector", "seed": 5})
    before = (run / record.CONFIG).read_bytes()
    said = refused(
        "train",
        DETECTOR,
        f"--run={run}",
        f"--config.data.directory={tiny_folder}",
        f"--config.data.image_size={SIZE}",
        "--config.data.shots=4",
    )
    assert "another config" in said and "--run" in said
    assert (run / record.CONFIG).read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--run=nowhere"),
        ("generate", "--run=nowhere", "--out=x"),
        ("report", "--run=nowhere", "--out=x.html"),
    ],
)
def test_no_such_run(refused, words):
    assert "nowhere is no run" in refused(*words)


def test_a_run_that_is_not_finished(refused, tmp_path):
    record.write_json(tmp_path / record.CONFIG, {"method": "detector"})
    said = refused("evaluate", f"--run={tmp_path}")
    assert "not finished" in said and "again" in said


def test_generate_takes_its_own_section_only(refused, whole_job, tmp_path):
    said = refused(
        "generate",
        f"--run={whole_job.directory / 'generator'}",
        f"--out={tmp_path / 'set'}",
        "--config.data.shots=1",
    )
    assert "--config.generate.*" in said
    assert not (tmp_path / "set").exists()


def test_the_whole_job_takes_no_config_of_a_detector(refused, tmp_path):
    said = refused("quickstart", DETECTOR, f"--run={tmp_path / 'run'}")
    assert "config.method='detector'" in said
    assert not (tmp_path / "run").exists()


def test_the_whole_job_refuses_a_bad_detector_before_the_generator(
    refused, tmp_path, generation_config
):
    config = generation_config(detector__options__depth=9)
    with pytest.raises(ValueError, match="depth"):
        defects_to_detector.generate_then_detect(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_without_normal_images_is_no_dataset(capsys, folder):
    shutil.rmtree(folder / "bolt" / "train")
    assert main.main(["data", "check", str(folder)]) == 2
    assert "train/good" in capsys.readouterr().err


def test_a_good_folder_is_counted(capsys, tiny_folder):
    assert main.main(["data", "check", str(tiny_folder)]) == 0
    said = capsys.readouterr().out
    assert "17 images" in said and "masks of" not in said


def test_an_unknown_category_of_the_procedural_dataset(refused, tmp_path):
    out = tmp_path / "out"
    said = refused("data", "foundry", f"--out={out}", "--categories=pil")
    assert "'pill'" in said and not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("report", "--run=x", "--out=y"),
        ("data", "foundry", "--out=x"),
        ("data", "elpv", "--out=x"),
        ("data", "tokenizer", "--out=x"),
        ("data", "tfds", "visa", "--out=x"),
    ],
)
def test_what_writes_and_shares_no_work_runs_in_one_process(
    refused, monkeypatch, words
):
    monkeypatch.setenv(distributed.COUNT, "2")
    assert f"{distributed.COUNT}=2: start it once" in refused(*words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["train"],
        ["train", DETECTOR, "--run=x", "--speed=1"],
        ["train", DETECTOR, "--run=x", "--config.seed", "1"],
        ["evaluate", "--run=x", "--config.seed=1"],
        ["generate", "--run=x", "--out=y", "--num=many"],
    ],
)
def test_a_wrong_command_line_is_told_and_ends_in_2(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main.main(words)
    assert stop.value.code == 2
    assert "usage: jaxanom" in capsys.readouterr().err


def test_a_stop_from_the_keyboard_is_no_traceback(monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxanom.cli.report.run", stop)
    assert main.main(["report", "--run=x", "--out=y"]) == 130
    assert "start the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError])
def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path, error):
    def broken(arguments):
        raise error("no fault of the user")

    monkeypatch.setattr("jaxanom.cli.report.run", broken)
    with pytest.raises(error, match="no fault of the user"):
        main.main(["report", f"--run={tmp_path}", f"--out={tmp_path / 'page.html'}"])


@pytest.mark.parametrize("error", [UserError, FileNotFoundError, PermissionError])
def test_what_the_user_can_mend_is_told_without_one(
    monkeypatch, tmp_path, capsys, error
):
    def refuse(arguments):
        raise error("mend this")

    monkeypatch.setattr("jaxanom.cli.report.run", refuse)
    words = ["report", f"--run={tmp_path}", f"--out={tmp_path / 'page.html'}"]
    assert main.main(words) == 2
    assert capsys.readouterr().err == "jaxanom report: mend this\n"
