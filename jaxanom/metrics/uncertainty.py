"""Does a detector know where it is wrong? Its spread as a detector of its own errors.

A pixel is wrong where `anomaly_map` > threshold and the mask disagree. Wrong pixels are
the positives of a ranking by `anomaly_map_std`; beside it stands the ranking by
nearness to the threshold, which the mean map alone gives: what the spread adds is the
difference.
"""

import jax.numpy as jnp

from jaxanom.contracts import Metric
from jaxanom.metrics import ranking
from jaxanom.types import Batch, Predictions

THRESHOLD = 0.5
"""Of maps that are probabilities: more abnormal than normal."""


def error_detection(
    threshold: float = THRESHOLD, prefix: str = "pixel_error"
) -> Metric:
    """AUROC of the spread, and of nearness to the threshold, on wrong pixels.

    Batches without a mask and detectors without `anomaly_map_std` count nowhere, and a
    detector without any has no result.

    Args:
      threshold: A pixel with a higher value is called anomalous.
      prefix: Results are `<prefix>_auroc`, `<prefix>_auroc_of_mean` and
        `<prefix>_rate`, the share of wrong pixels.
    """
    ranked = ranking.histogram()

    def update(state, predictions: Predictions, batch: Batch):
        if predictions.anomaly_map_std is None or batch.get("mask") is None:
            return state
        anomaly_map = jnp.asarray(predictions.anomaly_map)
        wrong = (anomaly_map > threshold) != (jnp.asarray(batch["mask"]) >= 0.5)
        marked = {**batch, "mask": wrong.astype(jnp.float32)}
        by = (predictions.anomaly_map_std, -jnp.abs(anomaly_map - threshold))
        before = state or (ranked.init(), ranked.init())
        return tuple(
            ranked.update(one, predictions._replace(anomaly_map=values), marked)
            for one, values in zip(before, by, strict=True)
        )

    def finalize(state) -> dict[str, float]:
        if not state:
            return {}
        spread, nearness = map(ranking.count_histogram, state)
        wrong, right = int(spread.positives.sum()), int(spread.negatives.sum())
        return {
            f"{prefix}_auroc": ranking.auroc(spread),
            f"{prefix}_auroc_of_mean": ranking.auroc(nearness),
            f"{prefix}_rate": wrong / (wrong + right),
        }

    return Metric(tuple, update, finalize)
