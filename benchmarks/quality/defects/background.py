"""The background's chain alone, for B2: inverted and sampled back at any S.

Outside the mask the composed sample is this chain, whatever the defect is (B2 checks
that on the whole generator). Walking it move by move keeps one program for every S and
both inversion times; each move is the library's own, on a table of one row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxanom
from benchmarks.quality.defects import measures
from jaxanom.diffusion import inversion, schedules
from jaxanom.methods.defect_generation import model, objective, options
from jaxanom.models import backbones
from jaxanom.models.latent import unet
from jaxanom.types import Array


def error_curves(
    run: jaxanom.Run,
    image: np.ndarray,
    mask: np.ndarray,
    defect_id: np.ndarray,
    num_levels: Sequence[int],
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns {inversion time: {S: mean and worst relative background error}}.

    Args:
      run: a trained generator with the recipe's options.
      image: [N, H, W, 3], of one category, the first.
      mask: [N, H, W].
      defect_id: [N].
      num_levels: values of S.
    """
    latents, small = latents_of(run, image, mask, defect_id)
    upward, downward = _moves(run, small, defect_id)
    alphas = backbones.load_alphas(run.prepared.config.model.directory)

    def error(num_steps: int, told: str) -> dict[str, float]:
        levels = schedules.levels(len(alphas), num_steps)
        carried = latents
        for row in _rows(schedules.inversion_table(alphas, levels, told)):
            carried = upward(carried, row)
        for row in _rows(schedules.sampling_table(alphas, levels)):
            carried = downward(carried, row)
        values = measures.background_error(
            np.asarray(carried), np.asarray(latents), np.asarray(small)
        )
        return {"mean": float(values.mean()), "worst": float(values.max())}

    return {
        told: {str(steps): error(steps, told) for steps in num_levels}
        for told in schedules.INVERSION_TIMES
    }


def latents_of(run, image, mask, defect_id) -> tuple[Array, Array]:
    """Returns the clean latents [N, h, w, C] and the masks [N, h, w] on their grid."""
    count = len(image)
    batch = {
        "image": jnp.asarray(image, jnp.float32),
        "mask": jnp.asarray(mask, jnp.float32),
        "defect_id": jnp.asarray(defect_id, jnp.int32),
        "category_id": jnp.zeros(count, jnp.int32),
        "label": jnp.ones(count, jnp.int32),
        "valid": jnp.ones(count, bool),
    }
    encoded = jax.jit(run.prepared.method.encode)(run.frozen, batch)
    return encoded["latents"], encoded["latent_mask"]


def _moves(
    run: jaxanom.Run, mask: Array, defect_id: np.ndarray
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Makes one move of the inversion and one of the sampling, each compiled once."""
    settings = run.prepared.config
    module = backbones.load_unet(settings.model.directory).module
    apply = backbones.noise_apply(module, settings.model.directory)
    grids = unet.attention_resolutions(module.config, *mask.shape[1:])
    ids = jnp.asarray(defect_id, jnp.int32)
    training = options.read_training(settings.defect_generation)

    def background(params, contexts) -> tuple[Callable[..., Array], Array]:
        told = model.Contexts(**contexts)
        prompt = model.prompted(told, mask, ids, jnp.zeros_like(ids), training, grids)
        return objective.background_noise(apply, params, prompt), prompt.mask

    @jax.jit
    def up(params, contexts, latents, row):
        noise_fn, hole = background(params, contexts)
        return inversion.masked_invert(noise_fn, latents, hole, row)[0]

    @jax.jit
    def down(params, contexts, latents, row):
        noise_fn, hole = background(params, contexts)

        def pair_fn(_, seen, timesteps):
            noise_pred = noise_fn(seen, timesteps)
            return noise_pred, noise_pred

        return inversion.compose_sample(pair_fn, latents, hole, row)

    params, contexts = run.params["unet"], run.frozen["contexts"]
    return (
        lambda latents, row: up(params, contexts, latents, row),
        lambda latents, row: down(params, contexts, latents, row),
    )


def _rows(table: schedules.Table) -> list[Any]:
    """Cuts a table into tables of one row."""
    count = len(table.timesteps)
    return [jax.tree.map(lambda c, k=k: c[k : k + 1], table) for k in range(count)]
