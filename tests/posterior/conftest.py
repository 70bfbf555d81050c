"""Makes the densities of this folder importable by name; float64 where digits count."""

import contextlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from densities import Gaussian


@contextlib.contextmanager
def double():
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture
def float64():
    with double():
        yield


@pytest.fixture
def gaussian():
    return Gaussian(
        np.array([1.0, -0.5, 2.0]),
        np.array([[1.5, 0.4, 0.0], [0.4, 1.0, -0.2], [0.0, -0.2, 0.7]]),
    )
