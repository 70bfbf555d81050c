"""Training images that are encoded once, by several processes on one machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import encoding_process
import numpy as np
import pytest

import jaxanom
from jaxanom import record
from jaxanom.parallel import distributed

PATIENCE_S = 400  # a machine shared with others may take long to import jax


def encoded_by_two(config, directory):
    """Returns the first batch of each of two processes with a device each."""
    record.write_json(directory / record.CONFIG, record.plain(config))
    root = str(Path(jaxanom.__file__).parents[1])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        distributed.ADDRESS: address,
        distributed.COUNT: "2",
    }
    words = [sys.executable, encoding_process.__file__]
    words += [str(directory / record.CONFIG), str(directory)]
    started = [
        subprocess.Popen(
            words,
            env=env | {distributed.NUMBER: str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE_S)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], said[0][-2000:]
    batches = []
    for number in range(2):
        with np.load(directory / f"{number}.npz") as file:
            batches.append(dict(file))
    return batches


@pytest.mark.parametrize(
    "axis", ["fsdp", pytest.param("model", marks=pytest.mark.slow)]
)
def test_each_process_encodes_its_rows_for_itself(generation_config, tmp_path, axis):
    split = {"mesh__data": 1, f"mesh__{axis}": 2}
    parts = encoded_by_two(generation_config(**split), tmp_path)
    config = generation_config()
    whole = encoding_process.first_batch(config)
    assert len(whole["latents"]) == config.data.batch_size
    for name, value in whole.items():
        rows = [part[name] for part in parts]
        # Weights that are split over `model` leave every row to every process.
        for found in [np.concatenate(rows)] if axis == "fsdp" else rows:
            # The same program on one device, whoever owns it.
            np.testing.assert_array_equal(found, value)
