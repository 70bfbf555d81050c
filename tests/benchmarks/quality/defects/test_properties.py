"""Targets are compared as written, results are cached, and all of it runs."""

import pytest

from benchmarks.quality.defects import properties, runs
from jaxanom.data import catalog
from jaxanom.data.foundry import render

RUST = "rust_stays_on_steel"


def rust_result(ratio):
    plastic = 0.8 * (ratio or 1.0)
    kept = {"steel": {"kept": 0.8}, "plastic": {"kept": plastic}, "ratio": ratio}
    return {"panel": kept, "panel_refusing": kept}


@pytest.mark.parametrize(
    ("ratio", "passed"), [(0.3, True), (0.5, False), (None, False)]
)
def test_refusal_passes_below_half_and_an_undefined_ratio_misses(ratio, passed):
    compared = properties.lines({RUST: rust_result(ratio)})
    *_, plain, _, _, last = compared[RUST]
    assert plain.measure == "plastic / steel" and plain.passed is passed
    assert last.measure.startswith("plastic / steel, refusal") and last.passed is passed


def test_a_result_is_computed_once_and_belongs_to_its_seed(tmp_path):
    job = runs.Job("embedded", tmp_path, 0, 1.0)
    calls = []

    def experiment(_):
        calls.append(1)
        return rust_result(0.3)

    first = properties.done(job, RUST, experiment)
    assert properties.done(job, RUST, experiment) == first and len(calls) == 1
    with pytest.raises(ValueError, match="choose another --out"):
        properties.done(job._replace(seed=1), RUST, experiment)
    properties.write(job, {RUST: first})
    assert "plastic / steel" in (tmp_path / "properties.md").read_text()
    assert (tmp_path / "properties.json").is_file()


def test_experiments_never_see_the_seed_that_the_towers_were_trained_on():
    for seed in range(3):
        assert runs.config(runs.Job("", None, seed, 1.0)).data.seed > 50


def test_a_written_folder_opens_as_the_rendered_images(tmp_path):
    rows = [("train", "good", 0, "000"), ("test", "rust", 1, "001")]
    folder = runs.write_folder(tmp_path / "panel", "panel", rows, seed=100)
    dataset = catalog.open_dataset("folder", folder, image_size=64)
    assert dataset.defect_types == ("good", "rust")
    image, mask = dataset.load(dataset.records[1])
    sample = render.render("panel", "test", 1, 100, 64, defect_type="rust")
    assert (image == sample.image).all() and (mask == sample.mask).all()
    assert runs.write_folder(folder, "panel", [], seed=100) == folder


@pytest.mark.slow
def test_every_experiment_runs_on_an_untrained_backbone(tmp_path, backbone):
    arguments = ["--out", str(tmp_path), "--model", str(backbone), "--scale", "0.01"]
    results = properties.main([*arguments, "--ablations"])
    assert set(results) == {*properties.EXPERIMENTS, properties.ABLATIONS}
    # Structural: no training is needed for it.
    for what in ("seeds", "prompts"):
        assert results["background_stays"]["invariance"][f"{what}_outside"] == 0
        assert results["background_stays"]["invariance"][f"{what}_inside"] > 0
    # Move by move or in one scan: float32 rounding over 100 moves.
    chain = results["background_stays"]["recompute"]["source"]["50"]["mean"]
    assert results["background_stays"]["invariance"]["error"] == pytest.approx(
        chain, rel=1e-3
    )
    assert results["background_stays"]["replay"]["50"]["worst"] == 0
    assert "| generated_set_helps" in (tmp_path / "properties.md").read_text()
