"""Assembling keeps what belongs in the package and refuses what does not."""

import shutil

import numpy as np
import pytest

from benchmarks.quality import tower_quality, towers
from jaxanom import record
from jaxanom.models.checkpoints.formats import weights


@pytest.fixture
def training_runs(tmp_path, backbone):
    """Directories as the training runs leave them."""
    runs = tmp_path / "runs"
    for part, place in towers.PARTS.items():
        shutil.copytree(backbone / part, runs / place)
    for name in towers.RUNS:
        split = {"normal": ["a/train/good/000.png"] * 5, "defect": []}
        record.write_json(
            runs / name / record.RECORD, {"split": split, "num_params": 7}
        )
        record.write_json(runs / name / record.CONFIG, {"seed": 0})
        for step in range(250):
            record.append_metrics(runs / name / record.METRICS, {"step": step})
    return runs


def test_assembles_parts_and_thinned_records(training_runs, tmp_path):
    assets = tmp_path / "assets"
    assert towers.assemble(training_runs, assets) == []
    assert {path.name for path in assets.iterdir()} == {*towers.PARTS, "records"}
    kept = record.read_json(assets / "records" / "clip" / record.RECORD)
    assert kept == {"num_params": 7, "num_images": {"normal": 5, "defect": 0}}
    rows = list(record.read_metrics(assets / "records" / "clip" / record.METRICS))
    assert len(rows) == towers.KEPT_ROWS
    assert (rows[0]["step"], rows[-1]["step"]) == (0, 249)


def test_a_part_that_is_not_trained_yet_is_named_and_left_out(training_runs, tmp_path):
    shutil.rmtree(training_runs / "unet")
    assert towers.assemble(training_runs, tmp_path / "a") == ["unet", "scheduler"]
    assert (tmp_path / "a" / "vae").is_dir() and not (tmp_path / "a" / "unet").exists()


def test_refuses_float32_weights(training_runs, tmp_path):
    path = training_runs / towers.PARTS["vae"] / "diffusion_pytorch_model.safetensors"
    weights.write(path, weights.read(path, np.float32))
    with pytest.raises(ValueError, match="float16"):
        towers.assemble(training_runs, tmp_path / "assets")


def test_refuses_a_text_tower_that_the_unet_was_not_trained_with(
    training_runs, tmp_path
):
    used = training_runs / "text" / "clip"
    shutil.copytree(training_runs / towers.PARTS["clip"], used)
    towers.assemble(training_runs, tmp_path / "assets")
    config = record.read_json(used / "config.json")
    record.write_json(used / "config.json", config | {"other": 1})
    with pytest.raises(ValueError, match="trained"):
        towers.assemble(training_runs, tmp_path / "assets")


def test_refuses_more_than_the_size_limit(training_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(towers, "LIMIT_BYTES", 1000)
    with pytest.raises(ValueError, match="limit"):
        towers.assemble(training_runs, tmp_path / "assets")


def test_the_training_seed_cannot_be_measured_on(capsys):
    with pytest.raises(SystemExit):
        towers.parse(["--seed", str(towers.TRAINING_SEED)])
    assert "trained on" in capsys.readouterr().err


def test_both_psnr_forms_on_two_known_errors():
    found = tower_quality.psnr(np.array([0.01, 0.0001]))
    assert found["mean_psnr"] == pytest.approx(30.0)
    # The mean error is 0.00505, 22.97 dB: one bad image weighs more.
    assert found["psnr_of_mean"] == pytest.approx(22.967, abs=1e-3)


def test_patch_shares_follow_the_order_of_patches():
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 0:2, 4:8] = True  # half of the upper right patch of four
    np.testing.assert_array_equal(tower_quality.patch_shares(mask, 4), [[0, 0.5, 0, 0]])
    with pytest.raises(ValueError, match="tile"):
        tower_quality.patch_shares(mask, 5)


def test_batches_of_one_shape_give_every_row_once():
    seen = []

    def apply(rows):
        seen.append(len(rows))
        return {"double": 2 * rows}

    found = tower_quality.in_batches(apply, np.arange(7), 3)
    assert seen == [3, 3, 3]
    np.testing.assert_array_equal(found["double"], 2 * np.arange(7))


@pytest.mark.slow
def test_an_untrained_directory_is_measured_and_tabulated(backbone, tmp_path):
    assets = tmp_path / "assets"
    shutil.copytree(backbone, assets)
    few = ["--num-good", "2", "--num-per-defect", "1", "--num-samples", "2"]
    found = towers.main(
        ["--assets", str(assets), "--measure-only", "--sampling-steps", "2", *few]
    )
    assert set(found["measured"]) == {"vae", "clip", "unet"}
    assert set(found["measured"]["vae"]) == {"seen", "held_out", "per_category"}
    # Chance among 14 names is 0.07; random towers must not look trained.
    assert found["measured"]["clip"]["seen"]["named"] < 0.5
    assert (assets / "records" / "samples.png").is_file()
    assert record.read_json(assets / towers.TOWERS_JSON) == found
