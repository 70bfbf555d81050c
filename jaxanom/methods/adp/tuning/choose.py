"""Self-tuning: thousands of settings scored on synthetic images in one jitted grid.

Reconstructed from the abstract, which says that the detection pipeline is further
optimised on images drawn by the personalised model; what is tuned and by which
objective is ours. Nothing here has a parameter for real test images: the maps that come
in are of synthetic ones, and the method's `complete` step, which makes them, is given
parameters, frozen weights and a key.

J(h) = (image AUROC + pixel AP) / 2, for every source of anomalies alone, averaged; its
standard error comes from five folds. The best J less its error wins, unless the default
is within `standard_errors` of it. With 1, the usual rule, something replaces the
default in half of the runs on pure noise (tests), and what won on the development draw
lost on its test images (benchmarks/QUALITY.md); `config.adp` asks for 2.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.channels.fusion import Settings
from jaxanom.methods.adp.memory import crops
from jaxanom.methods.adp.predict import Detector
from jaxanom.methods.adp.tuning import grid as grids
from jaxanom.methods.adp.tuning import pairs

LEAST_IMAGES = 64
_STEPS_ALONG_SIMPLEX = {1: 1, 2: 10, 3: 6}

ChooseFn = Callable[[Settings, np.ndarray, int], "Tuned"]
"""(settings, objective per fold, number of images) -> what is kept, as `choose`."""


class Tuned(NamedTuple):
    """What the tuning chose.

    Attributes:
      settings: h.
      objective, default_objective: J of the chosen and of the default settings.
      standard_error: That of J at the best settings.
      optimism: mean over folds of J where it was chosen less J on the fold left out.
      kept_default: whether nothing was clearly better, see `choose`.
      num_settings, num_images: tried, and on how many images.
    """

    settings: Settings
    objective: float
    default_objective: float
    standard_error: float
    optimism: float
    kept_default: bool
    num_settings: int
    num_images: int


def simplex(num_channels: int) -> np.ndarray:
    """Lists weights on the simplex by equal steps, [W, C]."""
    steps = _STEPS_ALONG_SIMPLEX.get(num_channels, 4)
    if num_channels == 1:
        return np.ones((1, 1), np.float32)
    axes = np.stack(
        np.meshgrid(*[np.arange(steps + 1)] * num_channels, indexing="ij"), -1
    ).reshape(-1, num_channels)
    return (axes[axes.sum(1) == steps] / steps).astype(np.float32)


def grid(
    cell_counts: Sequence[int],
    default: Settings,
    has_language: bool,
    side: int,
    most: int = 4096,
    fits_memory: bool = True,
    seed: int = 0,
) -> Settings:
    """Lists settings, the default first; leaves have a leading axis [H].

    The whole product where it has at most `most` entries, else that many drawn from it.

    Args:
      cell_counts: variants of each channel.
      default: What `fusion.default` returned.
      has_language: without C1 there is no a_0, and lambda stays 0.
      side: Side of the maps; small ones know fewer shares.
      most: settings beside the default.
      fits_memory: False keeps what weighs the channels against each other (weights,
        lambda, cells but C1's), see `tune`.
      seed: Decides the draw.
    """
    weights = simplex(len(cell_counts))
    image_weights = fusion.IMAGE_WEIGHTS if has_language else (0.0,)
    shares = np.asarray(fusion.distinct_shares(side), np.float32)
    if not fits_memory:
        weights = np.asarray(default.weights)[None]
        image_weights = (float(default.image_weight),)
        cell_counts = (cell_counts[0] if has_language else 1,) + (1,) * (
            len(cell_counts) - 1
        )
    shape = (
        len(weights),
        *cell_counts,
        len(fusion.SIGMAS),
        len(shares),
        len(image_weights),
    )
    total = math.prod(shape)
    rng = np.random.default_rng(seed)
    places = np.arange(total) if total <= most else rng.choice(total, most, False)
    weight, *cells, sigma, share, image_weight = np.unravel_index(places, shape)
    listed = Settings(
        cells=np.stack(cells, 1).astype(np.int32),
        weights=weights[weight],
        sigma=np.asarray(fusion.SIGMAS, np.float32)[sigma],
        share=shares[share],
        image_weight=np.asarray(image_weights, np.float32)[image_weight],
    )
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([jnp.asarray(first)[None], rest]),
        default,
        listed,
    )


def tune(
    synthetic: grids.Synthetic,
    cell_counts: Sequence[int],
    default: Settings,
    has_language: bool,
    most: int = 4096,
    fits_memory: bool = True,
    choose_fn: ChooseFn | None = None,
) -> Tuned:
    """Chooses settings on synthetic images.

    Args:
      synthetic: The images of one category.
      cell_counts: variants of each channel, in the order of `synthetic.maps`.
      default: what to keep if nothing is clearly better.
      has_language: see `grid`.
      most: settings to try.
      fits_memory: whether the synthetic images were made of shots that the memory was
        not told of. With one shot they were not: all of them look familiar to it, and
        only smoothing, pooling and C1's temperature can be judged by them.
      choose_fn: The rule; None is `choose` with its default.

    Raises:
      UserError: fewer than 64 images: on 32 the chosen settings look about 0.09 AUROC
        better than they are (simulation in tests/methods/adp/test_tuning.py).
    """
    count = len(synthetic.source)
    if count < LEAST_IMAGES:
        raise UserError(
            f"{count} synthetic images; tuning on fewer than {LEAST_IMAGES} chooses "
            "noise: raise config.adp.num_synthetic or set config.adp.tune=False"
        )
    if len(np.unique(synthetic.source)) < 2 or grids.NORMAL not in synthetic.source:
        raise UserError("synthetic images hold no normal or no anomalous image")
    side = synthetic.maps.shape[-1]
    settings = grid(cell_counts, default, has_language, side, most, fits_memory)
    per_fold = np.asarray(grids.objectives(synthetic, cell_counts, settings))  # [H, F]
    return (choose_fn or choose)(settings, per_fold, count)


def choose(
    settings: Settings,
    per_fold: np.ndarray,
    num_images: int,
    standard_errors: float = 1.0,
) -> Tuned:
    """Keeps the default, the first of the settings, unless another is clearly better.

    Args:
      settings: leaves [H, ...].
      per_fold: [H, F] objective of every setting on every fold.
      num_images: for the record.
      standard_errors: by how many of its own the best must be ahead: 1 is the
        one-standard-error rule.
    """
    mean = per_fold.mean(1)
    error = per_fold.std(1, ddof=1) / math.sqrt(per_fold.shape[1])
    best = int(np.argmax(mean - error))
    kept = bool(mean[0] >= mean[best] - standard_errors * error[best])
    index = 0 if kept else best
    return Tuned(
        settings=jax.tree.map(lambda leaf: leaf[index], settings),
        objective=float(mean[index]),
        default_objective=float(mean[0]),
        standard_error=float(error[best]),
        optimism=optimism(per_fold),
        kept_default=kept,
        num_settings=len(mean),
        num_images=num_images,
    )


def optimism(per_fold: np.ndarray) -> float:
    """How much better the best looks where it was chosen than on a fold left out."""
    gaps = []
    for fold in range(per_fold.shape[1]):
        rest = np.delete(per_fold, fold, 1).mean(1)
        best = int(np.argmax(rest))
        gaps.append(rest[best] - per_fold[best, fold])
    return float(np.mean(gaps))


class Seen(NamedTuple):
    """Raw maps of every cell [M, N, m, m] and a_0 [M, Y] of M images."""

    maps: np.ndarray
    whole: np.ndarray


class Judged(NamedTuple):
    """Synthetic pairs of one category: the plan, what was accepted, and both as seen.

    Attributes:
      plan, verdict: See `pairs`.
      normal, anomalous: The accepted images as the channels see them.
    """

    plan: pairs.Plan
    verdict: pairs.Accepted
    normal: Seen
    anomalous: Seen


def tune_accepted(
    detector: Detector,
    limits: tuple[int, ChooseFn],
    drawn: Judged,
    calibration: fusion.Calibration,
    settings: Settings,
    fits_memory: bool,
) -> tuple[Tuned | None, dict[str, Any]]:
    """Tunes on what was accepted; too few images leave the settings as they are.

    Args:
      detector: Its channels were looked through.
      limits: (most settings to try, the rule that chooses among them).
      drawn: The synthetic pairs.
      calibration: Statistics of the channels.
      settings: The default.
      fits_memory: See `tune`.

    Returns:
      (what was chosen or None, facts for the record, which say why not).
    """
    plan, verdict, calm, odd = drawn
    count = len(calm.maps) + len(odd.maps)
    facts: dict[str, Any] = {
        "tuned": False,
        "accepted": verdict.rates,
        "num_accepted": count,
    }
    if count < LEAST_IMAGES or not len(odd.maps):
        reason = (
            f"{count} of {2 * len(plan.source)} synthetic images were accepted; wanted "
            f"{LEAST_IMAGES}, normal and anomalous: the settings stay the "
            "default; raise config.adp.num_synthetic"
        )
        return None, {**facts, "reason": reason}
    seen = Seen(*(np.concatenate(pair) for pair in zip(calm, odd, strict=True)))
    centre, spread = calibration.image_centre, calibration.image_spread
    side = detector.side
    masks = _hit(crops.cell_means(verdict.mask[verdict.anomalous], side))
    synthetic = grids.Synthetic(
        maps=fusion.standardised(np.moveaxis(seen.maps, 1, 0), calibration),
        whole=(seen.whole.T - centre[:, None]) / spread[:, None],
        masks=np.concatenate([np.zeros((len(calm.maps), side, side)), masks]),
        source=np.concatenate(
            [
                np.full(len(calm.maps), grids.NORMAL),
                plan.source[verdict.anomalous],
            ]
        ),
    )
    most, choose_fn = limits
    tuned = tune(
        synthetic,
        detector.cell_counts,
        settings,
        detector.has_language,
        most,
        fits_memory,
        choose_fn,
    )
    return tuned, {**facts, **describe(detector, tuned), "tuned": True}


def _hit(coverage: np.ndarray) -> np.ndarray:
    """Cells at least half covered; a region thinner than a cell keeps its fullest."""
    highest = coverage.max((1, 2), keepdims=True)
    return ((coverage >= 0.5) | ((coverage >= highest) & (highest > 0))).astype(
        np.float32
    )


def describe(detector: Detector, tuned: Tuned) -> dict[str, Any]:
    """Returns the choice as JSON values, its own optimism among them."""
    settings = tuned.settings
    return {
        **{
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in tuned._asdict().items()
            if name != "settings"
        },
        "channels": {
            channel.name: {
                "cell": channel.cells[int(settings.cells[n])],
                "weight": round(float(settings.weights[n]), 4),
            }
            for n, channel in enumerate(detector.channels)
        },
        "sigma": float(settings.sigma),
        "share": round(float(settings.share), 4),
        "image_weight": float(settings.image_weight),
    }
