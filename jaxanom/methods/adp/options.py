"""The section `config.adp`, read once."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxanom import sections
from jaxanom.errors import UserError
from jaxanom.methods.adp import objective, wording

CHANNELS = ("language", "reference", "reconstruct", "noise_gap", "unet_features")
GENERATIVE = CHANNELS[2:]
TOKENS = ("learned", "class_word")
_PLAIN = {"token": "class_word", "tune": False, "stage2_steps": 0}
BASELINES: dict[str, dict[str, Any]] = {
    "": {},
    # arXiv 2303.14814: text alone, then text and memory; no learning, no tuning.
    "winclip": {**_PLAIN, "channels": ("language",), "primary": "language"},
    "winclip_plus": {
        **_PLAIN,
        "channels": ("language", "reference"),
        "primary": "language",
    },
    # arXiv 2106.08265 with few shots and without a coreset: the nearest patch decides.
    "patch_bank": {**_PLAIN, "channels": ("reference",), "primary": "reference"},
}
"""What each value of `config.adp.baseline` sets; "" is ADP itself."""


class Options(NamedTuple):
    """Keys of `config.adp`; every one is a switch by which a reading can be corrected.

    Attributes:
      baseline: "" is ADP; see `BASELINES`.
      token: "learned", or "class_word" for the plain name (no S* anywhere).
      num_vectors: n_v, vectors of S*; 1 is plain textual inversion.
      prompts: set of phrases, of `wording.WORDINGS`.
      defect_words: extra anomalous phrases such as "{} with rust".
      pyramid, crop_jitter: see `crops.pyramid`.
      turns: quarter turns of the shots that are learnt from and remembered; (0, 1, 2,
        3) is for textures, (0,) where orientation may be the defect.
      batch_size, align_weight, state_weight, anchor_weight, prior_weight, temperature,
        templates_per_step, low_noise_bias, split_tokens: see `objective.Options`.
      channels: which of `CHANNELS` are computed.
      primary: channel that has the greatest weight by default, besides "reference".
      windows: sizes of C1's windows in patches; 1 is dense patches, for towers whose
        patch tokens are aligned with text.
      feature_tower: folder of MobileNetV2 weights for C2; "" is CLIP.
      feature_layers: CLIP's layer numbers, or the tower's layer names.
      feature_size: side of the images of that tower; 0 takes the data's.
      map_size: side m of the maps of all channels.
      sigma: default smoothing of maps in pixels of a 256 px map; 0 is none, for defects
        as fine as the cells.
      diffusion_size: side of the autoencoder's images; 0 takes what it was trained on.
      num_noises, walk_steps, gap_steps, compare_layers: see `generative.Options`.
      tune: self-tuning on synthetic images.
      num_synthetic: half of them normal.
      num_settings: most settings tried.
      standard_errors: by how many of its own the best of them must be ahead of the
        default, see `tuning.choose`.
      stage2_steps, stage2_weight: further steps on S* with synthetic defects; 0 is off.
    """

    baseline: str = ""
    token: str = "learned"
    num_vectors: int = 2
    prompts: str = "full"
    defect_words: tuple[str, ...] = ()
    pyramid: tuple[int, ...] = (1, 2, 4)
    crop_jitter: float = 0.05
    turns: tuple[int, ...] = (0,)
    batch_size: int = 4
    align_weight: float = 0.1
    state_weight: float = 0.1
    anchor_weight: float = 0.05
    prior_weight: float = 1e-4
    temperature: float = 0.07
    templates_per_step: int = 2
    low_noise_bias: bool = False
    split_tokens: bool = False
    channels: tuple[str, ...] = ("language", "reference")
    primary: str = "language"
    windows: tuple[int, ...] = (2, 3)
    feature_tower: str = ""
    feature_layers: tuple[Any, ...] = (12, 18, 24)
    feature_size: int = 0
    map_size: int = 32
    sigma: float = 4.0
    diffusion_size: int = 0
    num_noises: int = 2
    walk_steps: int = 10
    gap_steps: int = 16
    compare_layers: tuple[int, ...] = ()
    tune: bool = True
    num_synthetic: int = 256
    num_settings: int = 4096
    standard_errors: float = 2.0
    stage2_steps: int = 0
    stage2_weight: float = 0.1


def read(section: Mapping[str, Any]) -> Options:
    """Reads `config.adp`, each key once; a baseline overrides what it stands for.

    Raises:
      UserError: an unknown key or choice; names the key.
    """
    options = Options(**sections.given(section, Options._fields, "config.adp"))
    _check_choice("baseline", options.baseline, tuple(BASELINES))
    options = options._replace(**BASELINES[options.baseline])
    for name, value in options._asdict().items():
        if isinstance(getattr(Options(), name), tuple):
            options = options._replace(**{name: tuple(value)})
    _check(options)
    chosen = tuple(name for name in CHANNELS if name in options.channels)
    return options._replace(channels=chosen)


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
    for key, least in (
        ("num_vectors", 1),
        ("batch_size", 1),
        ("templates_per_step", 1),
        ("map_size", 2),
        ("walk_steps", 1),
        ("num_noises", 1),
        ("gap_steps", 2),
        ("stage2_steps", 0),
    ):
        if getattr(options, key) < least:
            raise UserError(
                f"config.adp.{key}={getattr(options, key)}; wanted at least {least}"
            )
    if options.tune and options.num_synthetic < 2:
        raise UserError(
            f"config.adp.num_synthetic={options.num_synthetic}; wanted at least 2, "
            "or config.adp.tune=False"
        )
    if options.standard_errors < 0:
        raise UserError(
            f"config.adp.standard_errors={options.standard_errors}; wanted at least 0"
        )
    if not 0 <= options.sigma < math.inf:
        raise UserError(f"config.adp.sigma={options.sigma}; wanted at least 0")
    if options.temperature <= 0:
        raise UserError(f"config.adp.temperature={options.temperature}; wanted > 0")
    if options.stage2_steps and not (options.tune and options.token == "learned"):
        raise UserError(
            f"config.adp.stage2_steps={options.stage2_steps} needs synthetic defects "
            "and a token: set config.adp.tune=True and config.adp.token='learned'"
        )


def of_objective(options: Options) -> objective.Options:
    """Returns what the inversion reads; stage 2 is off."""
    names = set(objective.Options._fields) - {"stage2_weight"}
    return objective.Options(**{name: getattr(options, name) for name in names})


def default_weights(options: Options) -> tuple[float, ...]:
    """Equal weights for the primary channel and the memory, none for the others.

    The first channel counts where neither is on.
    """
    weights = tuple(
        float(name in (options.primary, "reference")) for name in options.channels
    )
    return weights if any(weights) else (1.0, *weights[1:])
