"""How close generated images are to real ones, and how different from one another.

Everything is a function of features or distances that the caller provides, so no
network is assumed; numbers from different feature networks do not compare. Sums are in
float64: the Frechet distance subtracts numbers that are nearly equal.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxanom.errors import UserError

ExtractFn = Callable[[np.ndarray], Any]
"""images [B, H, W, 3] in [0, 1] -> features [B, D]."""
DistanceFn = Callable[[np.ndarray, np.ndarray], Any]
"""Two stacks of images [B, H, W, 3] -> distances [B] of the pairs."""

BATCH_SIZE = 32


def extract_features(
    extract: ExtractFn, images: np.ndarray, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Runs a feature network over images in batches of one size.

    Args:
      extract: the network; always called with `batch_size` images.
      images: [N, H, W, 3] in [0, 1].
      batch_size: the last batch is padded by repetition, so that nothing recompiles.

    Returns:
      [N, D] float64.
    """
    _need(len(images), 1, "images")
    return _in_batches(lambda rows: extract(images[rows]), len(images), batch_size)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features.

    arXiv 1706.08500: |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), C with N - 1.
    The trace of the root is computed from C_1^(1/2) C_2 C_1^(1/2), which is symmetric:
    no complex root, also when there are fewer samples than dimensions. With few samples
    the distance is biased upwards; compare only at equal numbers.

    Args:
      first: [N, D], N >= 2.
      second: [M, D], M >= 2.

    Returns:
      The squared distance, >= 0.
    """
    first, second = _pair(first, second)
    gap = first.mean(0) - second.mean(0)
    cov_first = np.atleast_2d(np.cov(first, rowvar=False))
    cov_second = np.atleast_2d(np.cov(second, rowvar=False))
    values, vectors = np.linalg.eigh(cov_first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_second @ root)
    shared = np.sqrt(np.maximum(product, 0)).sum()
    total = gap @ gap + np.trace(cov_first) + np.trace(cov_second) - 2 * shared
    return float(max(total, 0))


def kernel_distance(
    first: np.ndarray,
    second: np.ndarray,
    num_subsets: int = 1,
    subset_size: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Squared maximum mean discrepancy under (x.y / D + 1)^3, unbiased.

    arXiv 1801.01401 (KID). Unbiased at every sample size, so it may be negative.

    Args:
      first: [N, D], N >= 2.
      second: [M, D], M >= 2.
      num_subsets: the estimate is the mean over so many random subsets.
      subset_size: samples drawn from each side without repetition; all by default.
      seed: of the draws.

    Returns:
      Mean and standard deviation over subsets; the latter is 0 for one subset.
    """
    first, second = _pair(first, second)
    largest = min(len(first), len(second))
    if subset_size is not None and not 2 <= subset_size <= largest:
        raise UserError(f"subset_size={subset_size}; choose 2 to {largest}")
    rng = np.random.default_rng(seed)
    estimates = []
    for _ in range(num_subsets):
        x, y = first, second
        if subset_size is not None:
            x = rng.choice(first, subset_size, replace=False)
            y = rng.choice(second, subset_size, replace=False)
        estimates.append(_discrepancy(x, y))
    return float(np.mean(estimates)), float(np.std(estimates))


def cluster_diversity(
    generated: np.ndarray,
    real: np.ndarray,
    distance: DistanceFn,
    max_per_cluster: int = 200,
    batch_size: int = BATCH_SIZE,
) -> dict[str, float]:
    """Diversity among generated images that resemble the same real image.

    With the LPIPS distance this is IC-LPIPS as used for defect generation (arXiv
    2303.02389): every generated image joins the nearest real one; distances are
    averaged inside each cluster, then over clusters. Mere copies of the few training
    defects get 0, though the set as a whole looks diverse.

    Args:
      generated: [N, H, W, 3] in [0, 1].
      real: [M, H, W, 3], the training defects.
      distance: symmetric distance of paired images.
      max_per_cluster: later members are left out; bounds the number of pairs.
      batch_size: pairs a call.

    Returns:
      `cluster_diversity`, higher is more diverse, NaN if no cluster has two members;
      `nearest_distance`, the mean distance to the nearest real image, near 0 when
      training images are copied; `num_clusters` with at least two members.
    """
    _need(len(generated), 1, "generated images")
    _need(len(real), 1, "real images")

    def distances(left: np.ndarray, right: np.ndarray, others: np.ndarray):
        def call(rows: np.ndarray) -> Any:
            return distance(generated[left[rows]], others[right[rows]])

        return _in_batches(call, len(left), batch_size)

    left, right = (grid.ravel() for grid in np.indices((len(generated), len(real))))
    to_real = distances(left, right, real).reshape(len(generated), len(real))
    nearest = to_real.argmin(axis=1)
    inside = []
    for centre in range(len(real)):
        members = np.flatnonzero(nearest == centre)[:max_per_cluster]
        if len(members) >= 2:
            left, right = np.triu_indices(len(members), k=1)
            inside.append(distances(members[left], members[right], generated).mean())
    return {
        "cluster_diversity": float(np.mean(inside)) if inside else float("nan"),
        "nearest_distance": float(to_real.min(axis=1).mean()),
        "num_clusters": float(len(inside)),
    }


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    def gram(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal_mean(matrix: np.ndarray) -> float:
        size = len(matrix)
        return (matrix.sum() - np.trace(matrix)) / (size * (size - 1))

    within = off_diagonal_mean(gram(x, x)) + off_diagonal_mean(gram(y, y))
    return float(within - 2 * gram(x, y).mean())


def _in_batches(
    call: Callable[[np.ndarray], Any], number: int, batch_size: int
) -> np.ndarray:
    """Calls with row numbers, always `batch_size` of them, and joins the results."""
    parts = []
    for start in range(0, number, batch_size):
        rows = np.arange(start, start + batch_size)
        result = np.asarray(call(np.minimum(rows, number - 1)), np.float64)
        parts.append(result[: number - start])
    return np.concatenate(parts)


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.asarray(part, np.float64) for part in (first, second))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(
            f"features have shapes {first.shape} and {second.shape}; wanted [N, D] and "
            "[M, D] from the same network"
        )
    _need(min(len(first), len(second)), 2, "samples on each side")
    return first, second


def _need(number: int, least: int, what: str) -> None:
    if number < least:
        raise UserError(f"{number} {what}; at least {least} needed")
