"""`jaxanom train`, killed and started again, ends in the same file."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxanom
from jaxanom import record
from jaxanom.cli import main
from jaxanom.jobs import load
from jaxanom.training import preemption

NUM_STEPS = 60
PATIENCE_S = 600  # a machine shared with others may take long to import jax


def command(run, folder):
    return [
        "train",
        "--config=configs/detector/folder.py:unet",
        f"--run={run}",
        f"--config.data.directory={folder}",
        "--config.data.image_size=16",
        "--config.data.shots=4",
        "--config.data.batch_size=4",
        "--config.detector.width=4",
        "--config.detector.depth=1",
        f"--config.phases.segment.num_steps={NUM_STEPS}",
        "--config.train.log_every=1",
        # Saving often puts many kills into the middle of a save.
        "--config.train.checkpoint_every=2",
        "--config.train.ema_decay=0.9",
    ]


def steps_of(run):
    rows = record.read_metrics(run / record.METRICS)
    return [row["step"] for row in rows if row["kind"] == "train"]


def signal_after(words, run, num_rows, number=signal.SIGKILL):
    """Starts the command in its own process; signals once it logged some steps.

    With no steps to wait for, it signals while data, towers and the step are prepared.

    Returns:
      (its exit status, seconds from the signal to the exit).
    """
    root = Path(jaxanom.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxanom", *words],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    give_up = time.monotonic() + PATIENCE_S
    try:
        while len(steps_of(run)) < num_rows or not (run / record.CONFIG).is_file():
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < give_up, "the run did not start in time"
            time.sleep(random.SystemRandom().uniform(0, 0.02))
        process.send_signal(number)
        sent = time.monotonic()
        return process.wait(PATIENCE_S), time.monotonic() - sent
    finally:
        process.kill()
        process.wait()


def test_a_killed_training_started_again_ends_in_the_same_bits(tmp_path, tiny_folder):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert main.main(command(unbroken, tiny_folder)) == 0

    num_rows = random.SystemRandom().randint(1, NUM_STEPS // 2)
    status, _ = signal_after(command(broken, tiny_folder), broken, num_rows)
    assert status == -signal.SIGKILL
    assert not (broken / load.PARAMS).exists(), f"nothing was left to do: {num_rows=}"

    assert main.main(command(broken, tiny_folder)) == 0
    wanted, found = ((run / load.PARAMS).read_bytes() for run in (unbroken, broken))
    assert wanted == found, f"killed after {num_rows} steps"
    assert steps_of(broken) == list(range(1, NUM_STEPS + 1))


def stopped(run, folder):
    """Stops a training by SIGTERM at a random step; returns the seconds it took."""
    num_rows = random.SystemRandom().randint(1, NUM_STEPS // 2)
    words = command(run, folder)
    status, seconds = signal_after(words, run, num_rows, signal.SIGTERM)
    assert status == preemption.EXIT_CODE
    # The state of the last step is saved, all of it: no step is trained twice. An odd
    # one shows that it was saved for the signal, not by `checkpoint_every`.
    newest = max(int(p.name) for p in (run / "checkpoints").iterdir())
    assert newest == steps_of(run)[-1] >= num_rows
    assert not (run / load.PARAMS).exists()
    return seconds


def test_a_training_stopped_by_sigterm_saves_its_last_step_and_goes_on_from_there(
    tmp_path, tiny_folder
):
    stopped(tmp_path, tiny_folder)
    before = steps_of(tmp_path)
    assert main.main(command(tmp_path, tiny_folder)) == 0
    assert steps_of(tmp_path) == list(range(1, NUM_STEPS + 1))
    assert before == steps_of(tmp_path)[: len(before)]


def stopped_early(root, folder):
    """Stops a training before its first step; returns its directory and the seconds.

    On a loaded machine the signal may come after that step; then another one is tried.
    """
    for attempt in range(5):
        run = root / str(attempt)
        words = command(run, folder)
        status, seconds = signal_after(words, run, 0, signal.SIGTERM)
        assert status == preemption.EXIT_CODE
        if not steps_of(run):
            return run, seconds
    pytest.fail("five signals all came after the first step")


def test_a_training_stopped_before_its_first_step_leaves_no_halves_and_starts_again(
    tmp_path, tiny_folder
):
    run, seconds = stopped_early(tmp_path, tiny_folder)
    # Two seconds are granted to what cannot be interrupted, schedulers grant thirty;
    # the rest is for a loaded machine.
    assert seconds <= 15.0
    left = [path for path in run.rglob("*") if path.is_file()]
    # The only row there can be says that the step is compiled, and it is whole.
    rows = run / record.METRICS
    assert {path.name for path in left} - {rows.name} <= {record.CONFIG, record.RECORD}
    for path in left:
        lines = path.read_text().splitlines() if path == rows else [path.read_text()]
        assert all(isinstance(json.loads(line), dict) for line in lines)
    assert {row["kind"] for row in record.read_metrics(rows)} <= {"compile"}
    assert main.main(command(run, tiny_folder)) == 0
    assert steps_of(run) == list(range(1, NUM_STEPS + 1))


@pytest.mark.slow
def test_fifty_of_fifty_are_saved_within_five_seconds(tmp_path, tiny_folder):
    times = [stopped(tmp_path / str(trial), tiny_folder) for trial in range(50)]
    # What a scheduler grants at least is 30 s; a loaded machine must keep within it.
    assert max(times) <= 5.0, sorted(times)
