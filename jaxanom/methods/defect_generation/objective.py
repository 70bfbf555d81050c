"""The disentanglement loss, arXiv 2411.16767 Eqs. 5-7, as a trainer's loss function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.contracts import LossFn
from jaxanom.diffusion import inversion, targets
from jaxanom.losses import disentanglement
from jaxanom.methods.defect_generation import model, placement
from jaxanom.methods.defect_generation.options import Training
from jaxanom.types import Array, Batch, Frozen, Metrics, Params, PRNGKey


def defect_noise(
    unet_apply: Callable, params: Params, prompt: model.Prompted, hide_background: bool
) -> Callable[..., Array]:
    """Returns the defect branch, (latents, timesteps, context=C1) -> noise_pred."""

    def noise_fn(latents, timesteps, context=prompt.defect):
        if hide_background:
            latents = jnp.where(prompt.mask > 0.5, latents, 0.0)
        return unet_apply(params, latents, timesteps, context, prompt.bias)

    return noise_fn


def background_noise(
    unet_apply: Callable, params: Params, prompt: model.Prompted
) -> Callable[[Array, Array], Array]:
    """Returns the background branch; its caller has cut the defect out."""

    def noise_fn(latents, timesteps):
        return unet_apply(params, latents, timesteps, prompt.background, prompt.bias)

    return noise_fn


def pair_noise(
    unet_apply: Callable, params: Params, prompt: model.Prompted, hide_background: bool
) -> inversion.NoisePairFn:
    """Returns both branches of Eq. 5 as ONE network call on 2B rows.

    GroupNorm and attention are per row, so stacking does not mix the branches. With the
    background None (replayed), only the defect's B rows are run.
    """
    alone = defect_noise(unet_apply, params, prompt, hide_background)

    def noise_fn(latents, background, timesteps):
        if background is None:
            return alone(latents, timesteps), None
        if hide_background:
            latents = jnp.where(prompt.mask > 0.5, latents, 0.0)
        double = lambda array: jnp.concatenate([array, array])  # noqa: E731
        noise_pred = unet_apply(
            params,
            jnp.concatenate([latents, background]),
            double(timesteps),
            jnp.concatenate([prompt.defect, prompt.background]),
            jax.tree.map(double, prompt.bias),
        )
        return tuple(jnp.split(noise_pred, 2))

    return noise_fn


def loss_fn(
    unet_apply: Callable,
    read_params: Callable,
    alphas_cumprod: np.ndarray,
    training: Training,
    grids: tuple,
    is_velocity: bool = False,
) -> LossFn:
    """Makes the loss over cached latents.

    Batches hold `latents` [B, h, w, C], `latent_mask` [B, h, w], `label`, `defect_id`
    and `category_id`; `frozen` holds `contexts` and `latent_bank` [M, h, w].

    Args:
      unet_apply: (params, latents, timesteps, context, context_bias) -> noise_pred.
      read_params: (params, frozen) -> the UNet's parameter tree (merges LoRA updates).
      alphas_cumprod: [T] float64, on the host.
      training, grids: See `model.prompted`.
      is_velocity: Regresses the velocity, as a network made to predict it was trained;
        `unet_apply` returns the noise its estimate implies either way.
    """

    def loss(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKey
    ) -> tuple[Array, Metrics]:
        key_mask, key_noise, key_timestep = jax.random.split(key, 3)
        latents, label = batch["latents"], batch["label"]
        rows = latents.shape[0]
        drawn = placement.draw_masks(frozen["latent_bank"], rows, key_mask)
        mask = jnp.where(label[:, None, None] > 0, batch["latent_mask"], drawn)
        contexts = model.Contexts(**frozen["contexts"])
        defect_id = batch["defect_id"]
        if training.refusal_share:
            key_refusal = jax.random.fold_in(key, 1)
            of_normals = refused(contexts, defect_id, training, key_refusal)
            defect_id = jnp.where(label > 0, defect_id, of_normals)
        prompt = model.prompted(
            contexts, mask, defect_id, batch["category_id"], training, grids
        )
        noise = jax.random.normal(key_noise, latents.shape)
        timesteps = targets.draw_timesteps(key_timestep, rows, len(alphas_cumprod))
        noisy = targets.add_noise(latents, noise, timesteps, alphas_cumprod)
        weights = None
        if is_velocity:
            weights = targets.velocity_weights(timesteps, alphas_cumprod)
        background = noisy
        if training.background_input == "masked":
            background = inversion.hide_defect(noisy, prompt.mask)
        noise_fn = pair_noise(
            unet_apply, read_params(params, frozen), prompt, training.hide_background
        )
        predictions = noise_fn(noisy, background, timesteps)
        value, parts = disentanglement.loss(
            noise,
            *predictions,
            prompt.mask,
            area_balanced=training.area_balanced,
            background_weight=training.background_weight,
            weights=weights,
        )
        gap = disentanglement.gap(*predictions, prompt.mask)
        return value, {**parts, "gap": gap}

    return loss


def refused(
    contexts: model.Contexts, defect_id: Array, training: Training, key: PRNGKey
) -> Array:
    """Returns [B] ids: a defect's with probability `refusal_share`, else unchanged."""
    key_share, key_defect = jax.random.split(key)
    rows = defect_id.shape
    drawn = jax.random.randint(key_defect, rows, 1, len(contexts.defect))
    share = training.refusal_share
    return jnp.where(jax.random.uniform(key_share, rows) < share, drawn, defect_id)
