"""A finished run and its images: which it is used with, and on which devices."""

import shutil

import numpy as np
import pytest

import jaxanom
from jaxanom import record
from jaxanom.cli import main
from jaxanom.jobs import evaluate, load
from jaxanom.report import runs

pytest.importorskip("matplotlib")


@pytest.fixture
def own(whole_job, tiny_folder, tmp_path):
    """A run and its images, both copied: (run, folder)."""
    run = shutil.copytree(whole_job.directory / "real", tmp_path / "run")
    folder = shutil.copytree(tiny_folder, tmp_path / "images")
    change_config(run, data={"directory": str(folder)})
    return run, folder


def change_config(run, **sections):
    config = record.read_json(run / record.CONFIG)
    for name, values in sections.items():
        config[name] |= values
    record.write_json(run / record.CONFIG, config)


def add_defect(folder):
    for part, name in (("test", "100.png"), ("ground_truth", "100_mask.png")):
        place = folder / "bolt" / part / "dent"
        shutil.copy(place / name.replace("100", "000"), place / name)


def test_a_run_is_not_tested_on_images_added_to_its_own(own, tiny_folder):
    run, folder = own
    config = jaxanom.load(run).prepared.config
    stored = record.config_from_plain(record.read_json(run / record.CONFIG))
    before = (run / record.RECORD).read_bytes()
    add_defect(folder)
    for use in (
        lambda: jaxanom.evaluate(jaxanom.load(run)),
        lambda: evaluate.evaluate_on(run, ["data.batch_size=2"]),
        lambda: jaxanom.train(stored, run),
    ):
        with pytest.raises(ValueError, match=r"1 new: bolt/test/dent/100\.png.*--on="):
            use()
    assert (run / record.RECORD).read_bytes() == before
    # To look for defects, and to be tested on others, the folder may have grown.
    assert jaxanom.predict(jaxanom.load(run), [np.zeros((16, 16, 3), np.uint8)])
    evaluate.evaluate_on(run, [f"data.directory={tiny_folder}"])
    # A run that tells nothing of its images is as before.
    (run / record.RECORD).unlink()
    assert jaxanom.load(run).prepared.config.data == config.data
    evaluate.check_images(jaxanom.load(run))


def test_training_a_finished_run_again_leaves_its_record(own):
    run, _ = own
    record.update_json(run / record.RECORD, {"machine": {"cores": 1000}})
    names = (record.RECORD, load.PARAMS)
    before = [(run / name).read_bytes() for name in names]
    config = record.config_from_plain(record.read_json(run / record.CONFIG))
    again = jaxanom.train(config, run)
    assert [(run / name).read_bytes() for name in names] == before
    picture = np.zeros((16, 16, 3), np.uint8)
    np.testing.assert_array_equal(
        jaxanom.predict(again, [picture]).anomaly_map,
        jaxanom.predict(jaxanom.load(run), [picture]).anomaly_map,
    )


def test_a_run_of_a_larger_mesh_is_loaded_on_the_devices_here(own, whole_job, capsys):
    run, _ = own
    change_config(run, mesh={"data": 3, "fsdp": 8})
    loaded = jaxanom.load(run)
    assert "does not fit" in capsys.readouterr().err
    assert loaded.prepared.mesh.size == 1
    with pytest.raises(ValueError, match=r"config\.mesh\.fsdp=8"):
        load.load(run, lambda config: config.mesh.update(fsdp=8))
    capsys.readouterr()
    jaxanom.load(whole_job.directory / "real")
    assert capsys.readouterr().err == ""


def test_on_other_images_the_whole_test_split_counts(own, tiny_folder, capsys):
    run, _ = own
    others = evaluate.evaluate_on(run, [f"data.directory={tiny_folder}"])
    assert others["num_images"] == {"bolt": 11}  # 3 good and all 8 defects
    assert "4 test images have names of images trained on" in capsys.readouterr().err
    rule = ["data.defect_rule=shots", f"data.directory={tiny_folder}"]
    assert evaluate.evaluate_on(run, rule)["num_images"] == {"bolt": 7}
    assert evaluate.evaluate_on(run)["num_images"] == {"bolt": 7}


def test_without_masks_an_evaluation_says_why_pixels_are_left_out(own, capsys):
    run, folder = own
    shutil.rmtree(folder / "bolt" / "ground_truth" / "dent")
    assert main.main(["evaluate", f"--run={run}"]) == 0
    said = capsys.readouterr().out
    assert "Image AUROC" in said and "Pixel AUROC" not in said
    assert "masks are missing: bolt/ground_truth/dent" in said
    results = record.read_json(run / runs.EVALUATION)
    assert results["without_masks"] == ["bolt/ground_truth/dent"]
    page = runs.write(run / "report.html", [run], "one").read_text(encoding="utf-8")
    assert "masks are missing: bolt/ground_truth/dent" in page
