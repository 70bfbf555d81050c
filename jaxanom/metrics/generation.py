"""How close generated images are to real ones, and how different from one another.

Everything is a function of features or distances that the caller provides, so no
network is assumed; numbers from different feature networks do not compare. Sums are in
float64: the Frechet distance subtracts numbers that are nearly equal.
"""

import numpy as np
from scipy import spatial

from jaxanom.errors import UserError


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to [N, D] and [M, D] features.

    arXiv 1706.08500: |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), C with N - 1.
    With C = R^T R, the trace of the root is the sum of singular values of R_1 R_2^T: no
    complex root, and no matrix of D x D where there are fewer samples than dimensions.
    With few samples the distance is biased upwards; compare only at equal numbers, at
    least 2.
    """
    first, second = _pair(first, second)
    gap = first.mean(0) - second.mean(0)
    roots = [
        np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r")
        for x in (first, second)
    ]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    total = gap @ gap + sum((root**2).sum() for root in roots) - 2 * shared
    return float(max(total, 0))


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared maximum mean discrepancy under (x.y / D + 1)^3 of [N, D] and [M, D].

    arXiv 1801.01401 (KID), on all samples. Unbiased at every sample size from 2 on, so
    it may be negative.
    """
    first, second = _pair(first, second)

    def gram(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def off_diagonal_mean(matrix: np.ndarray) -> float:
        size = len(matrix)
        return (matrix.sum() - np.trace(matrix)) / (size * (size - 1))

    within = sum(off_diagonal_mean(gram(x, x)) for x in (first, second))
    return float(within - 2 * gram(first, second).mean())


def precision_recall(
    generated: np.ndarray, real: np.ndarray, neighbours: int = 3
) -> tuple[float, float]:
    """Precision and recall of [N, D] generated against [M, D] real features.

    arXiv 1904.06991, section 2: a set covers what lies no further from one of its
    samples than the sample's k-th nearest neighbour in the set. Precision is the share
    of generated samples that the real set covers, recall the other way round.

    Args:
      generated, real: At least k + 1 samples each.
      neighbours: The k above.
    """
    generated, real = _pair(generated, real, neighbours + 1)

    def covered(samples: np.ndarray, by: np.ndarray) -> float:
        reach = np.sort(distances(by, by), axis=1)[:, neighbours]  # 0 is the sample
        return float((distances(samples, by) <= reach).any(1).mean())

    return covered(generated, real), covered(real, generated)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the Euclidean distances [N, M] of [N, D] to [M, D] features, float64."""
    return spatial.distance.cdist(first, second)


def cluster_diversity(
    to_real: np.ndarray, among: np.ndarray, max_per_cluster: int = 200
) -> float:
    """Diversity among generated images that resemble the same real image.

    With the LPIPS distance this is IC-LPIPS as used for defect generation (arXiv
    2303.02389): every generated image joins the nearest real one; distances are
    averaged inside each cluster, then over clusters. Mere copies of the few training
    defects get 0, though the set as a whole looks diverse.

    Args:
      to_real: [N, M], distances of generated images to the training defects.
      among: [N, N], distances among the generated images.
      max_per_cluster: Later members are left out.

    Returns:
      Higher is more diverse; NaN if no cluster has two members.
    """
    nearest = to_real.argmin(axis=1)
    inside = []
    for centre in range(to_real.shape[1]):
        members = np.flatnonzero(nearest == centre)[:max_per_cluster]
        if len(members) >= 2:
            left, right = np.triu_indices(len(members), k=1)
            inside.append(among[members[left], members[right]].mean())
    return float(np.mean(inside)) if inside else float("nan")


def _pair(
    first: np.ndarray, second: np.ndarray, least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.asarray(part, np.float64) for part in (first, second))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(
            f"features have shapes {first.shape} and {second.shape}; wanted [N, D] and "
            "[M, D] from the same network"
        )
    if min(len(first), len(second)) < least:
        raise UserError(
            f"{len(first)} and {len(second)} samples; at least {least} needed on each "
            "side"
        )
    return first, second
