"""New defects on given normal images, arXiv 2411.16767 Algorithm 1 lines 6-9."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.diffusion import guidance, inversion, refinement, schedules
from jaxanom.errors import UserError
from jaxanom.methods.defect_generation import model, objective
from jaxanom.methods.defect_generation.options import Generation, Training
from jaxanom.models.latent import noise_schedule
from jaxanom.types import Array, Batch, Frozen, Params, PRNGKey


def generator(
    autoencoder,
    unet_apply: Callable,
    read_params: Callable,
    schedule: noise_schedule.NoiseSchedule,
    generation: Generation,
    training: Training,
    grids: tuple,
) -> Callable[[Params, Frozen, Batch, PRNGKey], dict[str, Array]]:
    """Makes the jittable function from normal images and masks to defects.

    An inversion depends on the image, its mask and its category, and on no seed or
    defect: K defects on one image under one mask share it, and the decoded reference.

    Args:
      autoencoder: Module with `encode` and `decode`; its weights are frozen["vae"].
      unet_apply, read_params, grids: See `objective.loss_fn`.
      schedule: The checkpoint's noise levels, and where a walk ends.
      generation: How a defect is drawn.
      training: How the UNet was trained; both loops must prompt it the same way.

    Returns:
      (params, frozen, batch, key) -> arrays. The batch holds `image` [B, H, W, 3], the
      requested `mask` [B, H, W] and `category_id` [B] int32, and `defect_id` and `seed`
      [B] or [B, K] int32. With eta = 0 a row is a function of its own image, mask,
      prompt and seed alone. The result has N = B K rows, those of an image together:
      `image` and `reference` (the same pipeline without a defect) [N, H, W, 3] in
      [0, 1]; `normal`, `inverted` and `latents` [N, h, w, C]; `change` [N, H, W] in
      [0, 1]; and `mask` [N, H, W], not yet freed of specks.
    """
    upward, downward = _tables(schedule, generation)
    replay = generation.background == "replay" or generation.start == "noise"

    def generate(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKey
    ) -> dict[str, Array]:
        variables = {"params": frozen["vae"]}
        count = _count_per_image(batch)
        spread = functools.partial(jnp.repeat, repeats=count, axis=0)
        encoded = autoencoder.apply(variables, batch["image"], method="encode").mean
        grid = encoded.shape[1:3]
        prompt = model.prompted(
            model.Contexts(**frozen["contexts"]),
            spread(model.pool_mask(batch["mask"], grid, training.latent_pooling)),
            batch["defect_id"].reshape(-1),
            spread(batch["category_id"]),
            training,
            grids,
        )
        weights = read_params(params, frozen)
        network = unet_apply, weights, prompt, training.hide_background
        normal = spread(encoded)
        key_start, key_eta = jax.random.split(key)
        noise = _row_noise(key_start, batch["seed"].reshape(-1), normal.shape[1:])
        if generation.start == "inversion":
            # What the background's branch is told is the same for all of an image.
            once = jax.tree.map(lambda rows: rows[::count], prompt)
            inverted, trajectory = inversion.masked_invert(
                objective.background_noise(unet_apply, weights, once),
                encoded,
                once.mask,
                upward,
                generation.fixed_point_iterations,
                keep_trajectory=replay,
            )
            inverted = spread(inverted)
            trajectory = jnp.repeat(trajectory, count, axis=1) if replay else None
        else:
            inverted, trajectory = _noised(normal, noise, prompt.mask, upward)
        defect_fn = objective.defect_noise(*network)
        latents = inversion.compose_sample(
            guidance.defect_only(
                objective.pair_noise(*network),
                lambda latents, timesteps: defect_fn(latents, timesteps, prompt.null),
                generation.guidance_scale,
            ),
            inversion.start_latents(inverted, prompt.mask, noise),
            prompt.mask,
            downward,
            trajectory,
            generation.eta,
            key_eta if generation.eta else None,
            generation.solver,
        )
        # The same background with the normal content inside: what the autoencoder and
        # the inversion do to the image cancels in the difference.
        unchanged = jnp.where(prompt.mask > 0.5, normal, latents)[::count]
        decoded = autoencoder.apply(
            variables, jnp.concatenate([latents, unchanged]), method="decode"
        )
        image, reference = jnp.split(decoded, [len(latents)])
        reference, mask = spread(reference), spread(batch["mask"])
        if generation.refine:
            dilation = batch["image"].shape[1] // grid[0]
            mask, _ = refinement.changed(
                image,
                reference,
                mask,
                generation.change_floor,
                dilation,
                generation.otsu,
            )
        if generation.paste:
            image = jnp.where(mask[..., None] > 0.5, image, spread(batch["image"]))
        return {
            "image": image,
            "reference": reference,
            "change": refinement.difference(image, reference),
            "mask": mask.astype(jnp.float32),
            "normal": normal,
            "inverted": inverted,
            "latents": latents,
        }

    return generate


def _count_per_image(batch: Batch) -> int:
    """Returns K of `seed` and `defect_id`, [B] for K = 1 or [B, K]."""
    seeds, defects = batch["seed"].shape, batch["defect_id"].shape
    if seeds != defects or seeds[:1] != batch["image"].shape[:1] or len(seeds) > 2:
        raise UserError(
            f"{len(batch['image'])} images with seed of shape {seeds} and defect_id of "
            f"shape {defects}; wanted one shape, a row for each image: [B] or [B, K]"
        )
    return math.prod(seeds[1:])


def _tables(
    schedule: noise_schedule.NoiseSchedule, generation: Generation
) -> tuple[schedules.Table, schedules.Table]:
    """Returns the moves up and down the same levels."""
    alphas, num_steps = schedule.alphas_cumprod, generation.num_steps
    if generation.spacing == "checkpoint":
        levels = schedule.levels(num_steps)
    elif generation.spacing == "log_snr":
        levels = schedules.log_snr_levels(alphas, num_steps)
    else:
        levels = schedules.levels(len(alphas), num_steps, generation.spacing)
    last = schedule.final_alpha
    up = schedules.inversion_table(alphas, levels, generation.inversion_time, last)
    return up, schedules.sampling_table(alphas, levels, last)


def _row_noise(key: PRNGKey, seeds: Array, shape: tuple[int, ...]) -> Array:
    """Draws [B, ...] noise, each row from its own seed."""
    keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(seeds)
    return jax.vmap(lambda row_key: jax.random.normal(row_key, shape))(keys)


def _noised(
    normal: Array, noise: Array, mask: Array, table: schedules.Table
) -> tuple[Array, Array]:
    """Noises the background at every level instead of inverting it.

    Row 0 of the trajectory is the clean background, as `inversion.masked_invert` has
    it, also where the lowest level is not free of noise.
    """
    alphas = table.alpha_to[:, None, None, None, None]
    hidden = inversion.hide_defect(normal, mask)
    fresh = inversion.hide_defect(noise, mask)
    noised = np.sqrt(alphas) * hidden + np.sqrt(1 - alphas) * fresh
    return noised[-1], jnp.concatenate([hidden[None], noised])
