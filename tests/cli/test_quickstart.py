"""The tour: parts that are done are kept, and one report shows all of them."""

import subprocess
import sys
import threading
import time

import pytest

from jaxanom import record
from jaxanom.cli import main
from jaxanom.errors import UserError
from jaxanom.jobs import config_file, tour

pytest.importorskip("matplotlib")


@pytest.fixture
def small(monkeypatch, whole_job, detection_config):
    """A tour whose first part is done and whose second is a tiny detector."""
    monkeypatch.setattr(tour, "DEFECTS", whole_job.directory.name)
    recipes = {
        tour.GENERATION: whole_job.config,
        "tiny": detection_config(),
    }
    monkeypatch.setattr(config_file, "load", lambda name, _=(): recipes[name])
    part = tour.Part("A tiny detector", "tiny")
    monkeypatch.setattr(tour, "PARTS", {"zero_shot": part})
    monkeypatch.setattr(tour, "_default_processes", lambda: 1)
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


@pytest.fixture
def two_parts(monkeypatch, detection_config, tmp_path):
    """A tour of two tiny detectors."""
    config = detection_config()
    monkeypatch.setattr(config_file, "load", lambda *_: config)
    parts = {
        "zero_shot": tour.Part("A tiny detector", "tiny"),
        "few_shot": tour.Part("Another one", "tiny"),
    }
    monkeypatch.setattr(tour, "PARTS", parts)
    words = ["quickstart", f"--run={tmp_path}", "--processes=2", "--parts", *parts]
    return tmp_path, words


@pytest.fixture
def second_process(monkeypatch):
    """Makes a program of the test's own the second process."""

    def replaced(program):
        command = [sys.executable, "-c", program]
        monkeypatch.setattr(tour, "beside_command", lambda *_: command)

    return replaced


def test_what_the_second_process_left_undone_is_done_and_what_it_did_is_shown(
    two_parts, second_process, capsys
):
    directory, words = two_parts
    second_process("import sys; sys.exit('no room')")
    assert main.main(words) == 0
    said = capsys.readouterr().out
    assert "Another one" in said and str(directory / "beside.log") in said
    assert "no room" in (directory / "beside.log").read_text(encoding="utf-8")
    evaluation = directory / "few_shot" / "evaluation.json"
    results = record.read_json(evaluation)
    results["mean"]["pixel_ap"] = 0.98765  # a number that no evaluation here gives
    record.write_json(evaluation, results)
    second_process("pass")
    assert main.main(words) == 0
    assert "98.8" in capsys.readouterr().out, "what it did is not done again"


def test_a_tour_that_fails_ends_its_second_process(
    two_parts, second_process, monkeypatch, capsys
):
    directory, words = two_parts
    started = directory / "second_started"
    second_process(
        f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"
    )

    def refuse(*_):
        while not started.exists():
            time.sleep(0.01)
        raise UserError("refused")

    monkeypatch.setattr(config_file, "load", refuse)
    begun, cores = time.monotonic(), tour._cores()
    assert main.main(words) == 2
    assert "refused" in capsys.readouterr().err
    assert time.monotonic() - begun < 60, "it was not waited for"
    assert tour._cores() == cores, "they are given back"


@pytest.mark.skipif(len(tour._cores()) < 2, reason="one core, or none to set")
def test_the_two_processes_share_no_core(two_parts, second_process, monkeypatch):
    directory, words = two_parts
    second_process(
        "import os, pathlib; "
        f"pathlib.Path({str(directory / 'cores')!r}).write_text("
        "' '.join(map(str, os.sched_getaffinity(0))))"
    )
    own = []

    def refuse(*_):
        own.extend(tour._cores())
        raise UserError("seen enough")

    monkeypatch.setattr(config_file, "load", refuse)
    everything = set(tour._cores())
    monkeypatch.setattr(subprocess.Popen, "terminate", lambda self: self.wait())
    assert main.main(words) == 2
    other = set(map(int, (directory / "cores").read_text().split()))
    assert own and other and not other & set(own) and other | set(own) == everything


def test_the_second_process_is_this_command_on_the_other_parts(tmp_path):
    command = tour.beside_command(tmp_path, ["few_shot", "posterior"])
    assert command[:3] == [sys.executable, "-m", "jaxanom"]
    found = main.build_parser("quickstart").parse_args(command[3:])
    assert found.parts == ["few_shot", "posterior"] and found.run == str(tmp_path)
    assert found.processes == 1, "it starts no further one"
    assert found.beside, "it ends with the first one"


def test_the_second_process_ends_when_the_first_one_is_killed():
    program = (
        "import threading, time\nfrom jaxanom.jobs import tour\n"
        "threading.Thread(target=tour.end_with_starter, daemon=True).start()\n"
        "print('here', flush=True)\ntime.sleep(600)"
    )
    starter = (
        "import subprocess, sys, time\n"
        f"second = subprocess.Popen([sys.executable, '-c', {program!r}], "
        "stdin=subprocess.PIPE)\n"
        "time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"here\n"
    # Whoever holds the other end of the second one's output: nobody, once both ended.
    reading = threading.Thread(target=first.stdout.read, daemon=True)
    reading.start()
    reading.join(1.0)
    assert reading.is_alive(), "it runs while the first one does"
    first.kill()
    first.wait()
    reading.join(60)
    assert not reading.is_alive(), "it outlives the first one"


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
    part = tour.Part("Tiny particles", "tiny")
    monkeypatch.setattr(tour, "PARTS", {tour.POSTERIOR: part})
    words = ["quickstart", f"--run={tmp_path}", "--parts", tour.POSTERIOR]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    assert "Tiny particles" in said and "svgd" in said and "sgld" in said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("Tiny particles", "Against the number of particles", "1st component"):
        assert text in page
    rows = tmp_path / tour.POSTERIOR / "sweep.jsonl"
    before = rows.read_bytes()
    assert main.main(words) == 0 and rows.read_bytes() == before, "it is kept"


def test_the_posterior_part_is_a_sweep_that_the_recipe_knows():
    part = tour.PARTS[tour.POSTERIOR]
    config = config_file.load(part.recipe, part.overrides)
    assert config.sweep.num_particles == (1, 4, 16)
    assert config.phases.particles.num_steps % config.sweep.num_snapshots == 0
