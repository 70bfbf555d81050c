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
from collections.abc import Iterator, Sequence
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

SETS = ("foundry", "magnetic_tile", "hazelnut_toy", "kolektor_sdd")
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


def prepare_draw(
    records: Sequence[Record], settings: argparse.Namespace, seed: int, data: Path
) -> Iterator[generated.GeneratedRow]:
    """Writes the real images of one draw of the halves, yields what is to be judged.

    Every subject is a category of its own, so that one program judges all.
    """
    defects = [row for row in records if row.defect_type != GOOD]
    real, other = halves(defects, settings.most, seed)
    normal, more = halves(
        [row for row in records if row.defect_type == GOOD], len(real), seed
    )
    shapes = [images.header_size(row.image)[::-1] for row in records]
    size = canvas.size_for(shapes, settings.image_size)
    rng = np.random.default_rng(seed)
    pictures = {
        "real": images_of(other, size),
        "blurred": [blurred(image) for image in images_of(other, size)],
        "normal": images_of(more, size),
        "noise": [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for _ in other],
    }
    everywhere = np.ones(size, np.uint8)
    for name in SUBJECTS:
        category = f"{name}{seed}"
        for row in (*real, *normal):
            place = data / category / row.split / row.defect_type / Path(row.name).name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(row.image, place)
        for number, (picture, row) in enumerate(
            zip(pictures[name], other, strict=False)
        ):
            yield generated.GeneratedRow(
                *(category, row.defect_type, picture, everywhere, everywhere),
                *(row.name, "", number),
            )


def measure(name: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Returns {row of the table: {number: values of all draws}} of a set."""
    directory = settings.out / FOUNDRY if name == FOUNDRY else settings.data / name
    if name == FOUNDRY and not directory.is_dir():
        counts = 2 * settings.most, 0, settings.most // 4
        render.write_mvtec(directory, (FOUNDRY_CATEGORY,), 64, 0, *counts)
    records = mvtec.read_folder(directory)
    seeds = range(settings.num_draws)
    with tempfile.TemporaryDirectory() as room:
        data, subjects = Path(room, "data"), Path(room, "subjects")
        rows = (
            row for seed in seeds for row in prepare_draw(records, settings, seed, data)
        )
        generated.write(subjects, rows)
        results = job.evaluate_generated(subjects, data, settings.tower)
    draws = {
        subject: [results["per_category"][f"{subject}{seed}"] for seed in seeds]
        for subject in SUBJECTS
    }
    # The yardsticks are of the real images alone, and so the same for every subject.
    sources = {
        "other half": ("real", "real"),
        **{subject: (subject, "generated") for subject in SUBJECTS},
        "yardstick normal": ("real", "normal"),
    }
    return {
        row: {key: [draw[of][key] for draw in draws[subject]] for key in job.COLUMNS}
        for row, (subject, of) in sources.items()
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
    results = {}
    for name in settings.sets:
        results[name] = measure(name, settings)
        print(tables.to_text(table({name: results[name]})), flush=True)
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
    return results


if __name__ == "__main__":
    main()
