"""Results of a run -> rows of pictures and panels of curves, ready to be drawn."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxanom.report import figures
from jaxanom.report.figures import Panel, Series

GENERATION_COLUMNS = (
    "Normal image",
    "Inverted noise",
    "Generated",
    "Difference",
    "Requested mask",
    "Refined mask",
)
DETECTION_COLUMNS = ("Image", "True defect", "Anomaly map", "Map on image")
DEVIATION_COLUMN = "Deviation over draws"


def generation_row(
    normal: np.ndarray,
    inverted: np.ndarray,
    generated: np.ndarray,
    requested_mask: np.ndarray,
    refined_mask: np.ndarray,
) -> list[np.ndarray]:
    """Pictures of one generated defect, in the order of `GENERATION_COLUMNS`.

    Args:
      normal, generated: [H, W, 3].
      inverted: [h, w, C] latents at the highest noise level.
      requested_mask, refined_mask: [H, W].
    """
    return [
        figures.to_uint8(normal),
        figures.latent_picture(inverted),
        figures.to_uint8(generated),
        figures.difference(generated, normal),
        figures.to_uint8(np.asarray(requested_mask, np.float32)),
        figures.to_uint8(np.asarray(refined_mask, np.float32)),
    ]


def detection_columns(examples: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Headings of `detection_rows`: one more for a method with a posterior."""
    if any(example.get("anomaly_map_std") is not None for example in examples):
        return (*DETECTION_COLUMNS, DEVIATION_COLUMN)
    return DETECTION_COLUMNS


def detection_rows(examples: Sequence[Mapping[str, Any]]) -> list[list[np.ndarray]]:
    """Pictures of predictions, in the order of `detection_columns`.

    All maps share one colour range, from the lowest to the highest value shown, so that
    a normal image looks calm beside a defective one.

    Args:
      examples: with `image`, `anomaly_map`, `mask` (or None) and, of a method with a
        posterior, `anomaly_map_std`, as `runner.evaluate` returns them.
    """
    maps = [np.asarray(example["anomaly_map"]) for example in examples]
    low = min((float(values.min()) for values in maps), default=0.0)
    high = max((float(values.max()) for values in maps), default=1.0)
    rows = [
        [
            figures.to_uint8(example["image"]),
            figures.to_uint8(example["image"])
            if example["mask"] is None
            else figures.outline(example["image"], example["mask"]),
            figures.heat(values, low, high),
            figures.overlay(example["image"], values, low, high),
        ]
        for example, values in zip(examples, maps, strict=True)
    ]
    if len(detection_columns(examples)) == len(DETECTION_COLUMNS):
        return rows
    deviations = [np.asarray(example["anomaly_map_std"]) for example in examples]
    widest = max(float(values.max()) for values in deviations)
    return [
        [*row, figures.heat(values, 0.0, widest)]
        for row, values in zip(rows, deviations, strict=True)
    ]


def loss_panels(
    rows: Iterable[Mapping[str, Any]], pattern: str = "loss", kind: str = "train"
) -> list[Panel]:
    """Plots every logged number whose name contains `pattern`, one panel a phase.

    Args:
      rows: from `record.read_metrics`; a value that is None or not finite is a gap.
      pattern: part of the names.
      kind: which rows; those without a kind count as "train".
    """
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        if row.get("kind", "train") != kind:
            continue
        phase = lines.setdefault(str(row.get("phase", "training")), {})
        for name, value in row.items():
            if pattern in name and isinstance(value, int | float):
                phase.setdefault(name, []).append((row["step"], value))
    return [
        Panel(
            title=f"Phase “{phase}”",
            x_label="step",
            y_label=pattern,
            series=tuple(
                Series(name, *zip(*points, strict=True))
                for name, points in named.items()
            ),
            log_y=True,
        )
        for phase, named in lines.items()
        if named
    ]


def detection_panels(
    curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    fpr_limit: float = 0.3,
) -> list[Panel]:
    """ROC, precision-recall and PRO panels, one line a variant.

    Args:
      curves: variant -> {"metric/curve": {"x": ..., "y": ...}}, each the entry of one
        category in `curves` of `runner.evaluate`.
      fpr_limit: up to which AU-PRO is integrated; beyond is shaded.
    """
    recall, fpr = "recall", "false-positive rate"
    kinds = {
        "image/roc": ("ROC, images", fpr, recall),
        "image/precision_recall": ("Precision–recall, images", recall, "precision"),
        "pixel/roc": ("ROC, pixels", fpr, recall),
        "pixel/precision_recall": ("Precision–recall, pixels", recall, "precision"),
        "regions/pro": ("Per-region overlap", fpr, "mean overlap"),
    }
    panels = []
    for key, (title, x_label, y_label) in kinds.items():
        lines = tuple(
            Series(name, points[key]["x"], points[key]["y"], steps="/pre" in key)
            for name, points in curves.items()
            if key in points
        )
        if lines:
            panels.append(
                Panel(
                    title,
                    x_label,
                    y_label,
                    lines,
                    unit=True,
                    diagonal=not key.endswith("recall"),
                    limit=fpr_limit if key == "regions/pro" else None,
                )
            )
    return panels
