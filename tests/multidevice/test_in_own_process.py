"""Runs the `sharded_*.py` files of this folder on eight simulated devices.

The number of devices is fixed when jax starts, so each file gets its own process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxanom

FOLDER = Path(__file__).parent
NUM_DEVICES = 8


def programs():
    """All of them; the four methods' takes minutes and is marked slow."""
    names = sorted(path.name for path in FOLDER.glob("sharded_*.py"))
    long = {"sharded_methods.py": pytest.mark.slow}
    return [pytest.param(name, marks=long.get(name, ())) for name in names]


@pytest.mark.parametrize("name", programs())
def test_on_eight_simulated_devices(name):
    run_in_own_process(name, "not slow")


@pytest.mark.slow
def test_fifty_steps_of_every_method_on_eight_simulated_devices():
    run_in_own_process("sharded_methods.py", "slow")


def run_in_own_process(name, which):
    root = Path(jaxanom.__file__).parents[1]
    flags = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-m", which]
    found = subprocess.run(
        [*command, str(FOLDER / name)],
        env=env,
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr}"
