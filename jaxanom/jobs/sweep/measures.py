"""What a run ended with -> the numbers of its row."""

from typing import Any

import jax
import numpy as np

from jaxanom.jobs.sweep import grid, program
from jaxanom.jobs.sweep.inputs import Inputs
from jaxanom.metrics import recognition
from jaxanom.types import ClassPredictions, Predictions


def of_run(inputs: Inputs, point: grid.Point, one: program.Outcome) -> dict[str, Any]:
    """Scores one run on the test images; None where its probabilities are no numbers.

    Args:
      inputs: What its program was given.
      point: Which run it is.
      one: What it ended with.

    Returns:
      The entries of a row that `runner.run` names.
    """
    test = jax.tree.map(
        lambda leaf: np.asarray(leaf[inputs.numbers.index(point.seed)]),
        inputs.seeds.test,
    )
    scores = dict.fromkeys(recognition.NAMES)
    if np.isfinite(one.log_probability).all():
        metric = recognition.exact(inputs.method.target)
        unused = np.zeros_like(one.mutual_information)
        classes = ClassPredictions(
            np.exp(one.log_probability), unused, one.mutual_information, unused
        )
        batch = {**test, "valid": np.ones(len(unused), bool)}
        predicted = Predictions(unused, unused, classes=classes)
        scores = metric.finalize(metric.update(metric.init(), predicted, batch))
    return scores | {
        "ksd": float(one.discrepancy),
        "spread": float(one.spread),
        "train_ce": float(one.train_ce),
        "skipped": int(one.skipped),
    }


def principal_path(path: np.ndarray, digits: int = 4) -> dict[str, Any]:
    """Projects particles over time on the two directions in which they differ most.

    Args:
      path: [T, P, D].
      digits: How many decimals are kept.

    Returns:
      {"path": [T][P][2] lists, "path_share": share of the variance that is shown}.
    """
    flat = path.reshape(-1, path.shape[-1]).astype(np.float64)
    centred = flat - flat.mean(0)
    if not np.isfinite(centred).all():
        return {}
    rows, scale, _ = np.linalg.svd(centred, full_matrices=False)
    projected = np.zeros((len(flat), 2))
    kept = min(2, len(scale))
    projected[:, :kept] = rows[:, :kept] * scale[:kept]
    total = float((scale**2).sum())
    share = float((scale[:kept] ** 2).sum()) / total if total else 1.0
    projected = np.round(projected.reshape(*path.shape[:2], 2), digits)
    return {"path": projected.tolist(), "path_share": round(share, 4)}
