"""DDIM from any noise level down, each row of a batch from its own level.

The tables are those of `diffusion/schedules.py`, one a level, stacked; a row picks its
table, so one compiled program serves all levels.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.diffusion import ddim, guidance, schedules
from jaxanom.diffusion.schedules import Table
from jaxanom.errors import UserError
from jaxanom.types import Array


def tables(alphas_cumprod: np.ndarray, starts: Sequence[int], num_steps: int) -> Table:
    """Returns the moves from each start level to clean latents, leaves [M, S].

    Args:
      alphas_cumprod: [T] float64.
      starts: training indices, each 0 or at least `num_steps`; 0 stands still.
      num_steps: S, the same for all.

    Raises:
      UserError: a level that does not exist or has no room for S moves.
    """
    levels_of = []
    for start in starts:
        if start and not num_steps <= start < len(alphas_cumprod):
            raise UserError(
                f"noise level {start} with {num_steps} steps: wanted 0, or {num_steps} "
                f"to {len(alphas_cumprod) - 1}; take fewer steps"
            )
        if start:
            levels = np.linspace(0, start, num_steps + 1).round().astype(np.int32)
            levels_of.append(schedules.sampling_table(alphas_cumprod, levels))
        else:
            ones, zeros = np.ones(num_steps, np.float32), np.zeros(num_steps, np.int32)
            still = zeros.astype(np.float32)
            levels_of.append(Table(zeros, ones, ones, still, still, zeros))
    return Table(*(np.stack(column) for column in zip(*levels_of, strict=True)))


def rows(table: Table, which: Array) -> Table:
    """Picks each row's table: leaves [M, S], which [B] -> leaves [S, B]."""
    return Table(*(jnp.asarray(column)[which].T for column in table))


def denoise(
    noise_fn: Callable[[Array, Array], Array],
    latents: Array,
    noise: Array,
    table: Table,
    mask: Array | None = None,
) -> Array:
    """Noises latents to each row's first level and walks back.

    With a mask only its inside is drawn anew: outside, every level holds the noised
    original, so that both sides agree at the seam (arXiv 2108.01073, section 3).

    Args:
      noise_fn: (latents, timesteps [B]) -> noise_pred.
      latents, noise: [B, h, w, C].
      table: leaves [S, B], of `rows`.
      mask: [B, h, w, 1] binary, or None for all.

    Returns:
      [B, h, w, C] float32 clean latents; outside the mask `latents` themselves.
    """

    def wide(column: Array) -> Array:
        return column[:, None, None, None]

    def step(scaled, row):
        seen = ddim.unscale(scaled, wide(row.alpha_from))
        noise_pred = noise_fn(seen, row.timesteps)
        moved = ddim.scaled_move(
            scaled, noise_pred, wide(row.sigma_from), wide(row.sigma_to)
        )
        if mask is not None:
            moved = jnp.where(mask > 0.5, moved, latents + wide(row.sigma_to) * noise)
        return moved, None

    begin = latents + wide(table.sigma_from[0]) * noise
    scaled, _ = jax.lax.scan(step, begin, table)
    return ddim.unscale(scaled, wide(table.alpha_to[-1]))


def guided(
    noise_fn: Callable[[Array, Array, Array], Array],
    context: Array,
    null_context: Array,
    scale: Array,
) -> Callable[[Array, Array], Array]:
    """Classifier-free guidance with a scale of its own for every row, [B].

    Args:
      noise_fn: (latents, timesteps, context) -> noise_pred.
      context, null_context: [B, L, D].
      scale: [B]; 1 is no guidance, at the cost of guidance.
    """
    both = jnp.concatenate([context, null_context])

    def call(latents, timesteps):
        noise_pred = noise_fn(
            jnp.concatenate([latents, latents]),
            jnp.concatenate([timesteps, timesteps]),
            both,
        )
        return guidance.guide(*jnp.split(noise_pred, 2), scale[:, None, None, None])

    return call


def paired(
    noise_fn: Callable[[Array, Array], Array], share: Array
) -> Callable[[Array, Array], Array]:
    """Classifier-free guidance where it is wanted, at the cost of those rows alone.

    Rows 2n and 2n + 1 are a pair. Each goes by its share of its own prediction and the
    rest of the other's: with shares w and 1 - w, one caption and the empty one, both
    hold the guided walk. A row with share 1 is unguided and alone.

    Args:
      noise_fn: (latents, timesteps) -> noise_pred [B, h, w, C], B even.
      share: [B].
    """
    own = share[:, None, None, None]

    def call(latents, timesteps):
        noise_pred = noise_fn(latents, timesteps)
        pairs = noise_pred.reshape(-1, 2, *noise_pred.shape[1:])
        others = pairs[:, ::-1].reshape(noise_pred.shape)
        return own * noise_pred + (1 - own) * others

    return call
