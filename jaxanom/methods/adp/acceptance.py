"""Which synthetic pairs are fit to tune on.

A base is accepted if CLIP's state test calls its normal as normal as it calls real ones
and the normal's distance to the memory is at most 1.5 times the largest between shots.
An anomaly is accepted if its base is, and if its region changed at least twice as much
as the rest of the image; its effective mask is the region where something changed.
"""

from typing import NamedTuple

import numpy as np

from jaxanom.methods.adp import drawing, synthesis

DISTANCE_FACTOR = 1.5
CHANGE_FACTOR = 2.0
CHANGE_FLOOR = 0.04
"""Least mean absolute change of a pixel that counts as drawn, of [0, 1]."""
WHOLE_PROBABILITY = 0.5


class Accepted(NamedTuple):
    """Verdicts on N pairs.

    Attributes:
      normal, anomalous: [N] bool.
      mask: [N, H, W] uint8, effective masks of the anomalies.
      rates: {kind: share kept}, for the record; an anomaly is judged by its change.
    """

    normal: np.ndarray
    anomalous: np.ndarray
    mask: np.ndarray
    rates: dict[str, float]


def judge(
    rows: synthesis.Plan,
    drawn: drawing.Drawn,
    probability: np.ndarray,
    distance: np.ndarray,
    probability_limit: float,
    distance_limit: float,
) -> Accepted:
    """Applies the filters.

    Args:
      rows, drawn: the plan and what came of it.
      probability: [N], CLIP's P(anomalous) of the normals.
      distance: [N], largest C2 distance in the normals.
      probability_limit: largest probability among real normals; at least one half.
      distance_limit: largest distance among real normals left out of the memory.
    """
    inside = rows.region > 0
    mask = (inside & (drawn.change > CHANGE_FLOOR)).astype(np.uint8)
    within, outside = _mean(drawn.change, inside), _mean(drawn.change, ~inside)
    changed = (within >= CHANGE_FACTOR * outside) & (mask.sum((1, 2)) > 0)
    calm = probability <= max(WHOLE_PROBABILITY, probability_limit)
    normal = calm & (distance <= DISTANCE_FACTOR * distance_limit)
    rates = {}
    for number, name in enumerate(synthesis.BASES):
        chosen = rows.kind == number
        if chosen.any():
            rates[f"normal: {name}"] = round(float(normal[chosen].mean()), 4)
    for number, name in enumerate(synthesis.ANOMALIES, start=1):
        chosen = rows.source == number
        if chosen.any():
            rates[f"anomaly: {name}"] = round(float(changed[chosen].mean()), 4)
    return Accepted(normal, normal & changed, mask, rates)


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return (values * where).sum((1, 2)) / np.maximum(where.sum((1, 2)), 1)
