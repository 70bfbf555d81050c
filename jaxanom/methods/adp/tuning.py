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
lost on its test images (README); `config.adp` asks for 2.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.methods.adp import fusion, grid_objective
from jaxanom.methods.adp.fusion import Settings

LEAST_IMAGES = 64
_STEPS_ALONG_SIMPLEX = {1: 1, 2: 10, 3: 6}


class Tuned(NamedTuple):
    """What the tuning chose.

    Attributes:
      settings: h.
      objective: J of the chosen settings, of `default_objective` the default's.
      standard_error: of J at the best settings.
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
      default: of `fusion.default`.
      has_language: without C1 there is no a_0, and lambda stays 0.
      side: of the maps; small ones know fewer shares.
      most: settings beside the default.
      fits_memory: False keeps what weighs the channels against each other (weights,
        lambda, cells but C1's), see `tune`.
      seed: of the draw.
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
    chosen = np.arange(total) if total <= most else rng.choice(total, most, False)
    weight, *cells, sigma, share, image_weight = np.unravel_index(chosen, shape)
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
    synthetic: grid_objective.Synthetic,
    cell_counts: Sequence[int],
    default: Settings,
    has_language: bool,
    most: int = 4096,
    fits_memory: bool = True,
    standard_errors: float = 1.0,
) -> Tuned:
    """Chooses settings on synthetic images.

    Args:
      synthetic: of one category.
      cell_counts: variants of each channel, in the order of `synthetic.maps`.
      default: what to keep if nothing is clearly better.
      has_language: see `grid`.
      most: settings to try.
      fits_memory: whether the synthetic images were made of shots that the memory was
        not told of. With one shot they were not: all of them look familiar to it, and
        only smoothing, pooling and C1's temperature can be judged by them.
      standard_errors: see `choose`.

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
    if (
        len(np.unique(synthetic.source)) < 2
        or grid_objective.NORMAL not in synthetic.source
    ):
        raise UserError("synthetic images hold no normal or no anomalous image")
    side = synthetic.maps.shape[-1]
    settings = grid(cell_counts, default, has_language, side, most, fits_memory)
    per_fold = np.asarray(
        grid_objective.objectives(synthetic, cell_counts, settings)
    )  # [H, F]
    return choose(settings, per_fold, count, standard_errors)


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
