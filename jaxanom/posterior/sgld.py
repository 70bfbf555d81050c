"""Langevin samplers: gradient steps with injected noise.

Each takes the noise as an array, so that tests and parity inject it; `draw` makes it
the same wherever the particles live.
"""

import chex
import jax
import jax.numpy as jnp

from jaxanom.types import Array, PRNGKey


def draw(key: PRNGKey, step: Array, rows: Array, width: int, dtype: str) -> Array:
    """Draws standard normals [n, D]; row i depends on (key, step, i) alone.

    Args:
      key: The run's key.
      step: int32.
      rows: [n] int32, numbers of the particles.
      width: D.
      dtype: What the draws come in.
    """
    of_step = jax.random.fold_in(key, step)

    def row(number: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(of_step, number), (width,), dtype)

    return jax.vmap(row)(rows)


def step_size(step: Array, scale: float, offset: float = 1.0, decay: float = 0.55):
    """eps_k = a (b + k)^(-gamma) (Welling & Teh 2011); gamma in (0.5, 1], 0 constant.

    Args:
      step: int32 k, from 0.
      scale: a.
      offset: b > 0.
      decay: gamma.
    """
    return scale * (offset + jnp.asarray(step, float)) ** (-decay)


def sgld_move(
    grad_log_p: Array, step_size: Array, noise: Array, temperature: float = 1.0
) -> Array:
    """Returns the move (eps/2) grad log p + sqrt(eps T) xi (Welling & Teh 2011, eq. 4).

    Args:
      grad_log_p: [P, D], the whole posterior's: prior plus n/b times the batch.
      step_size: eps.
      noise: [P, D] standard normal.
      temperature: T, a factor of the noise's variance.
    """
    chex.assert_equal_shape([grad_log_p, noise])
    return step_size / 2 * grad_log_p + jnp.sqrt(step_size * temperature) * noise


def langevin_move(
    grad_log_p: Array, step_size: Array, noise: Array, temperature: float = 1.0
) -> Array:
    """Returns eps grad log p + sqrt(2 eps T) xi: `sgld_move` at twice the step."""
    return sgld_move(grad_log_p, 2 * step_size, noise, temperature)


def psgld_move(
    squares: Array,
    grad_log_p: Array,
    step_size: Array,
    noise: Array,
    temperature: float = 1.0,
    decay: float = 0.99,
    damping: float = 1e-5,
) -> tuple[Array, Array]:
    """RMS-preconditioned SGLD without the Gamma term (arXiv 1512.07666, Algorithm 1).

    Args:
      squares: [P, D] running mean V of squared gradients; zeros before the first step.
      grad_log_p, step_size, noise, temperature: As in `sgld_move`.
      decay: a, the share that V keeps of itself.
      damping: lambda, added to the square root of V.

    Returns:
      (move [P, D], new V).
    """
    squares = decay * squares + (1 - decay) * grad_log_p**2
    scale = 1 / (damping + jnp.sqrt(squares))
    spread = jnp.sqrt(step_size * temperature * scale)
    return step_size / 2 * scale * grad_log_p + spread * noise, squares
