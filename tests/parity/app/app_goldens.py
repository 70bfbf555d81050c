"""Golden arrays of APP, of its SVGD and SGLD steps, and of the particle flows.

Outputs of released code on a tiny random CLIP: `youngjae-cho/APP`, Dassl's optimiser,
the Liu & Wang script, `chang-ml-thu/AWGF`. `JAXANOM_PARITY_DIR` names a directory with
other sets of the same format (its subfolder `app`); sizes and settings are all read
from the files, and a set may lack some.
"""

import contextlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.app import base
from jaxanom.methods.app import options

SHIPPED = Path(__file__).resolve().parents[1] / "data"


def directory() -> Path:
    return Path(os.environ.get("JAXANOM_PARITY_DIR") or SHIPPED) / "app"


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of one file; the test is skipped where the set lacks it."""
    path = directory() / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"this set has no {path.name}")
    with np.load(path) as file:
        return dict(file)


def names_in(name: str) -> list[str]:
    """Keys of a file, for collecting; none where the set lacks it."""
    path = directory() / f"{name}.npz"
    if not path.is_file():
        return []
    with np.load(path) as file:
        return list(file.files)


def prior(**changes) -> options.Prior:
    """The prior's options, the recipes' defaults but for `changes`."""
    return options.read(base.config().app).prior._replace(**changes)


def answers(**changes) -> options.Predict:
    """The prediction's options, the recipes' defaults but for `changes`."""
    return options.read(base.config().app).predict._replace(**changes)


def settings() -> dict:
    return json.loads(str(load("prompt_learner_init")["config_json"]))


def wanted(arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    """An array, by its float64 twin where there is one."""
    if key not in arrays and f"{key}_f64" not in arrays:
        pytest.skip(f"this set has no {key}")
    return arrays.get(f"{key}_f64", arrays.get(key))


def part(arrays: dict[str, np.ndarray], prefix: str, precise: bool) -> dict:
    """{rest of the name: array} below a prefix, float64 twins if `precise`."""
    ending = "_f64" if precise else ""
    return {
        key[len(prefix) :].removesuffix("_f64"): value
        for key, value in arrays.items()
        if key.startswith(prefix) and key.endswith("_f64") == bool(ending)
    }


@contextlib.contextmanager
def precision(precise: bool):
    """float64 inside if `precise`."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", precise)
    try:
        yield np.float64 if precise else np.float32
    finally:
        jax.config.update("jax_enable_x64", before)


def assert_near(found, golden, precise: bool, single: float, double: float = 1e-10):
    """Compares on the scale of the array's largest magnitude, as the README does.

    An array that the set holds in float32 alone is known to that precision only.
    """
    precise = precise and np.asarray(golden).dtype == np.float64
    golden = np.asarray(golden, np.float64)
    found = np.asarray(found, np.float64)
    assert found.shape == golden.shape
    scale = max(np.abs(golden).max(), np.finfo(np.float32).tiny)
    gap = np.abs(found - golden).max() / scale
    limit = double if precise else single
    assert gap <= limit, f"largest gap {gap:.2e} of the scale, allowed {limit:.0e}"


def assert_within(found, golden, limit: float):
    """Compares absolutely."""
    np.testing.assert_allclose(found, golden, rtol=0, atol=limit)
