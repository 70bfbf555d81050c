"""Classifier-free guidance around a noise function (arXiv 2207.12598)."""

from collections.abc import Callable

import jax.numpy as jnp

from jaxanom.diffusion.inversion import NoisePairFn
from jaxanom.types import Array, NoiseFn


def guide(
    noise_pred: Array, null_noise_pred: Array, guidance_scale: float | Array
) -> Array:
    """Returns e_u + w (e_c - e_u), float32; w = 1 gives e_c up to rounding."""
    noise_pred = noise_pred.astype(jnp.float32)
    null_noise_pred = null_noise_pred.astype(jnp.float32)
    return null_noise_pred + guidance_scale * (noise_pred - null_noise_pred)


def classifier_free(
    noise_fn: Callable[[Array, Array, Array], Array],
    context: Array,
    null_context: Array,
    guidance_scale: float | Array = 1.0,
) -> NoiseFn:
    """Binds contexts to a noise function and guides it, as one call on 2B rows.

    Args:
      noise_fn: (latents [B, h, w, C], timesteps [B], context [B, L, D]) -> noise_pred.
      context, null_context: [B, L, D].
      guidance_scale: A Python float, of which 1.0 means no guidance and calls B rows
        only; or [B], a scale for every row.

    Returns:
      (latents, timesteps) -> noise_pred.
    """
    if isinstance(guidance_scale, float | int):
        if guidance_scale == 1.0:
            return lambda latents, timesteps: noise_fn(latents, timesteps, context)
    else:
        guidance_scale = guidance_scale[:, None, None, None]
    both = jnp.concatenate([context, null_context])  # [2B, L, D]

    def guided(latents: Array, timesteps: Array) -> Array:
        stacked = jnp.concatenate([latents, latents])  # [2B, h, w, C]
        noise_pred = noise_fn(stacked, jnp.concatenate([timesteps, timesteps]), both)
        return guide(*jnp.split(noise_pred, 2), guidance_scale)

    return guided


def defect_only(
    noise_pair_fn: NoisePairFn, null_noise_fn: NoiseFn, guidance_scale: float = 1.0
) -> NoisePairFn:
    """Guides the defect's prediction and leaves the background's alone.

    Guidance on the background term, or in the inversion, would break the background's
    reconstruction; arXiv 2411.16767 shows no guidance at all (`guidance_scale` = 1).

    Args:
      noise_pair_fn: As `inversion.compose_sample` takes it.
      null_noise_fn: The defect branch with its defect tokens replaced by the hole's; it
        costs B rows more per step.
      guidance_scale: A Python float.
    """
    if guidance_scale == 1.0:
        return noise_pair_fn

    def guided(
        latents: Array, background_latents: Array | None, timesteps: Array
    ) -> tuple[Array, Array | None]:
        defect, background = noise_pair_fn(latents, background_latents, timesteps)
        null = null_noise_fn(latents, timesteps)
        return guide(defect, null, guidance_scale), background

    return guided
