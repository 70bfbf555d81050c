"""The background/defect regulariser of arXiv 2411.16767, Eq. 5.

    L = E || m * (eps - e(z_t, t, C1)) ||^2           matching
      + E || (1 - m) * (eps - e(z_t^m, t, C2)) ||^2   background ("disentanglement")

with z_t^m = (1 - m) * z_t, the same noise in both terms, and no weight between them.
The two predictions come from one network call on 2B rows (`stack_inputs`,
`split_rows`). What the first prediction does outside m, and the second inside, is not
supervised. Masks are [B, h, w, 1] at the latents' resolution and select by `mask >
0.5`: for a soft mask the sum above is no longer || eps - m * e_1 - (1 - m) * e_2 ||^2.
"""

import chex
import jax.numpy as jnp

from jaxanom.losses import denoising
from jaxanom.types import Array, Metrics


def stack_inputs(noised_latents: Array, mask: Array, hide_defect: bool = True) -> Array:
    """Returns [z_t; z_t^m], the 2B rows of one network call: defect rows first.

    Args:
      noised_latents: [B, h, w, C], z_t.
      mask: [B, h, w, 1], binary.
      hide_defect: False feeds z_t to the background rows too, an ablation.
    """
    chex.assert_shape(mask, (*noised_latents.shape[:-1], 1))
    seen = noised_latents
    if hide_defect:
        seen = jnp.where(mask > 0.5, 0.0, noised_latents)
    return jnp.concatenate([noised_latents, seen])  # [2B, h, w, C]


def split_rows(noise_pred: Array) -> tuple[Array, Array]:
    """Returns the (defect, background) halves of a prediction on `stack_inputs`."""
    defect, background = jnp.split(noise_pred, 2)
    return defect, background


def loss(
    noise: Array,
    noise_pred_defect: Array,
    noise_pred_background: Array,
    mask: Array,
    area_balanced: bool = False,
    background_weight: float = 1.0,
    weights: Array | None = None,
    valid: Array | None = None,
) -> tuple[Array, Metrics]:
    """Eq. 5: both terms, each a mean over all h*w*C elements.

    Args:
      noise: [B, h, w, C], the draw shared by z_t and z_t^m.
      noise_pred_defect: [B, h, w, C], e(z_t, t, C1).
      noise_pred_background: [B, h, w, C], e(z_t^m, t, C2).
      mask: [B, h, w, 1], binary, 1 = defect.
      area_balanced: each term a mean over its own elements instead.
      background_weight: 1 in the paper; 0 trains without the regulariser, an ablation.
      weights: [B], per-timestep weights of both terms.
      valid: [B] bool, False on padding rows.

    Returns:
      (float32 scalar, {"matching", "background"}), both terms unweighted.
    """
    inside = mask > 0.5
    matching = denoising.masked_regression(
        noise, noise_pred_defect, inside, area_balanced, weights, valid
    )
    background = denoising.masked_regression(
        noise, noise_pred_background, ~inside, area_balanced, weights, valid
    )
    total = matching + background_weight * background
    return total, {"matching": matching, "background": background}


def gap(
    noise_pred_defect: Array,
    noise_pred_background: Array,
    mask: Array,
    valid: Array | None = None,
) -> Array:
    """Returns g = mean |(1 - m) * (e_1 - e_2)|, a diagnostic.

    How far the two branches disagree about the background. Eq. 5 does not drive it to
    zero, so log it and do not gate on it.
    """
    chex.assert_equal_shape([noise_pred_defect, noise_pred_background])
    apart = noise_pred_defect.astype(jnp.float32) - noise_pred_background
    apart = jnp.where(mask > 0.5, 0.0, jnp.abs(apart))
    return denoising.row_mean(jnp.mean(apart, (1, 2, 3)), valid)
