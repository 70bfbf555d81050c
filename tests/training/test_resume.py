import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import killed_run
import linear
import numpy as np

import jaxanom
from jaxanom import record

SCRIPT = Path(killed_run.__file__)
PATIENCE_S = 300  # a machine shared with others may take long to import jax


def start(directory):
    root = Path(jaxanom.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, SCRIPT, directory], env=os.environ | {"PYTHONPATH": path}
    )


def wait_for_first_row(process, metrics):
    """Waits until the process trains: until then there is nothing to lose."""
    give_up = time.monotonic() + PATIENCE_S
    while not any(row["kind"] == "train" for row in record.read_metrics(metrics)):
        assert process.poll() is None, "the run ended before its first row"
        assert time.monotonic() < give_up, "the run did not start in time"
        time.sleep(0.02)


def test_a_run_killed_at_any_moment_and_restarted_ends_in_the_same_bits(tmp_path):
    unbroken, info = killed_run.train(tmp_path / "a", linear.make_batches)

    process = start(tmp_path / "b")
    try:
        wait_for_first_row(process, tmp_path / "b" / "metrics.jsonl")
        # Steps take 0.1 s and more: the moment falls between step 1 and step 12.
        delay = random.SystemRandom().uniform(0.0, 1.0)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"ended before the kill: {delay=}"
    finally:
        process.kill()
        process.wait()

    resumed, again = killed_run.train(tmp_path / "b", linear.make_batches)
    assert again["resumed_from"] != killed_run.NUM_STEPS, f"nothing was left: {delay=}"
    for wanted, found in (
        (unbroken, resumed),
        (info["ema_params"], again["ema_params"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, wanted, found)
    rows = record.read_metrics(tmp_path / "b" / "metrics.jsonl")
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == list(range(1, killed_run.NUM_STEPS + 1))
