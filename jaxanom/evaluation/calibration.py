"""A threshold on image scores from normal images alone."""

import math
from typing import NamedTuple

import numpy as np

from jaxanom.errors import UserError


class Threshold(NamedTuple):
    """Where an image starts to count as anomalous.

    Attributes:
      value: An image with a higher score is called anomalous.
      false_alarm_rate: Bound on the probability that a new normal image is, in (0, 1].
      num_normal: Normal images it rests on.
    """

    value: float
    false_alarm_rate: float
    num_normal: int


def from_normals(image_score: np.ndarray, false_alarm_rate: float = 0.05) -> Threshold:
    """Takes an order statistic of normal scores (split conformal prediction).

    With n normal images exchangeable with the next one, its score passes the k-th
    smallest of theirs with probability at most 1 - k / (n + 1), whatever the
    distribution (arXiv 1604.04173, section 2). Few images cannot promise a small rate:
    the highest score of n bounds it by 1 / (n + 1), and that is then what is returned.

    Args:
      image_score: [n], scores of normal images that nothing was trained on.
      false_alarm_rate: The bound that is aimed at, in (0, 1).

    Raises:
      UserError: No score, one that is no number, or a rate outside (0, 1).
    """
    values = np.sort(np.asarray(image_score, np.float64).ravel())
    if not 0 < false_alarm_rate < 1:
        raise UserError(f"false_alarm_rate={false_alarm_rate}; wanted one in (0, 1)")
    if not len(values) or not np.isfinite(values).all():
        raise UserError(
            f"{len(values)} normal scores, {int(np.isfinite(values).sum())} of them "
            "finite; a threshold needs at least one and no others"
        )
    count = len(values)
    # The product is rounded so that 20 * 0.95 is 19 and not a little more.
    rank = min(count, math.ceil(round((count + 1) * (1 - false_alarm_rate), 9)))
    return Threshold(float(values[rank - 1]), 1 - rank / (count + 1), count)
