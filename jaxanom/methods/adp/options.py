"""The section `config.adp`, read once."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxanom import sections
from jaxanom.errors import UserError
from jaxanom.methods.adp import objective
from jaxanom.methods.adp.predict import GENERATIVE
from jaxanom.methods.adp.token import wording

CHANNELS = ("language", "reference", *GENERATIVE)
TOKENS = ("learned", "class_word")
_PLAIN = {"token": "class_word", "tune": False}
BASELINES: dict[str, dict[str, Any]] = {
    "": {},
    # arXiv 2303.14814: text alone, then text and memory; no learning, no tuning.
    "winclip": _PLAIN | {"channels": ("language",), "primary": "language"},
    "winclip_plus": _PLAIN | {"channels": CHANNELS[:2], "primary": "language"},
    # arXiv 2106.08265 with few shots and without a coreset: the nearest patch decides.
    "patch_bank": _PLAIN | {"channels": ("reference",), "primary": "reference"},
}
"""What each value of `config.adp.baseline` sets; "" is ADP itself."""


class Options(NamedTuple):
    """Keys of `config.adp`; every one is a switch by which a reading can be corrected.

    `configs/adp/base.py` says of each what it does, and has the defaults.
    """

    baseline: str
    token: str
    num_vectors: int
    prompts: str
    defect_words: tuple[str, ...]
    pyramid: tuple[int, ...]
    crop_jitter: float
    turns: tuple[int, ...]
    batch_size: int
    align_weight: float
    state_weight: float
    anchor_weight: float
    prior_weight: float
    temperature: float
    templates_per_step: int
    low_noise_bias: bool
    split_tokens: bool
    channels: tuple[str, ...]
    primary: str
    windows: tuple[int, ...]
    feature_tower: str
    feature_layers: tuple[Any, ...]
    feature_size: int
    map_size: int
    sigma: float
    diffusion_size: int
    num_noises: int
    walk_steps: int
    gap_steps: int
    compare_layers: tuple[int, ...]
    tune: bool
    num_synthetic: int
    num_settings: int
    standard_errors: float


def read(section: Mapping[str, Any]) -> Options:
    """Reads `config.adp`, each key once; a baseline overrides what it stands for.

    Raises:
      UserError: an unknown key or choice; names the key.
    """
    options = sections.read(section, Options, "config.adp")
    _check_choice("baseline", options.baseline, tuple(BASELINES))
    options = options._replace(**BASELINES[options.baseline])
    _check(options)
    ordered = tuple(name for name in CHANNELS if name in options.channels)
    return options._replace(channels=ordered)


def _check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"config.adp.{key}={value!r}; choose one of {known}")


def _check(options: Options) -> None:
    _check_choice("token", options.token, TOKENS)
    _check_choice("prompts", options.prompts, tuple(wording.WORDINGS))
    for name in options.channels:
        _check_choice("channels", name, CHANNELS)
    if not options.channels:
        raise UserError(f"config.adp.channels is empty; choose some of {CHANNELS}")
    _check_choice("primary", options.primary, CHANNELS)
    if not options.turns:
        raise UserError("config.adp.turns is empty; choose some of (0, 1, 2, 3)")
    least = {"num_vectors": 1, "batch_size": 1, "templates_per_step": 1, "map_size": 2}
    least |= {"walk_steps": 1, "num_noises": 1, "gap_steps": 2, "standard_errors": 0}
    least |= {"num_synthetic": 2} if options.tune else {}
    for key, low in least.items():
        if getattr(options, key) < low:
            hint = ", or config.adp.tune=False" if key == "num_synthetic" else ""
            value = getattr(options, key)
            raise UserError(f"config.adp.{key}={value}; wanted at least {low}{hint}")
    if not 0 <= options.sigma < math.inf:
        raise UserError(f"config.adp.sigma={options.sigma}; wanted at least 0")
    if options.temperature <= 0:
        raise UserError(f"config.adp.temperature={options.temperature}; wanted > 0")


def of_objective(options: Options) -> objective.Options:
    """Returns what the inversion reads."""
    names = objective.Options._fields
    return objective.Options(*(getattr(options, name) for name in names))


def default_weights(options: Options) -> tuple[float, ...]:
    """Equal weights for the primary channel and the memory, none for the others.

    The first channel counts where neither is on.
    """
    weights = tuple(
        float(name in (options.primary, "reference")) for name in options.channels
    )
    return weights if any(weights) else (1.0, *weights[1:])
