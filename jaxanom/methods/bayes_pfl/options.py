"""`config.bayes_pfl`, read and checked; configs/bayes_pfl/base.py explains each key."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxanom import sections
from jaxanom.errors import UserError
from jaxanom.methods.bayes_pfl import distributions
from jaxanom.posterior import flows

CHOICES = {
    "iad_logdet": ("author", "exact"),
    "variance": tuple(distributions.VARIANCES),
    "flow_constraint": flows.CONSTRAINTS,
    "train_pairs": ("one", "all"),
    "isd_input": ("pooled", "fused"),
    "iad_noise": ("run", "image"),
    "image_head": ("fused", "pooled"),
    "image_minmax": ("none", "category"),
    "clip_act": ("released", "", "gelu", "quick_gelu"),
    "names": ("released", "spaced"),
    "projection_init": ("random", "clip"),
    "prompts": ("drawn", "learned", "captions"),
}
RANGES = {
    **dict.fromkeys(("num_prompts", "num_context", "num_states"), (1, np.inf)),
    **dict.fromkeys(("num_flow_steps", "num_heads", "draws_train"), (1, np.inf)),
    **dict.fromkeys(("draws_selection", "draws_test", "top_k"), (1, np.inf)),
    **dict.fromkeys(("top_k_small", "text_chunk"), (1, np.inf)),
    **dict.fromkeys(("kl_weight", "reconstruction_weight", "sigma"), (0, np.inf)),
    **dict.fromkeys(("map_weight", "caption_share"), (0, 1)),
}
WITHOUT_DRAWS = {"draws_train": 1, "draws_test": 1, "reconstruction_weight": 0.0}
"""What a baseline without draws would not heed, so that it must hold these."""


class Options(NamedTuple):
    """Keys of `config.bayes_pfl`."""

    prompts: str
    normal_caption: str
    abnormal_caption: str
    caption_share: float
    num_prompts: int
    num_context: int
    num_states: int
    num_flow_steps: int
    num_heads: int
    layers: tuple[int, ...]
    draws_train: int
    draws_selection: int
    draws_test: int
    kl_weight: float
    iad_logdet: str
    variance: str
    flow_constraint: str
    train_pairs: str
    reconstruction_weight: float
    dice_background: bool
    isd_input: str
    checkpoint: str
    image_head: str
    iad_noise: str
    top_k: int
    top_k_small: int
    small_categories: tuple[str, ...]
    map_weight: float
    sigma: float
    image_minmax: str
    projection_init: str
    clip_act: str
    names: str
    shortcuts: bool
    cache_features: bool
    text_chunk: int
    remat: str


def read_options(section: Mapping[str, Any]) -> Options:
    """Reads `config.bayes_pfl`, each key once.

    Raises:
      UserError: A key that is unknown or missing, or a value that does not fit.
    """
    options = sections.read(section, Options, "config.bayes_pfl")
    options = options._replace(
        layers=tuple(options.layers), small_categories=tuple(options.small_categories)
    )
    for name, known in CHOICES.items():
        if getattr(options, name) not in known:
            raise UserError(
                f"config.bayes_pfl.{name}={getattr(options, name)!r}; choose one of "
                f"{known}"
            )
    for name, (low, high) in RANGES.items():
        if not low <= getattr(options, name) <= high:
            raise UserError(
                f"config.bayes_pfl.{name}={getattr(options, name)}; wanted "
                + (f"{low} or more" if high == np.inf else f"{low} to {high}")
            )
    _check_baseline(options)
    return options


def activation(options: Options) -> str:
    """Returns the activation of both towers, "" for that of the weights' config."""
    if options.clip_act != "released":
        return options.clip_act
    return "" if options.prompts == "captions" else "gelu"


def _check_baseline(options: Options) -> None:
    """Raises UserError for a caption without a place, or what is not heeded."""
    if options.prompts == "captions" and options.caption_share:
        raise UserError(
            f"config.bayes_pfl.caption_share={options.caption_share}, but with "
            "prompts='captions' there is nothing else; set it to 0"
        )
    for caption in (options.normal_caption, options.abnormal_caption):
        if caption.count("{category}") != 1:
            raise UserError(
                f"config.bayes_pfl caption {caption!r}; wanted {{category}} once"
            )
    if options.prompts == "drawn":
        return
    for name, needed in WITHOUT_DRAWS.items():
        if getattr(options, name) != needed:
            raise UserError(
                f"config.bayes_pfl.{name}={getattr(options, name)}, but prompts="
                f"{options.prompts!r} draws nothing; set it to {needed}"
            )
