"""Densities with known answers, and walks towards them."""

from typing import NamedTuple

import jax
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


def trajectory(velocity_fn, field_state, integrator, particles, num_steps, noise=None):
    """Walks `num_steps` in one scan.

    Args:
      velocity_fn: (where [P, D], state) -> (velocity [P, D], state, info).
      field_state: Its first state.
      integrator: What makes moves of velocities.
      particles: [P, D] at the start.
      num_steps: How many steps to take.
      noise: [num_steps, P, D] for integrators that take some.

    Returns:
      (particles after every step [num_steps, P, D], stacked (velocity, info)).
    """

    def body(carry, noise_row):
        state, of_field = carry
        velocity, of_field, info = velocity_fn(state.at, of_field)
        state = integrator.step(state, velocity, noise_row)
        return (state, of_field), (state.particles, (velocity, info))

    start = (integrator.init(particles), field_state)
    _, (walked, reported) = jax.lax.scan(body, start, noise, length=num_steps)
    return walked, reported
