"""The disentanglement loss, arXiv 2411.16767 Eqs. 5-7, as a trainer's loss function."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.contracts import LossFn
from jaxanom.diffusion import targets
from jaxanom.errors import UserError
from jaxanom.losses import disentanglement
from jaxanom.methods.defect_generation import model
from jaxanom.types import Array, Batch, Frozen, Metrics, Params, PRNGKey

BACKGROUND_INPUTS = ("masked", "full")


class Options(NamedTuple):
    """What the objective can do differently; the defaults are the paper's reading.

    Attributes:
      background_weight: factor of the second term; 0 is the ablation without it.
      background_input: "masked" feeds (1-m) z_t to the background branch, "full" z_t.
      masked_attention: queries read only their own group of tokens.
      hide_background: the defect branch sees m z_t alone (the blinded control of B3).
      area_balanced: each term is a mean over its own elements.
      attention_pooling: latent mask -> layer grid, see `model.pool_mask`.
      draw_normal_masks: normal images get a mask from p(m), and the hole's prompt.
      refusal_share: of those masks, the share told some defect's prompt instead. The
        network then learns from normal images too where a defect does not occur. Not in
        the paper, which has 0.
    """

    background_weight: float = 1.0
    background_input: str = "masked"
    masked_attention: bool = True
    hide_background: bool = False
    area_balanced: bool = False
    attention_pooling: str = "max"
    draw_normal_masks: bool = True
    refusal_share: float = 0.0


def check(options: Options) -> None:
    """Raises UserError for a choice that does not exist, naming its config key."""
    for key, value, known in (
        ("background_input", options.background_input, BACKGROUND_INPUTS),
        ("attention_pooling", options.attention_pooling, model.POOLINGS),
    ):
        if value not in known:
            raise UserError(
                f"config.defect_generation.{key}={value!r}; choose one of {known}"
            )
    share = options.refusal_share
    if not 0 <= share <= 1 or (share and not options.draw_normal_masks):
        raise UserError(
            f"config.defect_generation.refusal_share={share}; wanted 0 to 1, and 0 "
            "without draw_normal_masks"
        )


class Prompted(NamedTuple):
    """What the two branches are told besides latents and timestep.

    Attributes:
      defect: context of the defect branch, C1 [B, L', D].
      background: context of the background branch, C2 [B, L', D].
      null: C1 with its defect tokens replaced by the hole's, for guidance.
      bias: {queries: [B, queries, L']} of masked cross-attention, or None.
      mask: [B, h, w, 1] binary.
    """

    defect: Array
    background: Array
    null: Array
    bias: dict[int, Array] | None
    mask: Array


def prompted(
    contexts: model.Contexts,
    mask: Array,
    defect_id: Array,
    category_id: Array,
    options: Options,
    grids: tuple,
) -> Prompted:
    """Looks the prompts up and spreads the mask over the cross-attention layers.

    Args:
      contexts: prompt rows.
      mask: [B, h, w] binary, on the latent grid.
      defect_id, category_id: [B] int32.
      options: see `Options`.
      grids: (rows, columns) of every cross-attention layer.
    """
    grouped = options.masked_attention
    defect, background = model.paired_context(contexts, defect_id, category_id, grouped)
    null, _ = model.paired_context(
        contexts, jnp.zeros_like(defect_id), category_id, grouped
    )
    bias = None
    if grouped:
        lengths = contexts.defect.shape[1], contexts.background.shape[1]
        bias = model.attention_bias(mask, *lengths, grids, options.attention_pooling)
    return Prompted(defect, background, null, bias, mask[..., None])


def defect_noise(
    unet_apply: Callable, params: Params, prompt: Prompted, hide_background: bool
) -> Callable[..., Array]:
    """Returns the defect branch, (latents, timesteps, context=C1) -> noise_pred."""

    def noise_fn(latents, timesteps, context=prompt.defect):
        if hide_background:
            latents = jnp.where(prompt.mask > 0.5, latents, 0.0)
        return unet_apply(params, latents, timesteps, context, prompt.bias)

    return noise_fn


def background_noise(
    unet_apply: Callable, params: Params, prompt: Prompted
) -> Callable[[Array, Array], Array]:
    """Returns the background branch; its caller has cut the defect out."""

    def noise_fn(latents, timesteps):
        return unet_apply(params, latents, timesteps, prompt.background, prompt.bias)

    return noise_fn


def pair_noise(
    unet_apply: Callable, params: Params, prompt: Prompted, hide_background: bool
) -> Callable[[Array, Array | None, Array], tuple[Array, Array | None]]:
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
        return disentanglement.split_rows(noise_pred)

    return noise_fn


def loss_fn(
    unet_apply: Callable,
    read_params: Callable,
    alphas_cumprod: np.ndarray,
    options: Options,
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
      options, grids: see `prompted`.
      is_velocity: regress the velocity, as a network made to predict it was trained;
        `unet_apply` returns the noise its estimate implies either way.
    """
    check(options)

    def loss(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKey
    ) -> tuple[Array, Metrics]:
        key_mask, key_noise, key_timestep = jax.random.split(key, 3)
        latents, mask = batch["latents"], batch["latent_mask"]
        rows = latents.shape[0]
        if options.draw_normal_masks:
            drawn = model.draw_masks(frozen["latent_bank"], rows, key_mask)
            mask = jnp.where(batch["label"][:, None, None] > 0, mask, drawn)
        contexts = model.Contexts(**frozen["contexts"])
        defect_id = batch["defect_id"]
        if options.refusal_share:
            key_refusal = jax.random.fold_in(key, 1)
            asked = _asked_of_normals(contexts, defect_id, options, key_refusal)
            defect_id = jnp.where(batch["label"] > 0, defect_id, asked)
        prompt = prompted(
            contexts, mask, defect_id, batch["category_id"], options, grids
        )
        noise = jax.random.normal(key_noise, latents.shape)
        timesteps = targets.draw_timesteps(key_timestep, rows, len(alphas_cumprod))
        noisy = targets.add_noise(latents, noise, timesteps, alphas_cumprod)
        weights = None
        if is_velocity:
            weights = targets.velocity_weights(timesteps, alphas_cumprod)
        stacked = disentanglement.stack_inputs(
            noisy, prompt.mask, hide_defect=options.background_input == "masked"
        )
        noise_fn = pair_noise(
            unet_apply, read_params(params, frozen), prompt, options.hide_background
        )
        predictions = noise_fn(*disentanglement.split_rows(stacked), timesteps)
        value, parts = disentanglement.loss(
            noise,
            *predictions,
            prompt.mask,
            area_balanced=options.area_balanced,
            background_weight=options.background_weight,
            weights=weights,
        )
        gap = disentanglement.gap(*predictions, prompt.mask)
        return value, {**parts, "gap": gap}

    return loss


def _asked_of_normals(
    contexts: model.Contexts, defect_id: Array, options: Options, key: PRNGKey
) -> Array:
    """Returns [B] ids: a defect's with probability `refusal_share`, else unchanged."""
    key_share, key_defect = jax.random.split(key)
    rows = defect_id.shape
    drawn = jax.random.randint(key_defect, rows, 1, len(contexts.defect))
    return jnp.where(
        jax.random.uniform(key_share, rows) < options.refusal_share, drawn, defect_id
    )
