"""Self-tuning: thousands of settings scored on synthetic images in one jitted grid.

Reconstructed from the abstract, which says that the detection pipeline is further
optimised on images drawn by the personalised model; what is tuned and by which
objective is ours. Nothing here has a parameter for real test images: the maps that come
in are of synthetic ones, and the method's `complete` step, which makes them, is given
parameters, frozen weights and a key.

J(h) = (image AUROC + pixel AP) / 2, for every source of anomalies alone, averaged; its
standard error comes from five folds. The best J less its error wins, unless the default
is within one standard error of it (one-standard-error rule).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.adp import fusion
from jaxanom.methods.adp.fusion import Settings
from jaxanom.types import Array

LEAST_IMAGES = 64
NUM_FOLDS = 5
NUM_BINS = 1024
NORMAL = 0
"""Source number of normal images; anomalies count from 1."""
GRID_BATCH = 8
_STEPS_ALONG_SIMPLEX = {1: 1, 2: 10, 3: 6}


class Synthetic(NamedTuple):
    """Synthetic images as the channels see them.

    Attributes:
      maps: [N, M, m, m] standardised, every cell of every channel, channel by channel.
      whole: [Y, M] standardised a_0 at each temperature.
      masks: [M, m, m] of 0 and 1.
      source: [M] int, `NORMAL` or the source of the anomaly.
    """

    maps: np.ndarray
    whole: np.ndarray
    masks: np.ndarray
    source: np.ndarray


class Tuned(NamedTuple):
    """What the tuning chose.

    Attributes:
      settings: h.
      objective: J of the chosen settings, of `default_objective` the default's.
      standard_error: of J at the best settings.
      optimism: mean over folds of J where it was chosen less J on the fold left out.
      kept_default: whether the default was within one standard error.
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
    most: int = 4096,
    seed: int = 0,
) -> Settings:
    """Lists settings, the default first; leaves have a leading axis [H].

    The whole product where it has at most `most` entries, else that many drawn from it.

    Args:
      cell_counts: variants of each channel.
      default: of `fusion.default`.
      has_language: without C1 there is no a_0, and lambda stays 0.
      most: settings beside the default.
      seed: of the draw.
    """
    weights = simplex(len(cell_counts))
    image_weights = fusion.IMAGE_WEIGHTS if has_language else (0.0,)
    shape = (
        len(weights),
        *cell_counts,
        len(fusion.SIGMAS),
        len(fusion.SHARES),
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
        share=np.asarray(fusion.SHARES, np.float32)[share],
        image_weight=np.asarray(image_weights, np.float32)[image_weight],
    )
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([jnp.asarray(first)[None], rest]),
        default,
        listed,
    )


def folds(source: np.ndarray, num_folds: int = NUM_FOLDS) -> np.ndarray:
    """Deals images to folds, every source evenly: [M] int."""
    found = np.zeros(len(source), np.int32)
    for number in np.unique(source):
        rows = np.flatnonzero(source == number)
        found[rows] = np.arange(len(rows)) % num_folds
    return found


def tune(
    synthetic: Synthetic,
    cell_counts: Sequence[int],
    default: Settings,
    has_language: bool,
    most: int = 4096,
) -> Tuned:
    """Chooses settings on synthetic images.

    Args:
      synthetic: of one category.
      cell_counts: variants of each channel, in the order of `synthetic.maps`.
      default: what to keep if nothing is clearly better.
      has_language: see `grid`.
      most: settings to try.

    Raises:
      ValueError: fewer than 64 images: on 32 the chosen settings look about 0.09 AUROC
        better than they are (simulation in tests/methods/adp/test_tuning.py).
    """
    count = len(synthetic.source)
    if count < LEAST_IMAGES:
        raise ValueError(
            f"{count} synthetic images; tuning on fewer than {LEAST_IMAGES} chooses "
            "noise: raise config.adp.num_synthetic or set config.adp.tune=False"
        )
    if len(np.unique(synthetic.source)) < 2 or NORMAL not in synthetic.source:
        raise ValueError("synthetic images hold no normal or no anomalous image")
    settings = grid(cell_counts, default, has_language, most)
    per_fold = np.asarray(objectives(synthetic, cell_counts, settings))  # [H, F]
    return choose(settings, per_fold, count)


def choose(settings: Settings, per_fold: np.ndarray, num_images: int) -> Tuned:
    """Applies the one-standard-error rule; the default is the first of the settings.

    Args:
      settings: leaves [H, ...].
      per_fold: [H, F] objective of every setting on every fold.
      num_images: for the record.
    """
    mean = per_fold.mean(1)
    error = per_fold.std(1, ddof=1) / math.sqrt(per_fold.shape[1])
    best = int(np.argmax(mean - error))
    kept = bool(mean[0] >= mean[best] - error[best])
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


def objectives(
    synthetic: Synthetic, cell_counts: Sequence[int], settings: Settings
) -> Array:
    """Scores all settings in one compiled program: J on every fold, [H, F]."""
    fold, source = folds(synthetic.source), np.asarray(synthetic.source)
    num_sources = int(source.max())
    starts = np.cumsum([0, *cell_counts[:-1]])
    positive, negative = (
        np.stack([(fold == f) & chosen for f in range(NUM_FOLDS) for chosen in groups])
        for groups in (
            [source == s for s in range(1, num_sources + 1)],
            [source == NORMAL],
        )
    )
    smoothed = np.stack([_smoothed(synthetic.maps, sigma) for sigma in fusion.SIGMAS])
    return _objectives(
        jnp.asarray(smoothed),
        jnp.asarray(synthetic.whole),
        jnp.asarray(synthetic.masks),
        jnp.asarray(source * NUM_FOLDS + fold),
        jnp.asarray(positive.reshape(NUM_FOLDS, num_sources, -1), jnp.float32),
        jnp.asarray(negative, jnp.float32),
        jnp.asarray(starts),
        settings,
    )


def _smoothed(maps: np.ndarray, sigma: float) -> np.ndarray:
    # Smoothing is linear: done once per width, not once per setting.
    matrix = np.asarray(fusion.smoothing(maps.shape[-1], jnp.float32(sigma)))
    return np.einsum("ik,nmkl,jl->nmij", matrix, maps, matrix, optimize=True)


@jax.jit
def _objectives(smoothed, whole, masks, group, positive, negative, starts, settings):
    """J of every setting, [H, F].

    Args:
      smoothed: [3, N, M, m, m]; whole: [Y, M]; masks: [M, m, m].
      group: [M], source * F + fold.
      positive: [F, S, M] and negative: [F, M], indicators.
      starts: [C], first cell of every channel.
      settings: leaves [H, ...].
    """
    sigmas = jnp.asarray(fusion.SIGMAS)
    num_images = masks.shape[0]
    num_folds, num_sources = positive.shape[:2]
    # The first channel's cell is the temperature of a_0 where C1 is on.
    num_temperatures = whole.shape[0]

    def one(row):
        maps = smoothed[jnp.argmin(jnp.abs(sigmas - row.sigma))]
        values = jnp.einsum("c,cmij->mij", row.weights, maps[starts + row.cells])
        per_image = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_images, *leaf.shape)), row
        )
        own = whole[jnp.minimum(row.cells[0], num_temperatures - 1)]
        ranked = fusion.image_score(values, own, per_image)
        auroc = pair_auroc(ranked, positive, negative)  # [F, S]
        ap = source_precision(values, masks, group, num_sources, num_folds)
        return jnp.mean((auroc + ap) / 2, axis=1)

    return jax.lax.map(one, settings, batch_size=GRID_BATCH)


def pair_auroc(values: Array, positive: Array, negative: Array) -> Array:
    """AUROC of several groups at once, exact with ties.

    Args:
      values: [M].
      positive: [F, S, M] indicators; negative: [F, M].

    Returns:
      [F, S]; 0.5 where a group has no positive or no negative.
    """
    above = (values[:, None] > values).astype(jnp.float32)
    above = above + 0.5 * (values[:, None] == values)
    won = jnp.einsum("fsp,pn,fn->fs", positive, above, negative)
    pairs = positive.sum(-1) * negative.sum(-1)[:, None]
    return jnp.where(pairs > 0, won / jnp.maximum(pairs, 1), 0.5)


def source_precision(
    values: Array, masks: Array, group: Array, num_sources: int, num_folds: int
) -> Array:
    """Pixel AP of each source's anomalies among themselves and the normals, per fold.

    From histograms of 1024 equal bins between the least and greatest value; values in
    one bin count as tied.

    Args:
      values, masks: [M, m, m].
      group: [M], source * F + fold.
      num_sources, num_folds: S, F.

    Returns:
      [F, S].
    """
    low, high = jnp.min(values), jnp.max(values)
    scaled = (values - low) / jnp.maximum(high - low, 1e-12)
    bins = jnp.minimum((scaled * NUM_BINS).astype(jnp.int32), NUM_BINS - 1)
    is_defect = (masks > 0.5).astype(jnp.int32)
    index = (group[:, None, None] * 2 + is_defect) * NUM_BINS + bins
    size = (num_sources + 1) * num_folds * 2 * NUM_BINS
    counts = jnp.zeros(size, jnp.float32).at[index.ravel()].add(1.0)
    counts = counts.reshape(num_sources + 1, num_folds, 2, NUM_BINS)
    hits = counts[1:, :, 1]  # [S, F, bins]
    misses = counts[1:, :, 0] + counts[:1, :, 0]
    return average_precision(hits, misses).T


def average_precision(positives: Array, negatives: Array) -> Array:
    """AP of histograms [..., bins], lowest bin first; steps as in `metrics.ranking`."""
    hits = jnp.cumsum(positives[..., ::-1], axis=-1)
    flagged = hits + jnp.cumsum(negatives[..., ::-1], axis=-1)
    precision = hits / jnp.maximum(flagged, 1)
    total = jnp.maximum(hits[..., -1], 1)
    return jnp.sum(positives[..., ::-1] * precision, axis=-1) / total
