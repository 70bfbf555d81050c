"""J of thousands of settings on synthetic images, in one compiled program.

Image AUROC is exact, from all pairs; pixel AP comes from histograms of 1024 bins, whose
error is below 0.005. Sources and folds are counted apart in one pass over the pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.channels.fusion import Settings
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array

NUM_FOLDS = 5
NUM_BINS = 1024
NORMAL = 0
"""Source number of normal images; anomalies count from 1."""
GRID_BATCH = 8


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


def folds(source: np.ndarray, num_folds: int = NUM_FOLDS) -> np.ndarray:
    """Deals images to folds, every source evenly: [M] int."""
    fold = np.zeros(len(source), np.int32)
    for number in np.unique(source):
        rows = np.flatnonzero(source == number)
        fold[rows] = np.arange(len(rows)) % num_folds
    return fold


def objectives(
    synthetic: Synthetic, cell_counts: Sequence[int], settings: Settings
) -> Array:
    """Scores all settings in one compiled program: J on every fold, [H, F]."""
    fold, source = folds(synthetic.source), np.asarray(synthetic.source)
    num_sources = int(source.max())
    starts = np.cumsum([0, *cell_counts[:-1]])
    positive, negative = (
        np.stack([(fold == f) & own for f in range(NUM_FOLDS) for own in groups])
        for groups in (
            [source == s for s in range(1, num_sources + 1)],
            [source == NORMAL],
        )
    )
    sigmas = np.unique(settings.sigma)
    smoothed = np.stack([_smoothed(synthetic.maps, sigma) for sigma in sigmas])
    return _objectives(
        jnp.asarray(synthetic.maps),
        jnp.asarray(smoothed),
        jnp.asarray(synthetic.whole),
        jnp.asarray(synthetic.masks),
        jnp.asarray(source * NUM_FOLDS + fold),
        jnp.asarray(positive.reshape(NUM_FOLDS, num_sources, -1), jnp.float32),
        jnp.asarray(negative, jnp.float32),
        jnp.asarray(starts),
        jnp.asarray(sigmas),
        settings,
    )


def _smoothed(maps: np.ndarray, sigma: float) -> np.ndarray:
    # Smoothing is linear: done once per width, not once per setting.
    matrix = np.asarray(fusion.smoothing(maps.shape[-1], jnp.float32(sigma)))
    return np.einsum("ik,nmkl,jl->nmij", matrix, maps, matrix, optimize=True)


@jax.jit
@meshes.bound
def _objectives(
    maps, smoothed, whole, masks, group, positive, negative, starts, sigmas, settings
):
    """J of every setting, [H, F].

    Args:
      maps: [N, M, m, m]; smoothed: [W, N, M, m, m], by every width.
      whole: [Y, M]; masks: [M, m, m].
      group: [M], source * F + fold.
      positive: [F, S, M] and negative: [F, M], indicators.
      starts: [C], first cell of every channel.
      sigmas: [W], the widths.
      settings: leaves [H, ...].
    """
    flat = smoothed.reshape(-1, *smoothed.shape[2:])
    num_images = masks.shape[0]
    num_folds, num_sources = positive.shape[:2]
    # The first channel's cell is the temperature of a_0 where C1 is on.
    num_temperatures = whole.shape[0]

    def one(row):
        width = jnp.argmin(jnp.abs(sigmas - row.sigma))

        # Zeros for the cells left out: a product with all of them, as a few settings
        # share it, takes half the time of gathering C maps for each.
        def fused(array, cells):
            weights = jnp.zeros(len(array)).at[cells].add(row.weights)
            return jnp.einsum("n,nmij->mij", weights, array)

        cells = starts + row.cells
        values = fused(flat, width * len(maps) + cells)
        per_image = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_images, *leaf.shape)), row
        )
        own = whole[jnp.minimum(row.cells[0], num_temperatures - 1)]
        ranked = fusion.image_score(fused(maps, cells), own, per_image)
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
