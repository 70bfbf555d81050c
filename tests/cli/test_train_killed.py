"""`jaxanom train`, killed and started again, ends in the same file."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jaxanom
from jaxanom import api, record
from jaxanom.cli import main

NUM_STEPS = 60
PATIENCE_S = 600  # a machine shared with others may take long to import jax


def command(run, folder):
    return [
        "train",
        "--config=configs/downstream/folder.py",
        f"--run={run}",
        f"--config.data.directory={folder}",
        "--config.data.image_size=16",
        "--config.data.shots=4",
        "--config.data.batch_size=4",
        "--config.downstream.width=4",
        "--config.downstream.depth=1",
        f"--config.phases.segment.num_steps={NUM_STEPS}",
        "--config.train.log_every=1",
        # Saving often puts many kills into the middle of a save.
        "--config.train.checkpoint_every=2",
        "--config.train.ema_decay=0.9",
    ]


def steps_of(run):
    rows = record.read_metrics(run / record.METRICS)
    return [row["step"] for row in rows if row["kind"] == "train"]


def kill_after(words, run, num_rows):
    """Starts the command in its own process; kills it once it logged some steps."""
    root = Path(jaxanom.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxanom", *words],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    give_up = time.monotonic() + PATIENCE_S
    try:
        while len(steps_of(run)) < num_rows:
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < give_up, "the run did not start in time"
            time.sleep(random.SystemRandom().uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_a_killed_training_started_again_ends_in_the_same_bits(tmp_path, tiny_folder):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert main.main(command(unbroken, tiny_folder)) == 0

    num_rows = random.SystemRandom().randint(1, NUM_STEPS // 2)
    kill_after(command(broken, tiny_folder), broken, num_rows)
    assert not (broken / api.PARAMS).exists(), f"nothing was left to do: {num_rows=}"

    assert main.main(command(broken, tiny_folder)) == 0
    wanted, found = ((run / api.PARAMS).read_bytes() for run in (unbroken, broken))
    assert wanted == found, f"killed after {num_rows} steps"
    assert steps_of(broken) == list(range(1, NUM_STEPS + 1))
