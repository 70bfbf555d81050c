"""Run directories -> one page: tables, curves, pictures, records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxanom import files, record
from jaxanom.errors import UserError
from jaxanom.evaluation import protocols
from jaxanom.report import page, panels, tables

EVALUATION, EXAMPLES, GENERATION = (
    "evaluation.json",
    "examples.npz",
    "generation.npz",
)


def write(
    path: str | Path,
    directories: Sequence[str | Path],
    title: str,
    lead: Sequence[page.Section] = (),
) -> Path:
    """Writes one self-contained page about one or more runs.

    Args:
      path: The HTML file.
      directories: The runs; each is shown under its directory's name, or under as much
        of its path as tells it from the others.
      title: Heading of the page.
      lead: sections to put first.

    Raises:
      UserError: a directory is no run.
    """
    runs = _names(directories)
    for directory in runs.values():
        if not (directory / "config.json").is_file():
            raise UserError(f"{directory} is no run: config.json is missing")
    # What one looks at first comes first: tables, then pictures, then curves.
    tabled, pictured, plotted = _detection(runs)
    sections = [*lead, *tabled, *_generation(runs), *pictured, *plotted]
    sections += [_losses(runs), _records(runs)]
    return page.write(Path(path), title, sections)


def _names(directories: Sequence[str | Path]) -> dict[str, Path]:
    """Returns {name to show: directory}, each directory once."""
    paths = list(dict.fromkeys(Path(d).absolute() for d in directories))
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {"/".join(path.parts[-depth:]): path for path in paths}


def detection_table(
    results: Mapping[str, Mapping[str, Any]], caption: str = ""
) -> tables.Table:
    """Sets evaluations beside each other: {variant: `evaluation.json`}."""
    present = protocols.columns_of(list(results.values()))
    repeats = {name: [result["mean"]] for name, result in results.items()}
    notes = protocols.notes_of(list(results.values()))
    return tables.compare(repeats, present, caption=caption, notes=notes)


def _detection(
    runs: Mapping[str, Path],
) -> tuple[list[page.Section], list[page.Section], list[page.Section]]:
    """Returns the sections of tables, of pictures and of curves."""
    evaluated = {
        name: record.read_json(path / EVALUATION)
        for name, path in runs.items()
        if (path / EVALUATION).is_file()
    }
    if not evaluated:
        return [], [], []
    tabled = [
        page.table(
            "Detection",
            detection_table(
                evaluated, "Means over categories, in percent, on the test images."
            ),
        )
    ]
    plotted = []
    categories = [name for result in evaluated.values() for name in result["curves"]]
    for category in dict.fromkeys(categories):
        curves = {
            name: result["curves"][category]
            for name, result in evaluated.items()
            if category in result["curves"]
        }
        plotted.append(
            page.curves(
                f"Curves: {category}",
                panels.detection_panels(curves),
                "Images are ranked by score, pixels by anomaly map.",
            )
        )
    pictured = [part for name in evaluated for part in _examples(name, runs[name])]
    return tabled, pictured, plotted


def _examples(name: str, directory: Path) -> list[page.Section]:
    if not (directory / EXAMPLES).is_file():
        return []
    with np.load(directory / EXAMPLES) as stored:
        arrays = dict(stored)
    count = len(arrays["image"])
    examples = [
        {"mask": None, **{key: value[row] for key, value in arrays.items()}}
        for row in range(count)
    ]
    pictures = panels.detection_rows(examples)
    rows = [
        page.PictureRow(
            "defective" if example["label"] else "normal",
            shown,
            f"image score {float(example['image_score']):.2f}",
        )
        for example, shown in zip(examples, pictures, strict=True)
    ]
    return [
        page.pictures(
            f"Anomaly maps: {name}",
            rows,
            panels.detection_columns(examples),
            "Test images. All maps share one colour range, all deviations another.",
        )
    ]


def _generation(runs: Mapping[str, Path]) -> list[page.Section]:
    sections = []
    for name, directory in runs.items():
        if not (directory / GENERATION).is_file():
            continue
        with np.load(directory / GENERATION) as stored:
            arrays = dict(stored)
        rows = [
            page.PictureRow(
                str(arrays["label"][row]),
                panels.generation_row(
                    arrays["normal"][row],
                    arrays["inverted"][row],
                    arrays["image"][row],
                    arrays["requested_mask"][row],
                    arrays["mask"][row],
                ),
                f"kept {_kept(arrays, row):.0%} of the mask",
            )
            for row in range(len(arrays["image"]))
        ]
        sections.append(
            page.pictures(
                f"Generated defects: {name}",
                rows,
                panels.GENERATION_COLUMNS,
                "A given normal image, its inverted latents with the masked part cut "
                "out, the image with a new defect, their difference (full colour at "
                "0.5), the mask asked for and the part of it that really changed.",
            )
        )
    return sections


def _kept(arrays: Mapping[str, np.ndarray], row: int) -> float:
    requested = max(1, int(arrays["requested_mask"][row].astype(bool).sum()))
    return float(arrays["mask"][row].astype(bool).sum()) / requested


def _losses(runs: Mapping[str, Path]) -> page.Section:
    plots = [
        panel._replace(title=f"{name}: {panel.title}")
        for name, directory in runs.items()
        for panel in panels.loss_panels(record.read_metrics(directory / record.METRICS))
    ]
    caption = "Means over the steps between two log rows."
    return page.curves("Training", plots, caption, "No rows.")


def _records(runs: Mapping[str, Path]) -> page.Section:
    records: dict[str, Any] = {}
    for name, directory in runs.items():
        for file in ("record.json", "config.json"):
            if (directory / file).is_file():
                records[f"{name}: {file}"] = record.read_json(directory / file)
    return page.details("Run record", records, "What was asked, with which versions.")


def write_generation(directory: Path, shown: Sequence[Mapping[str, Any]]) -> None:
    """Keeps what the page shows of generated images in the run's directory.

    Args:
      directory: The run.
      shown: dicts with `label`, `normal`, `image`, `requested_mask`, `mask`,
        `inverted`, one an image.
    """
    arrays = {
        key: np.stack([np.asarray(item[key]) for item in shown]) for key in shown[0]
    }
    _save(Path(directory) / GENERATION, arrays)


def write_evaluation(
    directory: Path, results: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
) -> None:
    """Keeps what `runner.evaluate` returned: numbers as JSON, examples as arrays."""
    fields = (
        "image",
        "mask",
        "anomaly_map",
        "anomaly_map_std",
        "image_score",
        "label",
    )
    arrays = {
        name: np.stack([np.asarray(example[name]) for example in examples])
        for name in fields
        if examples and all(example.get(name) is not None for example in examples)
    }
    record.write_json(Path(directory) / EVALUATION, results)
    if arrays:
        _save(Path(directory) / EXAMPLES, arrays)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with files.replacing(path) as building:
        np.savez_compressed(building, **arrays)
