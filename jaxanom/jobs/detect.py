"""Scores images: arrays of a program, or files with heat maps and a verdict."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxanom import trees
from jaxanom.data import canvas, images, pools
from jaxanom.data.layouts import mvtec
from jaxanom.errors import UserError
from jaxanom.evaluation import calibration
from jaxanom.jobs.load import Trained, check_detects
from jaxanom.report import detections
from jaxanom.types import Predictions


def predict(
    run: Trained, pictures: Sequence[np.ndarray], category: str = ""
) -> Predictions:
    """Scores images of any size, in batches of `config.data.batch_size`.

    Args:
      run: A run of a method that detects.
      pictures: uint8 [H, W, 3] each; read one by one, so a lazy sequence will do.
      category: What they show; needed where the run knows several products.

    Returns:
      Maps at the run's image size [N, h, w] and scores [N], numpy float32. Of a run
      that keeps the aspect ratio, `data.canvas.content` cuts a map to its picture.

    Raises:
      UserError: The method only generates, there is no picture or one of another type
        or shape, or the category is not known.
    """
    check_detects(run)
    if not len(pictures):
        raise UserError("no picture to score")
    dataset, config = run.prepared.dataset, run.prepared.config
    known = dataset.categories
    if (category or len(known) > 1) and category not in known:
        raise UserError(
            f"category {category!r}: this run knows {', '.join(known)}; name one of "
            "them, or a new one when the run is loaded (--category=NAME)"
        )
    number = known.index(category) if category else 0
    size = min(config.data.batch_size, len(pictures))
    resize = canvas.fit_image if dataset.keeps_aspect else images.resize_image
    apply = jax.jit(run.prepared.method.predict)
    parts = []
    for rows, count in trees.fixed_batches(len(pictures), size):
        batch = {
            "image": images.to_batch(
                [pictures[r] for r in rows], dataset.image_size, resize
            ),
            "category_id": np.full(size, number, np.int32),
            "valid": np.ones(size, bool),
        }
        predictions = apply(run.params, run.frozen, batch, jax.random.key(0))
        parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], predictions))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def own_threshold(
    run: Trained, false_alarm_rate: float, category: str = ""
) -> calibration.Threshold | None:
    """Takes a threshold from the training images, each scored as if it were new.

    Each was compared with one image fewer than a new one is, which makes their scores a
    little higher and the threshold a little safer than the bound says. Says on stderr
    what few images cannot promise.

    Args:
      run: A run of a method that detects.
      false_alarm_rate: Share of normal images that may be called anomalous.
      category: See `predict`.

    Returns:
      None of a method that does not know such scores, or of a run without any.
    """
    score = run.prepared.method.normal_scores
    if score is None:
        return None
    known = run.prepared.dataset.categories
    scores = score(run.params, known.index(category) if category in known else 0)
    if not len(scores):
        print(
            "no verdicts: the run knows one normal image and cannot leave it out; give "
            "--normal=DIR of others, or learn from two or more",
            file=sys.stderr,
        )
        return None
    threshold = calibration.from_normals(scores, false_alarm_rate)
    if threshold.false_alarm_rate > false_alarm_rate + 1e-9:
        needed = math.ceil(round(1 / false_alarm_rate, 9)) - 1
        print(
            f"{len(scores)} normal images bound false alarms by "
            f"{threshold.false_alarm_rate:.0%}; {false_alarm_rate:.0%} takes {needed}, "
            "learnt from or given by --normal=DIR",
            file=sys.stderr,
        )
    return threshold


def detect(
    run: Trained,
    paths: Sequence[str | Path],
    directory: str | Path,
    normal: str | Path | None = None,
    false_alarm_rate: float = 0.05,
    category: str = "",
) -> list[dict[str, Any]]:
    """Scores image files and writes heat maps, see `report.detections`.

    The maps of all images are held in memory, 1 MB for one of 512 px.

    Args:
      run: A run of a method that detects.
      paths: Image files, or folders whose images are meant.
      directory: Where the pictures and `detections.jsonl` go.
      normal: Folder of normal images, not those trained on, that set the threshold;
        see `evaluation.calibration`. Without it the run's own decides, see
        `own_threshold`; where it has none, no image is called anomalous.
      false_alarm_rate: Share of normal images that may be called anomalous.
      category: See `predict`.

    Raises:
      UserError: A path is no image, a normal image was trained on, or the method does
        not detect.
    """
    files = mvtec.image_files(paths, nested=True)
    if normal is None:
        threshold = own_threshold(run, false_alarm_rate, category)
    else:
        others = mvtec.image_files([normal])
        pools.check_unseen(run.prepared.dataset, run.prepared.division, others)
        scores = predict(run, images.Lazy(others), category).image_score
        threshold = calibration.from_normals(scores, false_alarm_rate)
    predictions = predict(run, images.Lazy(files), category)
    keeps_aspect = run.prepared.dataset.keeps_aspect
    return detections.write(
        Path(directory), files, predictions, threshold, keeps_aspect
    )
