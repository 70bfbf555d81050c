"""Several processes on one machine, over loopback, are one program."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest

import jaxanom
from jaxanom import record
from jaxanom.parallel import distributed
from jaxanom.training import preemption

PATIENCE_S = 400  # a machine shared with others may take long to import jax
NUM_DEVICES = 4  # of all processes together: the mesh, and so the program, is the same


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(directory, count, *flags, only=None):
    """Starts `count` processes; `flags` are those of number `only` (of all if None)."""
    root = Path(jaxanom.__file__).parents[1]
    device_flag = f"--xla_force_host_platform_device_count={NUM_DEVICES // count}"
    address, started = f"127.0.0.1:{free_port()}", []
    for number in range(count):
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {device_flag}",
            "PYTHONPATH": os.pathsep.join(
                [str(root), os.environ.get("PYTHONPATH", "")]
            ),
        }
        if count > 1:
            env |= {
                distributed.ADDRESS: address,
                distributed.COUNT: str(count),
                distributed.NUMBER: str(number),
            }
        words = [sys.executable, processes.__file__, directory]
        words += flags if only in (None, number) else ()
        started.append(
            subprocess.Popen(
                words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
    return started


def finish(started):
    """Waits for all; returns their exit statuses."""
    try:
        return [process.wait(PATIENCE_S) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def train(directory, count):
    assert finish(start(directory, count)) == [0] * count
    return json.loads((directory / "result.json").read_text())


def losses(directory):
    rows = record.read_metrics(directory / record.METRICS)
    return [row["loss"] for row in rows if row["kind"] == "train"]


def assert_same(directory, other, found, wanted):
    # Sums over devices are taken in another order: a few float32 roundings a step.
    np.testing.assert_allclose(losses(directory), losses(other), rtol=1e-5)
    for kind in ("kernel", "bias"):
        ours, theirs = (r["weights"]["linear"][kind] for r in (found, wanted))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert found["mean"] == wanted["mean"]
    assert found["num_images"] == wanted["num_images"] == {"0": processes.NUM_TESTED}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    return directory, train(directory, 1)


def test_two_processes_train_and_evaluate_as_one(tmp_path, alone):
    found = train(tmp_path, 2)
    assert found["processes"] == 2 and found["rows"] == [0, 1, 2, 3]
    assert_same(tmp_path, alone[0], found, alone[1])
    # One of them writes: every row once.
    assert len(losses(tmp_path)) == processes.NUM_STEPS
    # Negative control: the curve is not flat, so that equal curves say something.
    assert losses(tmp_path)[0] > 1.2 * losses(tmp_path)[-1]


def kill_one(directory, count):
    """Kills a process after step 5; the others cannot go on and are ended."""
    started = start(directory, count, "--kill_after=5", only=0)
    try:
        assert started[0].wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert not (directory / "result.json").exists()


def test_after_a_kill_one_process_goes_on_where_two_were(tmp_path, alone):
    kill_one(tmp_path, 2)
    found = train(tmp_path, 1)
    assert found["resumed_from"] in (2, 4)
    assert_same(tmp_path, alone[0], found, alone[1])


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (4, 1), (1, 4)])
def test_after_a_kill_any_number_of_processes_goes_on(tmp_path, alone, before, after):
    kill_one(tmp_path, before)
    found = train(tmp_path, after)
    assert found["processes"] == after and found["resumed_from"] in (2, 4)
    assert_same(tmp_path, alone[0], found, alone[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "first"), [("--stop_after=3", 3), ("--stop_before", 1)]
)
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    tmp_path, alone, flag, first
):
    statuses = finish(start(tmp_path, 2, flag, only=0))
    assert statuses == [preemption.EXIT_CODE] * 2
    found = train(tmp_path, 2)
    assert first <= found["resumed_from"] < processes.NUM_STEPS
    assert_same(tmp_path, alone[0], found, alone[1])
