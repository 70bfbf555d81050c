"""Options of training and of generating, and the values that they may have."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxanom import sections
from jaxanom.diffusion import inversion, schedules
from jaxanom.errors import UserError, check_choice

BACKGROUND_INPUTS = ("masked", "full")
BACKGROUNDS = ("recompute", "replay")
PLACEMENTS = ("context", "uniform")
POOLINGS = ("max", "nearest", "area")
STARTS = ("inversion", "noise")
SPACINGS = ("checkpoint", *schedules.SPACINGS, "log_snr")


class Training(NamedTuple):
    """Section `defect_generation`; configs/defect_generation/base.py explains it."""

    background_weight: float
    background_input: str
    masked_attention: bool
    hide_background: bool
    area_balanced: bool
    refusal_share: float
    latent_pooling: str
    attention_pooling: str
    lora_rank: int
    defect_prompt: str
    background_prompt: str
    hole_prompt: str


class Generation(NamedTuple):
    """Section `generate`; configs/defect_generation/base.py explains it."""

    num_images: int
    batch_size: int
    per_image: int
    seed: int
    num_steps: int
    spacing: str
    inversion_time: str
    fixed_point_iterations: int
    background: str
    start: str
    guidance_scale: float
    solver: str
    eta: float
    refine: bool
    change_floor: float
    otsu: bool
    least_kept: float
    paste: bool
    placement: str
    orientation_fixed: tuple[str, ...]
    masks: str


def read_training(section: Mapping[str, Any]) -> Training:
    """Reads `config.defect_generation`.

    Raises:
      UserError: An unknown, missing or impossible key, by its name.
    """
    where = "config.defect_generation"
    training = sections.read(section, Training, where)
    for key, choices in (
        ("background_input", BACKGROUND_INPUTS),
        ("attention_pooling", POOLINGS),
        ("latent_pooling", POOLINGS),
    ):
        check_choice(f"{where}.{key}", getattr(training, key), choices)
    if not 0 <= training.refusal_share <= 1:
        raise UserError(
            f"{where}.refusal_share={training.refusal_share}; wanted 0 to 1"
        )
    return training


def read_generation(section: Mapping[str, Any]) -> Generation:
    """Reads `config.generate`; the errors are as in `read_training`."""
    generation = sections.read(section, Generation, "config.generate")
    for key, choices in (
        ("background", BACKGROUNDS),
        ("start", STARTS),
        ("solver", inversion.SOLVERS),
        ("inversion_time", schedules.INVERSION_TIMES),
        ("spacing", SPACINGS),
        ("placement", PLACEMENTS),
    ):
        check_choice(f"config.generate.{key}", getattr(generation, key), choices)
    for key, low, high in (
        ("num_steps", 1, float("inf")),
        ("fixed_point_iterations", 0, float("inf")),
        ("guidance_scale", 0, float("inf")),
        ("eta", 0, 1),
        ("change_floor", 0, 1),
        ("least_kept", 0, 1),
    ):
        value = getattr(generation, key)
        if not low <= value <= high:
            raise UserError(f"config.generate.{key}={value}; wanted {low} to {high}")
    if generation.eta and generation.solver != "ddim":
        raise UserError(
            f"config.generate.solver={generation.solver!r} draws no noise; set "
            f"config.generate.eta=0.0 (it is {generation.eta}) or solver='ddim'"
        )
    return generation
