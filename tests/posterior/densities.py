"""Densities with known answers."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Gaussian(NamedTuple):
    """N(mean, precision^-1); not symmetric about the origin, or sign errors pass."""

    mean: np.ndarray
    precision: np.ndarray

    def grad_log_p(self, x):
        return -(x - self.mean) @ self.precision

    @property
    def covariance(self):
        return np.linalg.inv(self.precision)


def starts(num_particles, width, seed=0, spread=1.0):
    """[P, D] normal draws."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(spread * rng.normal(size=(num_particles, width)))
