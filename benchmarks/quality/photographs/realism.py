"""Do the numbers of `jaxanom evaluate --generated` tell real images from others?

    python -m benchmarks.quality.photographs.realism --data DIR --out runs/realism

The answer is known: each set's real defects are halved; one half is the real data, and
what passes for generated is, in turn, the other half, the same half blurred, normal
images, and noise. The other half must look like real defects, by the yardstick of real
against real; noise must look worst. Three draws of the halves; the sets are folders in
the MVTec layout, of one category each, below --data, and one that foundry renders.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from benchmarks import harness
from jaxanom import record
from jaxanom.data import canvas, generated, images
from jaxanom.data.foundry import render
from jaxanom.data.layouts import mvtec
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.jobs import evaluate_generated as job
from jaxanom.report import tables

SETS = ("foundry", "magnetic_tile", "kolektor_sdd", "hazelnut_toy")
FOUNDRY, FOUNDRY_CATEGORY = "foundry", "leather"
BLUR = 1 / 60
"""Deviation of the Gaussian blur, as a share of the shorter side."""
SUBJECTS = ("real", "blurred", "normal", "noise")
HEADINGS = {
    "other half": "defects, other half",
    **{name: f"as generated: {name}" for name in SUBJECTS},
    "yardstick normal": "normal images",
}


def images_of(rows: Sequence[Record], size: tuple[int, int]) -> list[np.ndarray]:
    """Returns uint8 [H, W, 3] each, fitted into `size` (H, W)."""
    return [canvas.fit_image(images.load_image(row.image), size) for row in rows]


def blurred(image: np.ndarray) -> np.ndarray:
    """Returns a smooth copy, as of a generator that draws no detail."""
    radius = BLUR * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def halves(
    rows: Sequence[Record], most: int, seed: int
) -> tuple[list[Record], list[Record]]:
    """Divides rows of a category in two, types alike, at most `most` in each half."""
    order = np.random.default_rng(seed).permutation(len(rows))
    by_type = sorted((rows[number] for number in order), key=lambda r: r.defect_type)
    first, second = by_type[0::2], by_type[1::2]
    # Evenly over the sorted list, so that every type keeps its share.
    count = min(most, len(second))
    picks = np.linspace(0, len(second) - 1, count).round().astype(int)
    return [first[pick] for pick in picks], [second[pick] for pick in picks]


def write_data(root: Path, rows: Iterable[Record]) -> None:
    """Copies records into the MVTec layout, without masks."""
    for row in rows:
        place = root / row.category / row.split / row.defect_type / Path(row.name).name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.image, place)


def write_set(
    root: Path, pictures: Sequence[np.ndarray], rows: Sequence[Record]
) -> Path:
    """Writes pictures as a generated set with the categories and types of `rows`."""
    everywhere = np.ones(pictures[0].shape[:2], np.uint8)
    return generated.write(
        root,
        (
            generated.GeneratedRow(
                *(row.category, row.defect_type, picture, everywhere, everywhere),
                *(row.name, "", number),
            )
            for number, (picture, row) in enumerate(zip(pictures, rows, strict=True))
        ),
    ).directory


def measure(
    directory: Path, settings: argparse.Namespace, seed: int
) -> dict[str, dict[str, float]]:
    """Returns {row of the table: {number: value}} of one draw of the halves."""
    records = mvtec.read_folder(directory)
    defects = [row for row in records if row.defect_type != GOOD]
    data, other = halves(defects, settings.most, seed)
    normal, more = halves(
        [row for row in records if row.defect_type == GOOD], len(data), seed
    )
    shapes = [images.header_size(row.image)[::-1] for row in records]
    size = canvas.size_for(shapes, settings.image_size)
    real = images_of(other, size)
    rng = np.random.default_rng(seed)
    pictures = {
        "real": real,
        "blurred": [blurred(image) for image in real],
        "normal": images_of(more, size),
        "noise": [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for _ in other],
    }
    numbers: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as room:
        write_data(Path(room, "data"), [*data, *normal])
        for name in SUBJECTS:
            count = min(len(pictures[name]), len(other))
            subject = write_set(Path(room, name), pictures[name][:count], other[:count])
            results = job.evaluate_generated(
                subject, Path(room, "data"), settings.tower
            )
            numbers[name] = results["mean"]["generated"]
    numbers["other half"] = results["mean"]["real"]
    numbers["yardstick normal"] = results["mean"]["normal"]
    return numbers


def measure_set(name: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Returns {row: {number: values of all draws}} of a set."""
    directory = settings.out / FOUNDRY if name == FOUNDRY else settings.data / name
    if name == FOUNDRY and not directory.is_dir():
        counts = 2 * settings.most, 0, settings.most // 4
        render.write_mvtec(directory, (FOUNDRY_CATEGORY,), 64, 0, *counts)
    draws = [measure(directory, settings, seed) for seed in range(settings.num_draws)]
    return {
        row: {key: [draw[row][key] for draw in draws] for key in job.COLUMNS}
        for row in HEADINGS
    }


def table(results: dict[str, Any]) -> tables.Table:
    """Tabulates mean and deviation over the draws."""
    rows = [
        (name, heading, *(formatted(numbers[row][key]) for key in job.COLUMNS))
        for name, numbers in results.items()
        for row, heading in HEADINGS.items()
    ]
    return tables.Table(("Set", "Images", *job.COLUMNS.values()), tuple(rows))


def formatted(values: Sequence[float]) -> str:
    """Returns "mean ± deviation" to three digits."""
    return f"{np.mean(values):.3g} ± {np.std(values):.2g}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.photographs.realism"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--tower", default="efficientnet_lite0")
    parser.add_argument("--image_size", type=int, default=224, help="shorter side")
    parser.add_argument("--most", type=int, default=24, help="defects of a half")
    parser.add_argument("--num_draws", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="adds to records/")
    settings = parser.parse_args(arguments)
    results = {name: measure_set(name, settings) for name in settings.sets}
    facts = {
        key: value
        for key, value in vars(settings).items()
        if key not in ("data", "out", "record")
    }
    places = [settings.out / "realism.json"]
    if settings.record:
        places.append(harness.RECORDS / "realism.json")
    for place in places:
        record.write_json(
            place,
            {
                "asked": facts,
                "results": harness.without_nan(results),
                "machine": record.machine(),
                "versions": record.versions(),
            },
        )
    print(tables.to_text(table(results)))
    return results


if __name__ == "__main__":
    main()
