"""Which synthetic images are fit to tune on.

A normal is accepted if CLIP's state test calls it as normal as it calls real ones and
its distance to the memory is at most 1.5 times the largest between shots. An anomaly is
accepted if its region changed at least twice as much as the rest of the image; its
effective mask is the region where something changed.
"""

from typing import NamedTuple

import numpy as np

from jaxanom.methods.adp import synthesis

DISTANCE_FACTOR = 1.5
CHANGE_FACTOR = 2.0
CHANGE_FLOOR = 0.04
"""Least mean absolute change of a pixel that counts as drawn, of [0, 1]."""
WHOLE_PROBABILITY = 0.5


class Accepted(NamedTuple):
    """Verdicts on N drawn images.

    Attributes:
      kept: [N] bool.
      mask: [N, H, W] uint8, effective masks; zeros for normals.
      rates: {kind: share kept}, for the record.
    """

    kept: np.ndarray
    mask: np.ndarray
    rates: dict[str, float]


def judge(
    rows: synthesis.Plan,
    drawn: synthesis.Drawn,
    probability: np.ndarray,
    distance: np.ndarray,
    probability_limit: float,
    distance_limit: float,
) -> Accepted:
    """Applies the filters.

    Args:
      rows, drawn: the plan and what came of it.
      probability: [N], CLIP's P(anomalous) of the whole image.
      distance: [N], largest C2 distance in the image.
      probability_limit: largest probability among real normals; at least one half.
      distance_limit: largest distance among real normals left out of the memory.
    """
    inside = rows.region > 0
    mask = (inside & (drawn.change > CHANGE_FLOOR)).astype(np.uint8)
    is_normal = rows.source == 0
    mask[is_normal] = 0
    within = _mean(drawn.change, inside)
    outside = _mean(drawn.change, ~inside)
    changed = (within >= CHANGE_FACTOR * outside) & (mask.sum((1, 2)) > 0)
    calm = probability <= max(WHOLE_PROBABILITY, probability_limit)
    near = distance <= DISTANCE_FACTOR * distance_limit
    kept = np.where(is_normal, calm & near, changed)
    kinds = np.array(rows.kind)
    rates = {
        str(kind): round(float(kept[kinds == kind].mean()), 4)
        for kind in dict.fromkeys(rows.kind)
    }
    return Accepted(kept, mask, rates)


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return (values * where).sum((1, 2)) / np.maximum(where.sum((1, 2)), 1)
