"""Rows of metrics of a run: what a step returned -> one JSON object a line.

Every row holds `phase`, `step` (finished steps of the phase), `global_step` and `kind`:

| `kind`    | also                                                                    |
|-----------|-------------------------------------------------------------------------|
| "train"   | the step's metrics (loss, grad_norm, finite = share of steps not        |
|           | skipped, the method's own), learning_rate, skipped (so far),            |
|           | averaged_over (steps), steps_per_s, images_per_s_per_device, eta_s,     |
|           | flop_utilisation if the peak is known                                   |
| "selection" | value, by which parameters are chosen                                 |
| "compile" | compile_s                                                               |
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxanom import files, record


def train_row(window: list[dict[str, Any]], carried: Any) -> dict[str, Any]:
    """Averages the metrics of the steps since the last row; waits for the device.

    Args:
      window: scalar metrics, one dict a step.
      carried: state after the last of these steps.

    Returns:
      Means over the steps where the metric is finite (None if it never was: a skipped
      step shows in `finite` and `skipped`), `skipped`, `averaged_over`.
    """
    window, skipped = jax.device_get((window, carried.skipped))
    row: dict[str, Any] = {"kind": "train"}
    for name in window[0]:
        values = np.array([metrics[name] for metrics in window], np.float64)
        values = values[np.isfinite(values)]
        row[name] = float(values.mean()) if values.size else None
    return row | {"skipped": int(skipped), "averaged_over": len(window)}


def keep_until(path: Path, global_step: int) -> None:
    """Drops the rows after a step: a resumed run writes them again.

    A reader sees the old file or the new one.
    """
    if not path.exists():
        return
    kept = [
        json.dumps(row) + "\n"
        for row in record.read_metrics(path)
        if row.get("global_step", 0) <= global_step
    ]
    with files.replacing(path) as building:
        building.write_text("".join(kept), encoding="utf-8")
