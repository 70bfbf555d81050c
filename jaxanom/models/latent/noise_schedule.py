"""What a published scheduler_config.json says of the noise a network was trained on.

diffusers' schedulers mix two things in one file: the noise levels and what the network
predicts, which belong to the weights, and the options of one solver. The first are read
and honoured, the second left alone; what would change the levels in a way not
implemented here is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxanom.diffusion import schedules
from jaxanom.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction")
# Defaults of diffusers' classes, for files that were written before a key existed.
_LEADING = ("DDIM", "DDIMInverse", "DDPM", "PNDM", "LCM")
_LINSPACE = (
    *("LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
    *("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"),
)
_SPACING = {
    f"{name}Scheduler": spacing
    for spacing, names in (("leading", _LEADING), ("linspace", _LINSPACE))
    for name in names
}
_FINAL_ALPHA_FIRST = ("PNDMScheduler",)
_OTHER_LEVELS = "other noise levels than those of training"
_REFUSED = {
    "rescale_betas_zero_snr": "noise levels that end in pure noise",
    **dict.fromkeys(("clip_sample", "thresholding"), "clipped latents"),
    "use_karras_sigmas": _OTHER_LEVELS,
    "use_exponential_sigmas": _OTHER_LEVELS,
    "use_beta_sigmas": _OTHER_LEVELS,
    "use_flow_sigmas": "flow matching",
}
_BETAS = ("beta_start", "beta_end", "beta_schedule")
_CLASS_BETAS = dict.fromkeys(_SPACING, (1e-4, 0.02, "linear")) | {
    "HeunDiscreteScheduler": (0.00085, 0.012, "linear"),
    "LCMScheduler": (0.00085, 0.012, "scaled_linear"),
}


class NoiseSchedule(NamedTuple):
    """Noise levels of a network, and how runs of few steps lie on them.

    Attributes:
      alphas_cumprod: [T] float64.
      prediction_type: One of `PREDICTION_TYPES`.
      spacing, steps_offset: As `schedules.levels` takes them.
      final_alpha: As the tables of `schedules` take it.
    """

    alphas_cumprod: np.ndarray
    prediction_type: str
    spacing: str
    steps_offset: int
    final_alpha: str

    def levels(self, num_steps: int) -> np.ndarray:
        """Returns the noise levels of a run of S steps, int32 [S + 1]."""
        # The offset belongs to one spacing; diffusers ignores it with the others.
        offset = self.steps_offset if self.spacing == "leading" else 0
        count = len(self.alphas_cumprod)
        return schedules.levels(count, num_steps, self.spacing, offset)


def read(raw: Mapping[str, Any], where: str | Path) -> NoiseSchedule:
    """Reads the dict of a scheduler_config.json.

    Args:
      raw: The parsed file; keys of solvers are ignored.
      where: The file, for messages.

    Raises:
      UserError: a value that is unknown, not implemented, or contradicts another.
    """
    for name, meaning in _REFUSED.items():
        if raw.get(name):
            raise UserError(
                f"{where}: {name}={raw[name]!r} asks for {meaning}, which is not "
                "implemented; set it to false, or use another checkpoint"
            )
    kind = raw.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise UserError(
            f"{where}: prediction_type={kind!r}; wanted one of {PREDICTION_TYPES}"
        )
    default = raw.get("_class_name") not in _FINAL_ALPHA_FIRST
    final = "one" if raw.get("set_alpha_to_one", default) else "first"
    try:
        alphas = _alphas(raw)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error
    spacing, offset = _spacing(raw, where), raw.get("steps_offset", 0)
    if type(offset) is not int or not 0 <= offset < len(alphas):
        raise UserError(
            f"{where}: steps_offset={offset!r}; wanted 0 to {len(alphas) - 1}"
        )
    return NoiseSchedule(alphas, kind, spacing, offset, final)


def _alphas(raw: Mapping[str, Any]) -> np.ndarray:
    count = raw.get("num_train_timesteps", 1000)
    if type(count) is not int:
        raise UserError(f"num_train_timesteps={count!r}; wanted a count")
    if raw.get("trained_betas") is None:
        return schedules.alphas_cumprod(count, **_betas(raw))
    betas = np.asarray(raw["trained_betas"], np.float64)
    if betas.shape != (count,) or not np.all((betas > 0) & (betas < 1)):
        raise UserError(
            f"trained_betas of shape {betas.shape} contradict num_train_timesteps="
            f"{count}; wanted {count} values between 0 and 1"
        )
    return np.cumprod(1 - betas)


def _betas(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of the betas, absent ones as the file's class has them.

    A file without a class is ours, and Stable Diffusion's values are its defaults.
    """
    known = {name: raw[name] for name in _BETAS if raw.get(name) is not None}
    kind = raw.get("_class_name")
    if kind is None or len(known) == len(_BETAS):
        return known
    if kind not in _CLASS_BETAS:
        absent = sorted(set(_BETAS) - set(known))
        raise UserError(f"{absent} of {kind} are not known; set them")
    return dict(zip(_BETAS, _CLASS_BETAS[kind], strict=True)) | known


def _spacing(raw: Mapping[str, Any], where: str | Path) -> str:
    spacing = raw.get("timestep_spacing")
    if spacing is None:
        spacing = _SPACING.get(raw.get("_class_name", "DDIMScheduler"))
    if spacing not in schedules.SPACINGS:
        raise UserError(
            f"{where}: timestep_spacing={spacing!r} of {raw.get('_class_name')}; set "
            f"it to one of {schedules.SPACINGS}"
        )
    return spacing
