"""How good class probabilities are: accuracy, likelihood, calibration.

Calibration error says how far confidence is from accuracy on these images; a small one
does not make the spread of a posterior right.
"""

from typing import NamedTuple

import numpy as np

from jaxanom.contracts import Metric
from jaxanom.errors import UserError
from jaxanom.types import Batch, Predictions

NUM_BINS = 15


NAMES = ("accuracy", "nll", "ece", "mutual_information")


class Answers(NamedTuple):
    """State of `exact`: one entry per valid image.

    Attributes:
      hits: [N] bool, the most probable class is the target.
      confidence: [N] float64, its probability.
      log_likelihood: [N] float64, log of the target's probability.
      disagreement: [N] float64, mutual information between class and particle.
    """

    hits: np.ndarray
    confidence: np.ndarray
    log_likelihood: np.ndarray
    disagreement: np.ndarray


def exact(target: str) -> Metric:
    """Accuracy, NLL in nats, calibration error and mutual information of images.

    Args:
      target: The batch entry that holds the class, [B] int.
    """

    def init() -> Answers:
        return Answers(np.zeros(0, bool), *(np.zeros(0) for _ in range(3)))

    def update(state: Answers, predictions: Predictions, batch: Batch) -> Answers:
        valid = np.asarray(batch["valid"], bool)
        truth = np.asarray(batch[target])[valid]
        probability = np.asarray(predictions.classes.probability, np.float64)[valid]
        if np.isnan(probability).any():
            raise UserError("a class probability is NaN; the parameters are damaged")
        rows = np.arange(len(truth))
        # A float32 probability of 0 stands for one below its smallest number.
        floor = np.finfo(np.float32).tiny
        answers = Answers(
            probability.argmax(-1) == truth,
            probability.max(-1),
            np.log(np.maximum(probability[rows, truth], floor)),
            np.asarray(predictions.classes.mutual_information, np.float64)[valid],
        )
        return Answers(
            *(np.concatenate(pair) for pair in zip(state, answers, strict=True))
        )

    def finalize(state: Answers) -> dict[str, float]:
        if not len(state.hits):
            return dict.fromkeys(NAMES, float("nan"))
        return {
            "accuracy": float(state.hits.mean()),
            "nll": float(-state.log_likelihood.mean()),
            "ece": calibration_error(state.confidence, state.hits),
            "mutual_information": float(state.disagreement.mean()),
        }

    return Metric(init, update, finalize)


def calibration_error(
    confidence: np.ndarray, hits: np.ndarray, num_bins: int = NUM_BINS
) -> float:
    """Expected calibration error with equal bins of confidence (arXiv 1706.04599).

    sum over bins of |mean confidence - accuracy| times the bin's share; bin k holds
    confidences in (k/n, (k+1)/n], and the first one 0 too.

    Args:
      confidence: [N] in [0, 1].
      hits: [N] bool.
      num_bins: Number n of bins.

    Returns:
      In [0, 1]; NaN without images.
    """
    confidence, hits = np.asarray(confidence, np.float64), np.asarray(hits, np.float64)
    if not len(hits):
        return float("nan")
    places = np.clip(np.ceil(confidence * num_bins) - 1, 0, num_bins - 1).astype(int)
    gaps = np.bincount(places, confidence - hits, num_bins)
    return float(np.abs(gaps).sum() / len(hits))


def harmonic_mean(base: float, new: float) -> float:
    """2 b n / (b + n) of base and new accuracy (arXiv 2203.05557); 0 if both are."""
    return 2 * base * new / (base + new) if base + new else 0.0
