"""The background/defect regulariser of arXiv 2411.16767, Eq. 5.

    L = E || m * (eps - e(z_t, t, C1)) ||^2           matching
      + E || (1 - m) * (eps - e(z_t^m, t, C2)) ||^2   background ("disentanglement")

with z_t^m = (1 - m) * z_t, the same noise in both terms, and no weight between them.
What the first prediction does outside m, and the second inside, is not supervised.
Masks are [B, h, w, 1] at the latents' resolution and select by `mask > 0.5`: for a soft
mask the sum above is no longer || eps - m * e_1 - (1 - m) * e_2 ||^2.
"""

import chex
import jax.numpy as jnp

from jaxanom.losses import denoising
from jaxanom.types import Array, Metrics


def loss(
    noise: Array,
    noise_pred_defect: Array,
    noise_pred_background: Array,
    mask: Array,
    area_balanced: bool = False,
    background_weight: float = 1.0,
    weights: Array | None = None,
) -> tuple[Array, Metrics]:
    """Eq. 5: both terms, each a mean over all h*w*C elements.

    Args:
      noise: [B, h, w, C], the draw shared by z_t and z_t^m.
      noise_pred_defect: [B, h, w, C], e(z_t, t, C1).
      noise_pred_background: [B, h, w, C], e(z_t^m, t, C2).
      mask: [B, h, w, 1], binary, 1 = defect.
      area_balanced: Makes each term a mean over its own elements instead.
      background_weight: 1 in the paper; 0 trains without the regulariser, an ablation.
      weights: [B], per-timestep weights of both terms.

    Returns:
      (float32 scalar, {"matching", "background"}), both terms unweighted.
    """
    inside = mask > 0.5
    matching = denoising.regression(
        noise, noise_pred_defect, inside, area_balanced, weights
    )
    background = denoising.regression(
        noise, noise_pred_background, ~inside, area_balanced, weights
    )
    total = matching + background_weight * background
    return total, {"matching": matching, "background": background}


def gap(noise_pred_defect: Array, noise_pred_background: Array, mask: Array) -> Array:
    """Returns g = mean |(1 - m) * (e_1 - e_2)|, a diagnostic.

    How far the two branches disagree about the background. Eq. 5 does not drive it to
    zero, so log it and do not gate on it.
    """
    chex.assert_equal_shape([noise_pred_defect, noise_pred_background])
    apart = noise_pred_defect.astype(jnp.float32) - noise_pred_background
    apart = jnp.where(mask > 0.5, 0.0, jnp.abs(apart))
    return jnp.mean(jnp.mean(apart, (1, 2, 3)))
