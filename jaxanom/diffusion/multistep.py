"""Second-order multistep sampling: DPM-Solver++(2M), arXiv 2211.01095, Algorithm 2.

In u = latents / sqrt(alpha) the network's guess at the clean latents is
D = u - sigma * noise_pred, and with h = log(sigma_from / sigma_to) the paper's move is

    u_to = (sigma_to / sigma_from) u_from + (1 - sigma_to / sigma_from) D',
    D' = D + h / (2 h_before) (D - D_before).

With D' = D that is `ddim.scaled_move`: the second order adds a share of D's last change
to a DDIM move, and costs no call of the network.
"""

import jax.numpy as jnp

from jaxanom.diffusion.schedules import Table
from jaxanom.types import Array


def change_weights(table: Table) -> Array:
    """Returns how much of the last change of D each move adds, [S] float32.

    (1 - sigma_to / sigma_from) h / (2 h_before). It is 0, which leaves DDIM's first
    order, on the first move, before which nothing changed, and on the last: where that
    ends at sigma = 0, h is infinite. One move of first order at each end leaves the
    walk's error of second order.

    Args:
      table: One of `schedules.sampling_table`, S rows, on the host or traced.
    """
    sigma_from, sigma_to = jnp.asarray(table.sigma_from), jnp.asarray(table.sigma_to)
    ratio = sigma_to / sigma_from
    h = -jnp.log(ratio)
    weights = (1 - ratio[1:-1]) * h[1:-1] / (2 * h[:-2])
    # Two levels of one alpha are no move: nothing to extrapolate from.
    weights = jnp.where(jnp.isfinite(weights), weights, 0.0)
    return jnp.zeros_like(h).at[1:-1].set(weights)


def clean(scaled: Array, noise_pred: Array, sigma: Array) -> Array:
    """Returns D = u - sigma * noise_pred [B, h, w, C], the guess at clean latents."""
    return scaled - sigma * noise_pred.astype(jnp.float32)
