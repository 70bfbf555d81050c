"""Detections in images of one's own: a picture and a JSON line for each."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxanom import record
from jaxanom.data import canvas, images
from jaxanom.errors import UserError
from jaxanom.evaluation.calibration import Threshold
from jaxanom.report import figures
from jaxanom.types import Predictions

RESULTS = "detections.jsonl"
_PARTIAL = f".{RESULTS}.partial"
_PICTURE = re.compile(r"\d{4,}_.*\.png", re.DOTALL)


def write(
    directory: Path,
    files: Sequence[Path],
    predictions: Predictions,
    threshold: Threshold | None,
    keeps_aspect: bool = False,
) -> list[dict[str, Any]]:
    """Writes `NUMBER_NAME.png` for every image and, when all are, `detections.jsonl`.

    A picture shows the image, the anomaly map over it and, of a method that knows it,
    the standard deviation of the map. All share one colour range, so that they can be
    compared.

    Args:
      directory: made where missing; earlier results in it are removed, their pictures
        too.
      files: N images.
      predictions: What was predicted of them, with a leading axis of N.
      threshold: None calls no image anomalous or normal.
      keeps_aspect: Whether images were fitted into the canvas of the maps
        (`data.canvas`), so that a part of each map shows its image.

    Returns:
      The rows written: `image`, `image_score`, `threshold`, `false_alarm_rate`,
      `anomalous` (these three None without a threshold), `picture`, and
      `image_score_std` of a method that knows it.

    Raises:
      UserError: a picture would be written over an image.
    """
    pictures = [directory / f"{n:04d}_{file.stem}.png" for n, file in enumerate(files)]
    read = {file.resolve() for file in files}
    for picture in pictures:
        if picture.resolve() in read:
            raise UserError(f"{picture} is an image to score; choose another --out")
    directory.mkdir(parents=True, exist_ok=True)
    for picture in _earlier(directory):
        if picture.resolve() not in read:
            picture.unlink(missing_ok=True)
    for name in (RESULTS, _PARTIAL):
        (directory / name).unlink(missing_ok=True)
    limits = float(predictions.anomaly_map.min()), float(predictions.anomaly_map.max())
    std = predictions.anomaly_map_std
    rows = []
    for number, (file, picture) in enumerate(zip(files, pictures, strict=True)):
        image, maps = images.load_image(file), [predictions.anomaly_map[number]]
        maps += [] if std is None else [std[number]]
        if keeps_aspect:
            maps = [canvas.content(one, image.shape[:2]) for one in maps]
        drawn = _drawn(image, maps, limits)
        rows.append(_row(file, picture, predictions, number, threshold))
        # Listed first: the next call removes what an interrupted one has drawn.
        record.append_metrics(directory / _PARTIAL, rows[-1])
        # Stronger compression would take as long as the detection.
        Image.fromarray(drawn).save(picture, compress_level=1)
    os.replace(directory / _PARTIAL, directory / RESULTS)
    return rows


def _earlier(directory: Path) -> list[Path]:
    """Lists the pictures of earlier results, by their names: a folder may be moved."""
    names = [
        Path(row["picture"]).name
        for results in (RESULTS, _PARTIAL)
        for row in record.read_metrics(directory / results)
    ]
    return [directory / name for name in names if _PICTURE.fullmatch(name)]


def _drawn(
    image: np.ndarray, maps: Sequence[np.ndarray], limits: tuple[float, float]
) -> np.ndarray:
    """Image, map over image and, if there is one, the map's deviation, side by side."""
    anomaly_map, *std = [_enlarged(one, image.shape[:2]) for one in maps]
    panels = [image, figures.overlay(image, anomaly_map, *limits)]
    panels += [figures.heat(one, 0.0, float(one.max())) for one in std]
    return figures.grid(panels, len(panels))


def _enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    plane = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR))


def _row(
    file: Path,
    picture: Path,
    predictions: Predictions,
    number: int,
    threshold: Threshold | None,
) -> dict[str, Any]:
    value = float(predictions.image_score[number])
    row = {
        "image": str(file),
        "image_score": value,
        "threshold": None,
        "false_alarm_rate": None,
        "anomalous": None,
        "picture": str(picture),
    }
    if threshold is not None:
        row["threshold"] = threshold.value
        row["false_alarm_rate"] = threshold.false_alarm_rate
        row["anomalous"] = value > threshold.value
    if predictions.image_score_std is not None:
        row["image_score_std"] = float(predictions.image_score_std[number])
    return row
