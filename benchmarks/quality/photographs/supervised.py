"""A supervised detector on photographs, from ten real defects.

    python -m benchmarks.quality.photographs.supervised --data DIR --out runs/supervised

Each set below --data is a folder in the MVTec layout; those that are absent are left
out. Ten defects, drawn evenly over the types, and at most 80 normal images are trained
on, all other test images are tested on; three seeds, each with draws of its own. Rows:

* "tower": `configs/detector/folder.py`, a head on the frozen EfficientNet-Lite0;
* "squeezed": the same with images stretched to squares;
* "unet": `configs/detector/folder.py:unet`, a network from nothing.

Every (set, row, seed) is kept in --out: an interrupted call goes on where it stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxanom import record
from jaxanom.jobs import config_file, evaluate
from jaxanom.jobs import train as training
from jaxanom.report import tables

SETS = ("magnetic_tile", "kolektor_sdd", "hazelnut_toy")
ROWS = {
    "tower": ("configs/detector/folder.py", ()),
    "squeezed": ("configs/detector/folder.py", ("data.aspect=square",)),
    "unet": ("configs/detector/folder.py:unet", ()),
}
SHOTS, MOST_NORMAL = 10, 80
FLOORS = {
    "magnetic_tile": {"image_auroc": 82.5, "pixel_auroc": 76.2, "pixel_ap": 34.7},
    "kolektor_sdd": {"image_auroc": 96.4, "pixel_auroc": 86.7, "pixel_ap": 19.3},
    "hazelnut_toy": {"image_auroc": 100.0, "pixel_auroc": 99.7, "pixel_ap": 88.6},
}
"""The same tower in PyTorch: a head of 64 units on the 28 x 28 grid of images squeezed
to squares, the same counts of images, at most 160 tested. Its three seeds share one
draw of the ten defects, where each seed here has its own."""
COLUMNS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_aupro": "AU-PRO",
}


def measure(folder: Path, row: str, seed: int, directory: Path) -> dict[str, Any]:
    """Trains and evaluates one run, or reads what it gave before.

    Returns:
      {metric: percent} over the set's categories, and "train_seconds".
    """
    recipe, changes = ROWS[row]
    config = config_file.load(
        recipe,
        (
            f"data.directory={folder}",
            "data.defect_rule=shots",
            f"data.shots={SHOTS}",
            f"data.split_seed={seed}",
            f"train.seed={seed}",
            *changes,
        ),
    )
    count = len(list(folder.glob("*/train/good/*")))
    config.data.num_train = min(count, MOST_NORMAL)
    training.train(config, directory)
    results = evaluate.evaluate_on(directory)
    seconds = record.read_json(directory / record.RECORD)["train_seconds"]
    percent = {key: 100 * results["mean"][key] for key in COLUMNS}
    return {**percent, "train_seconds": seconds}


def summary(runs: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Returns {metric: [mean, deviation of a sample]} over seeds."""
    values = {key: [run[key] for run in runs] for key in runs[0]}
    return {
        key: [float(np.mean(v)), float(np.std(v, ddof=min(1, len(v) - 1)))]
        for key, v in values.items()
    }


def table(results: dict[str, Any]) -> tables.Table:
    """Tabulates the results beside the floors."""
    rows = []
    for name, by_row in results.items():
        for row, values in by_row.items():
            cells = [f"{values[key][0]:.1f} ± {values[key][1]:.1f}" for key in COLUMNS]
            rows.append((name, row, *cells, f"{values['train_seconds'][0]:.0f}"))
        if name in FLOORS:
            cells = [str(FLOORS[name].get(key, "-")) for key in COLUMNS]
            rows.append((name, "floor, PyTorch", *cells, "-"))
    return tables.Table(
        ("Set", "Detector", *COLUMNS.values(), "Training, s"),
        tuple(rows),
        caption=f"{SHOTS} real defects, at most {MOST_NORMAL} normal images.",
    )


def main(words: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table, writes the record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.photographs.supervised"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/supervised"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--rows", nargs="+", default=tuple(ROWS), choices=tuple(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args(words)
    results, kept = {}, {}
    for name in arguments.sets:
        if not (arguments.data / name).is_dir():
            continue
        results[name], kept[name] = {}, {}
        for row in arguments.rows:
            runs = [
                measure(
                    arguments.data / name, row, s, arguments.out / f"{name}_{row}_{s}"
                )
                for s in range(arguments.seeds)
            ]
            results[name][row], kept[name][row] = summary(runs), runs
    print(tables.to_text(table(results)))
    if arguments.record:
        facts = {"machine": record.machine(), "versions": record.versions()}
        record.write_json(
            arguments.record,
            {**facts, "results": results, "runs": kept, "floors": FLOORS},
        )


if __name__ == "__main__":
    main()
