"""Options of the method, with the released code's values as defaults."""

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


class Options(NamedTuple):
    """Keys of `config.bayes_pfl`; a key left out has the value below.

    Attributes:
      prompts: "drawn" from distributions around a learned bank, which is the method;
        baselines: the "learned" bank alone, without distributions or draws; or a
        normal and an abnormal caption that CLIP knows, "captions", nothing trained.
      normal_caption, abnormal_caption: of prompts="captions" and `caption_share`;
        "{category}" stands for the class name.
      caption_share: of plain CLIP's answer to both captions in every map and image
        score of a draw (ours); 0 is the method.
      num_prompts, num_context, num_states: B prompt pairs of P context and Q state
        tokens.
      num_flow_steps: K.
      num_heads: of the cross-model attention.
      layers: layers whose patch tokens are used; 1 is the first layer's output.
      draws_train, draws_selection, draws_test: R of a training step, of measurements
        that choose a model, and of predictions.
      kl_weight: of each of the three KL terms.
      iad_logdet: "author" divides the image-agnostic log-determinants by the batch
        size, "exact" does not; with iad_noise="image" neither does.
      variance: "author" reads exp(h / 2) as the variance, "exact" exp(h).
      flow_constraint: of `flows.push`.
      train_pairs: "one" random bank entry feeds the classification and segmentation
        losses of a step, "all" the mean over all.
      reconstruction_weight: of a decoder that rebuilds the image feature; 0 leaves it
        out, as the released objective does.
      dice_background: adds the Dice loss of the normal class.
      isd_input: the image-specific distribution sees the "pooled" feature, or "fused"
        with that of the patches.
      checkpoint: a file of the authors' release to start from, .pth or safetensors;
        "" draws new weights.
      image_head: text is compared with the "fused" feature, which stage 2 trains, or
        the "pooled" one of stage 1.
      iad_noise: state noise is drawn once per "run", or per "image".
      top_k: pixels whose mean enters the image score.
      top_k_small, small_categories: the same, and the categories it is for.
      map_weight: of that mean in the image score; 0 for datasets without masks.
      sigma: of the Gaussian that smooths the map, in pixels; 0 is none.
      image_minmax: "category" scales both parts of the image score to [0, 1] over all
        test images of a category: transductive, only for evaluation.
      projection_init: of the patch projections A_l; "clip" starts every layer at CLIP's
        own way into the joint space.
      clip_act: activation of both towers; "" is that of the weights' config, "released"
        exact GELU as in the authors' code, but for prompts="captions", plain CLIP, that
        of the weights. `caption_share` looks through the method's own towers.
      names: class names as the "released" code words them, or "spaced" (underscores
        are spaces).
      shortcuts: the exact speed-ups; False computes as the released code does.
      cache_features: run the image tower over the data once; False runs it in each
        step, as fresh augmentations need.
      text_chunk: prompts that the text tower takes at once when predicting.
      remat: what the text tower keeps for the backward pass, a policy's name, see
        `models.recompute`.
    """

    prompts: str = "drawn"
    normal_caption: str = "a photo of a flawless {category}"
    abnormal_caption: str = "a photo of a damaged {category}"
    caption_share: float = 0.0
    num_prompts: int = 3
    num_context: int = 5
    num_states: int = 5
    num_flow_steps: int = 10
    num_heads: int = 4
    layers: tuple[int, ...] = (6, 12, 18, 24)
    draws_train: int = 1
    draws_selection: int = 5
    draws_test: int = 10
    kl_weight: float = 0.01
    iad_logdet: str = "author"
    variance: str = "author"
    flow_constraint: str = "none"
    train_pairs: str = "one"
    reconstruction_weight: float = 0.0
    dice_background: bool = False
    isd_input: str = "pooled"
    checkpoint: str = ""
    image_head: str = "fused"
    iad_noise: str = "run"
    top_k: int = 2000
    top_k_small: int = 20
    small_categories: tuple[str, ...] = ()
    map_weight: float = 0.5
    sigma: float = 8.0
    image_minmax: str = "none"
    projection_init: str = "random"
    clip_act: str = "released"
    names: str = "released"
    shortcuts: bool = True
    cache_features: bool = True
    text_chunk: int = 64
    remat: str = "none"


def read_options(section: Mapping[str, Any]) -> Options:
    """Reads `config.bayes_pfl`, each key once.

    Raises:
      UserError: a key that is not an option, or a value out of range.
    """
    given = sections.given(section, Options._fields, "config.bayes_pfl")
    for name in ("layers", "small_categories"):
        if name in given:
            given[name] = tuple(given[name])
    options = Options(**given)
    for name, known in CHOICES.items():
        if getattr(options, name) not in known:
            raise UserError(
                f"config.bayes_pfl.{name}={getattr(options, name)!r}; choose one of "
                f"{known}"
            )
    for name in (
        *("num_prompts", "num_context", "num_states", "num_flow_steps", "num_heads"),
        *("draws_train", "draws_selection", "draws_test"),
        *("top_k", "top_k_small", "text_chunk"),
    ):
        if getattr(options, name) < 1:
            raise UserError(
                f"config.bayes_pfl.{name}={getattr(options, name)}; wanted 1 or more"
            )
    for name, high in (
        ("kl_weight", np.inf),
        ("reconstruction_weight", np.inf),
        ("sigma", np.inf),
        ("map_weight", 1.0),
        ("caption_share", 1.0),
    ):
        if not 0 <= getattr(options, name) <= high:
            raise UserError(
                f"config.bayes_pfl.{name}={getattr(options, name)}; wanted 0 to {high}"
            )
    _check_captions(options)
    _check_baseline(options)
    return options


def activation(options: Options) -> str:
    """Returns the activation of both towers, "" for that of the weights' config."""
    if options.clip_act != "released":
        return options.clip_act
    return "" if options.prompts == "captions" else "gelu"


def _check_captions(options: Options) -> None:
    """Raises UserError for a caption that names no category."""
    if options.prompts == "captions" and options.caption_share:
        raise UserError(
            f"config.bayes_pfl.caption_share={options.caption_share}, but with "
            "prompts='captions' there is nothing else; set it to 0"
        )
    if options.prompts != "captions" and not options.caption_share:
        return
    for caption in (options.normal_caption, options.abnormal_caption):
        if caption.count("{category}") != 1:
            raise UserError(
                f"config.bayes_pfl caption {caption!r}; wanted {{category}} once"
            )


def _check_baseline(options: Options) -> None:
    """Raises UserError for settings that a baseline without draws would not heed."""
    if options.prompts == "drawn":
        return
    for name, wanted in (
        ("draws_train", 1),
        ("draws_test", 1),
        ("reconstruction_weight", 0.0),
    ):
        if getattr(options, name) != wanted:
            raise UserError(
                f"config.bayes_pfl.{name}={getattr(options, name)}, but prompts="
                f"{options.prompts!r} draws nothing; set it to {wanted}"
            )
