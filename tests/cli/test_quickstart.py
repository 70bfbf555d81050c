"""The tour: parts that are done are kept, and one report shows all of them."""

import pytest

from jaxanom.cli import config_file, main, quickstart

pytest.importorskip("matplotlib")


@pytest.fixture
def small(monkeypatch, whole_job, detection_config):
    """A tour whose first part is done and whose second is a tiny detector."""
    monkeypatch.setattr(quickstart, "DEFECTS", whole_job.directory.name)
    recipes = {
        quickstart.GENERATION: whole_job.config,
        "tiny": detection_config(),
    }
    monkeypatch.setattr(config_file, "load", lambda name, _=(): recipes[name])
    part = quickstart.Part("A tiny detector", "tiny")
    monkeypatch.setattr(quickstart, "PARTS", {"zero_shot": part})
    return whole_job.directory.parent


def test_the_tour_prints_every_table_and_writes_one_report(small, whole_job, capsys):
    trained = whole_job.directory / "real" / "params.safetensors"
    before = trained.read_bytes()
    assert main.main(["quickstart", f"--run={small}"]) == 0
    said = capsys.readouterr().out
    page = (small / "report.html").read_text(encoding="utf-8")
    for text in ("real+generated", "A tiny detector", "Pixel AP"):
        assert text in page and text.lower() in said.lower()
    assert said.strip().endswith(f"report: {small / 'report.html'}")
    assert "Generated" in page, "pictures of the first part are in it"
    assert trained.read_bytes() == before, "a part that is done is kept"


def test_one_part_alone(small, capsys):
    words = ["quickstart", f"--run={small}", "--parts", "zero_shot"]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    assert "A tiny detector" in said and "Defect generation" not in said


def test_the_tour_takes_no_overrides(capsys, tmp_path):
    words = ["quickstart", f"--run={tmp_path / 'run'}", "--config.seed=1"]
    assert main.main(words) == 2
    assert "--config=configs/defect_generation/foundry.py" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_posterior_part_is_a_sweep_with_its_plots(
    monkeypatch, sweep_config, tmp_path, capsys
):
    config = sweep_config(sweep__seed=(0,), sweep__num_particles=(2,))
    monkeypatch.setattr(config_file, "load", lambda name, _=(): config)
    part = quickstart.Part("Tiny particles", "tiny")
    monkeypatch.setattr(quickstart, "PARTS", {quickstart.POSTERIOR: part})
    words = ["quickstart", f"--run={tmp_path}", "--parts", quickstart.POSTERIOR]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    assert "Tiny particles" in said and "svgd" in said and "sgld" in said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("Tiny particles", "Against the number of particles", "1st component"):
        assert text in page
    rows = tmp_path / quickstart.POSTERIOR / "sweep.jsonl"
    before = rows.read_bytes()
    assert main.main(words) == 0 and rows.read_bytes() == before, "it is kept"


def test_the_posterior_part_is_a_sweep_that_the_recipe_knows():
    part = quickstart.PARTS[quickstart.POSTERIOR]
    config = config_file.load(part.recipe, part.overrides)
    assert config.sweep.num_particles == (1, 4, 16)
    assert config.phases.particles.num_steps % config.sweep.num_snapshots == 0
