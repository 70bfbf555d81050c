"""New defects on given normal images, arXiv 2411.16767 Algorithm 1 lines 6-9."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.data import catalog
from jaxanom.diffusion import guidance, inversion, refinement, schedules
from jaxanom.errors import UserError
from jaxanom.methods.defect_generation import model, objective
from jaxanom.models.latent import noise_schedule
from jaxanom.types import Array, Batch, Frozen, Params, PRNGKey

STARTS = ("inversion", "noise")
SPACINGS = ("checkpoint", *schedules.SPACINGS, "log_snr")


class Options(NamedTuple):
    """How a defect is drawn; the defaults are the paper's reading.

    Attributes:
      num_steps: S, moves of the inversion and of the sampling.
      spacing: how the S levels lie on the training grid: as the checkpoint's scheduler
        lays them, a name of `schedules.levels`, or "log_snr" (for few moves).
      inversion_time: which timestep feeds the network while inverting.
      fixed_point_iterations: extra network calls per inversion move.
      background: "recompute" follows Eq. 9, "replay" writes the inverted latents back.
      start: "inversion", or "noise" (a randomly noised background, blended back at
        every level: the ablation without inversion).
      guidance_scale: on the defect term only; 1 = none, as in the paper.
      solver: of the defect's moves: "ddim", or "dpmpp_2m" of second order, see
        `diffusion.multistep`. The background's are the same with either.
      eta: DDIM noise, inside the mask only; 0 with "dpmpp_2m".
      refine: return the part of the mask where something changed.
      change_floor: least change, of [0, 1], that counts as drawn.
      otsu: raise that to Otsu's threshold, see `diffusion.refinement`.
      least_kept: defects of which less than this share of the requested mask is left
        count as not drawn: their mask is emptied.
      paste: put the normal image's pixels back outside the returned mask, so that what
        is called normal is normal.
    """

    num_steps: int = 50
    spacing: str = "checkpoint"
    inversion_time: str = "source"
    fixed_point_iterations: int = 0
    background: str = "recompute"
    start: str = "inversion"
    guidance_scale: float = 1.0
    solver: str = "ddim"
    eta: float = 0.0
    refine: bool = True
    change_floor: float = 0.08
    otsu: bool = True
    least_kept: float = 0.0
    paste: bool = False


def check(options: Options) -> None:
    """Raises UserError for a choice that does not exist, naming its config key."""
    for key, value, known in (
        ("background", options.background, inversion.BACKGROUNDS),
        ("start", options.start, STARTS),
        ("solver", options.solver, inversion.SOLVERS),
        ("inversion_time", options.inversion_time, schedules.INVERSION_TIMES),
        ("spacing", options.spacing, SPACINGS),
    ):
        if value not in known:
            raise UserError(f"config.generate.{key}={value!r}; choose one of {known}")
    for key, value, low, high in (
        ("num_steps", options.num_steps, 1, float("inf")),
        ("fixed_point_iterations", options.fixed_point_iterations, 0, float("inf")),
        ("guidance_scale", options.guidance_scale, 0, float("inf")),
        ("eta", options.eta, 0, 1),
        ("change_floor", options.change_floor, 0, 1),
        ("least_kept", options.least_kept, 0, 1),
    ):
        if not low <= value <= high:
            raise UserError(f"config.generate.{key}={value}; wanted {low} to {high}")
    if options.eta and options.solver != "ddim":
        raise UserError(
            f"config.generate.solver={options.solver!r} draws no noise; set "
            f"config.generate.eta=0.0 (it is {options.eta}) or solver='ddim'"
        )


def generator(
    autoencoder,
    unet_apply: Callable,
    read_params: Callable,
    schedule: noise_schedule.NoiseSchedule,
    options: Options,
    trained_as: objective.Options,
    grids: tuple,
    latent_pooling: str,
) -> Callable[[Params, Frozen, Batch, PRNGKey], dict[str, Array]]:
    """Makes the jittable function from normal images and masks to defects.

    An inversion depends on the image, its mask and its category, and on no seed or
    defect: K defects on one image under one mask share it, and the decoded reference.

    Args:
      autoencoder: module with `encode` and `decode`; its weights are frozen["vae"].
      unet_apply, read_params, grids: see `objective.loss_fn`.
      schedule: of the checkpoint; says the noise levels, and where a walk ends.
      options: see `Options`.
      trained_as: how the UNet was trained; both loops must prompt it the same way.
      latent_pooling: see `model.pool_mask`.

    Returns:
      (params, frozen, batch, key) -> arrays. The batch holds `image` [B, H, W, 3], the
      requested `mask` [B, H, W] and `category_id` [B] int32, and `defect_id` and `seed`
      [B] or [B, K] int32. With eta = 0 a row is a function of its own image, mask,
      prompt and seed alone. The result has N = B K rows, those of an image together:
      `image` and `reference` (the same pipeline without a defect) [N, H, W, 3] in
      [0, 1]; `normal`, `inverted` and `latents` [N, h, w, C]; `change` [N, H, W] in
      [0, 1]; and `mask` [N, H, W], not yet freed of specks.
    """
    check(options)
    upward, downward = _tables(schedule, options)
    replay = options.background == "replay" or options.start == "noise"

    def generate(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKey
    ) -> dict[str, Array]:
        variables = {"params": frozen["vae"]}
        count = _count_per_image(batch)
        spread = _spreader(count)
        encoded = autoencoder.apply(variables, batch["image"], method="encode").mean
        small = model.pool_mask(batch["mask"], encoded.shape[1:3], latent_pooling)
        prompt = objective.prompted(
            model.Contexts(**frozen["contexts"]),
            spread(small),
            batch["defect_id"].reshape(-1),
            spread(batch["category_id"]),
            trained_as,
            grids,
        )
        weights = read_params(params, frozen)
        network = unet_apply, weights, prompt
        hidden = trained_as.hide_background
        normal = spread(encoded)
        key_start, key_eta = jax.random.split(key)
        noise = _row_noise(key_start, batch["seed"].reshape(-1), normal.shape[1:])
        if options.start == "inversion":
            # What the background's branch is told is the same for all of an image.
            once = jax.tree.map(lambda rows: rows[::count], prompt)
            inverted, trajectory = inversion.masked_invert(
                objective.background_noise(unet_apply, weights, once),
                encoded,
                once.mask,
                upward,
                options.fixed_point_iterations,
                keep_trajectory=replay,
            )
            inverted = spread(inverted)
            trajectory = spread(trajectory, axis=1) if replay else None
        else:
            inverted, trajectory = _noised(normal, noise, prompt.mask, upward)
        defect_fn = objective.defect_noise(*network, hidden)
        pair_fn = guidance.defect_only(
            objective.pair_noise(*network, hidden),
            lambda latents, timesteps: defect_fn(latents, timesteps, prompt.null),
            options.guidance_scale,
        )
        latents = inversion.compose_sample(
            pair_fn,
            jnp.where(prompt.mask > 0.5, noise, inverted),
            prompt.mask,
            downward,
            "replay" if replay else "recompute",
            trajectory,
            options.eta,
            key_eta if options.eta else None,
            options.solver,
        )
        asked, image = spread(batch["mask"]), spread(batch["image"])
        # The same background with the normal content inside: what the autoencoder and
        # the inversion do to the image cancels in the difference.
        unchanged = jnp.where(prompt.mask > 0.5, normal, latents)[::count]
        decoded = autoencoder.apply(
            variables, jnp.concatenate([latents, unchanged]), method="decode"
        )
        drawn, reference = jnp.split(decoded, [len(latents)])
        return {
            **_finished(drawn, spread(reference), image, asked, normal.shape, options),
            "normal": normal,
            "inverted": inverted,
            "latents": latents,
        }

    return generate


def _finished(
    drawn: Array,
    reference: Array,
    image: Array,
    asked: Array,
    latent_shape: tuple[int, ...],
    options: Options,
) -> dict[str, Array]:
    """Refines the masks and pastes the normal pixels, as the options say."""
    mask, pasted = asked, drawn
    if options.refine:
        dilation = image.shape[1] // latent_shape[1]
        mask, _ = refinement.changed(
            drawn, reference, asked, options.change_floor, dilation, options.otsu
        )
    if options.paste:
        pasted = jnp.where(mask[..., None] > 0.5, drawn, image)
    return {
        "image": pasted,
        "reference": reference,
        "change": refinement.difference(pasted, reference),
        "mask": mask.astype(jnp.float32),
    }


def _count_per_image(batch: Batch) -> int:
    """Returns K of `seed` and `defect_id`, [B] for K = 1 or [B, K]."""
    seeds, defects = batch["seed"].shape, batch["defect_id"].shape
    if seeds != defects or seeds[:1] != batch["image"].shape[:1] or len(seeds) > 2:
        raise UserError(
            f"{len(batch['image'])} images with seed of shape {seeds} and defect_id of "
            f"shape {defects}; wanted one shape, a row for each image: [B] or [B, K]"
        )
    return math.prod(seeds[1:])


def _spreader(count: int) -> Callable[..., Array]:
    """Returns the function that gives every row to each of its `count` defects."""
    if count == 1:
        return lambda rows, axis=0: rows
    return lambda rows, axis=0: jnp.repeat(rows, count, axis)


def _tables(
    schedule: noise_schedule.NoiseSchedule, options: Options
) -> tuple[schedules.Table, schedules.Table]:
    """Returns the moves up and down the same levels."""
    alphas = schedule.alphas_cumprod
    if options.spacing == "checkpoint":
        levels = schedule.levels(options.num_steps)
    elif options.spacing == "log_snr":
        levels = schedules.log_snr_levels(alphas, options.num_steps)
    else:
        levels = schedules.levels(len(alphas), options.num_steps, options.spacing)
    last = schedule.final_alpha
    up = schedules.inversion_table(alphas, levels, options.inversion_time, last)
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
    hidden, fresh = (
        inversion.hide_defect(normal, mask),
        inversion.hide_defect(noise, mask),
    )
    noised = np.sqrt(alphas) * hidden + np.sqrt(1 - alphas) * fresh
    return noised[-1], jnp.concatenate([hidden[None], noised])


class Request(NamedTuple):
    """One pair to generate.

    Attributes:
      number: k, which seeds its noise.
      category, defect_type: what to draw.
      normal: record number of the normal image to draw it on.
      mask: [H, W] uint8, where.
    """

    number: int
    category: str
    defect_type: str
    normal: int
    mask: np.ndarray


def plan(
    dataset: catalog.Dataset, num_images: int, seed: int, per_image: int = 1
) -> list[Request]:
    """Chooses images, defect types and masks; entry k depends on (seed, k) alone.

    Every (category, defect type) with a training mask takes its turn. Masks come from
    that pair's own training defects, flipped and shifted, independently of the image;
    each normal image is equally likely.

    Args:
      dataset: the training part.
      num_images: length of the plan.
      seed: of all draws.
      per_image: entries in a row that share all but their number, and so one inversion.

    Raises:
      UserError: no training defect has a mask.
    """
    banks = _mask_banks(dataset)
    pairs = list(banks)
    key = jax.random.key(seed)
    normals, masks = {}, {}
    for number, (category, defect_type) in enumerate(pairs):
        normals[category] = catalog.select(dataset, None, category, anomalous=False)
        bank = banks[category, defect_type]
        count = -(-num_images // (per_image * len(pairs)))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, number), jnp.arange(count)
        )
        drawn = _draw_one_each(jnp.asarray(bank), keys)
        masks[category, defect_type] = np.asarray(drawn, np.uint8)
    requests = []
    for number in range(num_images):
        place = number // per_image
        turn, which = divmod(place, len(pairs))
        category, defect_type = pairs[which]
        pool = normals[category]
        chosen = np.random.default_rng([seed, place]).integers(len(pool))
        mask = masks[category, defect_type][turn]
        requests.append(Request(number, category, defect_type, pool[chosen], mask))
    return requests


@jax.jit
def _draw_one_each(bank: Array, keys: Array) -> Array:
    """Draws one mask [H, W] per key, [N, H, W]."""
    return jax.vmap(lambda key: model.draw_masks(bank, 1, key)[0])(keys)


def _mask_banks(dataset: catalog.Dataset) -> dict[tuple[str, str], np.ndarray]:
    """Returns {(category, defect type): its training masks}; pairs without any miss."""
    banks = {}
    for category in dataset.categories:
        for defect_type in dataset.defect_types[1:]:
            found = catalog.select(dataset, None, category, defect_type)
            masks = [dataset.load(dataset.records[number])[1] for number in found]
            if any(mask.any() for mask in masks):
                banks[category, defect_type] = model.mask_bank(masks)
    if not banks:
        model.mask_bank(())  # raises, and says what is missing
    return banks


def final_masks(
    masks: np.ndarray,
    requested: np.ndarray | None = None,
    least_kept: float = 0.0,
    refine: bool = True,
) -> np.ndarray:
    """Drops specks from refined masks, and defects that were hardly drawn; on the host.

    Args:
      masks: [B, H, W] of 0 and 1.
      requested: [B, H, W]; needed with `least_kept`.
      least_kept: see `Options`.
      refine: see `Options`; masks that were not refined keep their small parts.

    Returns:
      [B, H, W] bool.
    """
    kept = np.asarray(masks) > 0.5
    if refine:
        kept = refinement.drop_small(kept)
    if requested is None or not least_kept:
        return kept
    share = kept.sum((1, 2)) / np.maximum((requested > 0.5).sum((1, 2)), 1)
    return kept & (share >= least_kept)[:, None, None]
