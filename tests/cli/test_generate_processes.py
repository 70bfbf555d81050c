"""`jaxanom generate` in processes of their own: two as one, and one that is stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxanom
from jaxanom.data import generated
from jaxanom.parallel import distributed
from jaxanom.training import preemption

pytestmark = pytest.mark.slow  # half a minute a process on two cores
PATIENCE_S = 600  # a machine shared with others may take long to import jax
NUM_DEVICES = 2


@pytest.fixture(scope="module")
def trained(generation_config, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    jaxanom.train(generation_config(), run)
    return run


def start(run, out, count, *flags):
    """Starts `count` processes that share two devices."""
    root = Path(jaxanom.__file__).parents[1]
    device_flag = f"--xla_force_host_platform_device_count={NUM_DEVICES // count}"
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {device_flag}",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    words = [sys.executable, "-m", "jaxanom", "generate"]
    words += [f"--run={run}", f"--out={out}", *flags]
    joined = {distributed.ADDRESS: address, distributed.COUNT: str(count)}
    return [
        subprocess.Popen(
            words,
            env=env | (joined if count > 1 else {}) | {distributed.NUMBER: str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def finish(started):
    """Waits for all; returns (statuses, what each printed)."""
    try:
        said = [process.communicate(timeout=PATIENCE_S) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    statuses = [process.returncode for process in started]
    assert not any(statuses), "\n".join(errors for _, errors in said)
    return [text for text, _ in said]


def test_two_processes_draw_one_set_and_one_of_them_writes(tmp_path, trained):
    finish(start(trained, tmp_path / "one", 1))
    said = finish(start(trained, tmp_path / "two", 2))
    assert ["written:" in text for text in said] == [True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    wanted = generated.read_manifest(tmp_path / "one")
    assert generated.read_manifest(tmp_path / "two") == wanted and len(wanted) == 3
    for entry in wanted:
        # The same program on two devices, whoever owns them: the same bytes.
        for key in ("image", "mask", "requested_mask"):
            ours, theirs = (tmp_path / name / entry[key] for name in ("one", "two"))
            assert ours.read_bytes() == theirs.read_bytes()
    images = {(tmp_path / "two" / entry["image"]).read_bytes() for entry in wanted}
    assert len(images) == len(wanted)  # negative control: they differ


def test_stopped_by_a_signal_it_leaves_no_half_of_a_set(tmp_path, trained):
    out = tmp_path / "out"
    (process,) = start(trained, out, 1, "--num=100000")
    give_up = time.monotonic() + PATIENCE_S
    try:
        # Rows are being written: the hidden folder is there.
        while not any(path.is_dir() for path in tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == preemption.EXIT_CODE and "start the same" in said
    assert time.monotonic() - sent < 15.0  # as for a training
    assert not list(tmp_path.iterdir())
