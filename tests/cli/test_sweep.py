"""`jaxanom sweep`: a table on the terminal, a page, and wrong inputs named."""

import ml_collections

from jaxanom.cli import main
from jaxanom.jobs import config_file


def test_a_sweep_prints_its_table_and_goes_on(
    monkeypatch, sweep_config, tmp_path, capsys
):
    tiny = sweep_config(sweep__num_particles=(2,), sweep__seed=(0,))

    def load(name, overrides=()):
        config = ml_collections.ConfigDict(tiny.to_dict())
        for override in overrides:
            config_file.apply_override(config, *override.split("=", 1))
        return config

    monkeypatch.setattr(config_file, "load", load)
    words = ["sweep", f"--out={tmp_path}"]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    assert "2 svgd rbf 1.0 0: accuracy=" in said and "Transport" in said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Against the number of particles" in page
    assert main.main(words) == 0
    assert "accuracy=" not in capsys.readouterr().out, "no point was left"
    assert main.main([*words, "--config.sweep.update=stein"]) == 2
    assert "config.sweep.update=('stein',)" in capsys.readouterr().err
    assert main.main([*words, "--config.app.prior.sigma2=3"]) == 2
    assert "app.prior.sigma2" in capsys.readouterr().err


def test_a_recipe_without_the_section_is_refused(tmp_path, capsys):
    words = ["sweep", "--config=configs/app/foundry.py", f"--out={tmp_path / 'a'}"]
    assert main.main(words) == 2
    assert "sweep_foundry" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
