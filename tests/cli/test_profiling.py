"""A profile is written where it was asked for, of steps that are compiled already."""

import jax
import pytest

from jaxanom.cli import main, profiling


def row(phase, step, kind="train"):
    return {"phase": phase, "step": step, "kind": kind}


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: found.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def test_a_trace_spans_two_rows_of_a_phase_and_comes_once(calls, tmp_path):
    steps = profiling.Steps(str(tmp_path))
    rows = [row("a", 1, "compile"), row("a", 5), row("a", 7, "eval"), row("a", 10)]
    for seen in (*rows, row("a", 15), row("b", 5)):
        steps(seen)
    assert calls == [tmp_path / "a", "stop", tmp_path / "b"]
    steps.close()
    steps.close()
    assert calls[3:] == ["stop"]


def test_a_training_leaves_a_trace_and_one_without_the_flag_none(
    tmp_path, tiny_folder, capsys
):
    command = [
        "train",
        "--config=configs/detector/folder.py:unet",
        f"--config.data.directory={tiny_folder}",
        "--config.data.image_size=16",
        "--config.data.shots=4",
        "--config.data.batch_size=4",
        "--config.detector.width=4",
        "--config.detector.depth=1",
        "--config.phases.segment.num_steps=3",
        "--config.train.log_every=1",
    ]
    traces = tmp_path / "traces"
    assert main.main([*command, f"--run={tmp_path / 'plain'}"]) == 0
    assert not traces.exists()
    words = [f"--run={tmp_path / 'run'}", f"--profile={traces}"]
    assert main.main([*command, *words]) == 0
    assert list((traces / "segment").rglob("*.xplane.pb"))
