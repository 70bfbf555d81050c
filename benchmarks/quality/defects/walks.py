"""Inversions and samplings of one generator at any S, taken move by move.

Every move is the library's own, on a table of one row, so that one compiled network
serves all walks. Outside the mask the composed sample is the background's chain alone,
whatever the defect is; `experiments.background_stays` checks that on the whole
generator.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxanom
from benchmarks.quality.defects import measures, runs
from jaxanom.diffusion import inversion, schedules
from jaxanom.methods.defect_generation import model, objective, options
from jaxanom.models import backbones
from jaxanom.models.latent import unet
from jaxanom.types import Array


class Subject(NamedTuple):
    """What all walks share.

    Attributes:
      latents: [N, h, w, C], the clean latents of the normal images.
      mask: [N, h, w, 1], binary.
      noise: [N, h, w, C], what fills the hole.
      background_fn: The background's branch; one compiled program.
      pair_fn: Both branches where the background is replayed; the same program.
      alphas_cumprod: [T] float64.
    """

    latents: Array
    mask: Array
    noise: Array
    background_fn: Callable[..., Array]
    pair_fn: Callable[..., tuple[Array, Array | None]]
    alphas_cumprod: np.ndarray


def subject(run: jaxanom.Run, num_images: int, seed: int) -> Subject:
    """Encodes images of the run's test part and compiles its network.

    Raises:
      ValueError: The run did not train the whole UNet.
    """
    if "unet" not in run.params:
        raise ValueError(
            f"{run.directory} has no UNet of its own; set "
            "config.defect_generation.lora_rank=0"
        )
    directory = run.prepared.config.model.directory
    image, mask, defect_id = runs.held_out_pairs(run, num_images)
    latents, small = _encoded(run, image, mask, defect_id)
    module = backbones.load_unet(directory).module
    ids = jnp.asarray(defect_id, jnp.int32)
    prompt = model.prompted(
        model.Contexts(**run.frozen["contexts"]),
        small,
        ids,
        jnp.zeros_like(ids),
        options.read_training(run.prepared.config.defect_generation),
        unet.attention_resolutions(module.config, *small.shape[1:]),
    )
    params = jax.tree.map(jnp.asarray, run.params["unet"])
    apply = jax.jit(backbones.noise_apply(module, directory))

    def compiled(*inputs: Any) -> Array:
        with jax.disable_jit(False):
            return apply(*inputs)

    network = compiled, params, prompt
    return Subject(
        latents,
        prompt.mask,
        jax.random.normal(jax.random.key(seed), latents.shape),
        objective.background_noise(*network),
        objective.pair_noise(*network, hide_background=False),
        backbones.load_alphas(directory),
    )


def _encoded(run, image, mask, defect_id) -> tuple[Array, Array]:
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


def levels_of(subject: Subject, num_steps: int, spacing: str) -> np.ndarray:
    """Returns the levels of a walk, [S + 1]."""
    alphas = subject.alphas_cumprod
    if spacing == "log_snr":
        return schedules.log_snr_levels(alphas, num_steps)
    return schedules.levels(len(alphas), num_steps, spacing)


def inverted(
    subject: Subject, levels: np.ndarray, iterations: int = 0, time: str = "source"
) -> tuple[Array, Array]:
    """Returns the inverted latents and the trajectory, see `masked_invert`."""
    table = schedules.inversion_table(subject.alphas_cumprod, levels, time)
    # Scans become loops: what is compiled is the network, and not one walk per S.
    with jax.disable_jit():
        return inversion.masked_invert(
            subject.background_fn,
            subject.latents,
            subject.mask,
            table,
            iterations,
            keep_trajectory=True,
        )


def round_trip(
    subject: Subject, levels: np.ndarray, iterations: int = 0, time: str = "source"
) -> np.ndarray:
    """Returns the relative background error of every image, [N]."""

    def pair_fn(_, background, timesteps):
        noise_pred = subject.background_fn(background, timesteps)
        return noise_pred, noise_pred

    start, _ = inverted(subject, levels, iterations, time)
    table = schedules.sampling_table(subject.alphas_cumprod, levels)
    with jax.disable_jit():
        latents = inversion.compose_sample(pair_fn, start, subject.mask, table)
    mask = np.asarray(subject.mask[..., 0])
    return measures.background_error(
        np.asarray(latents), np.asarray(subject.latents), mask
    )


def drawn(
    subject: Subject, levels: np.ndarray, trajectory: Array, solver: str
) -> np.ndarray:
    """Returns the latents of defects in a replayed background, [N, h, w, C]."""
    start = jnp.where(subject.mask > 0.5, subject.noise, trajectory[-1])
    table = schedules.sampling_table(subject.alphas_cumprod, levels)
    with jax.disable_jit():
        latents = inversion.compose_sample(
            subject.pair_fn,
            start,
            subject.mask,
            table,
            trajectory,
            solver=solver,
        )
    return np.asarray(latents)


def error_curves(
    run: jaxanom.Run, num_images: int, num_levels: Sequence[int]
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns {inversion time: {S: mean and worst relative background error}}."""
    pairs = subject(run, num_images, 0)

    def error(num_steps: int, time: str) -> dict[str, float]:
        levels = schedules.levels(len(pairs.alphas_cumprod), num_steps)
        values = round_trip(pairs, levels, time=time)
        return {"mean": float(values.mean()), "worst": float(values.max())}

    return {
        time: {str(steps): error(steps, time) for steps in num_levels}
        for time in schedules.INVERSION_TIMES
    }
