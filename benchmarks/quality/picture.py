"""The picture of the README, from the files that `make quickstart` leaves behind.

    python -m benchmarks.quality.picture --run runs/quickstart
        --out benchmarks/records/tour.png

Two blocks side by side. Left: a given normal image, the image with a new defect, the
mask of what changed. Right: test images of categories never seen, with the true defect
outlined, the zero-shot anomaly map, and its deviation over the posterior's draws.
Which images are shown is decided by their place in the files alone.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from jaxanom.report import figures, panels
from jaxanom.report import runs as reports

NUM_ROWS = 6
SIDE = 96


def generated(run: Path) -> list[list[np.ndarray]]:
    """Rows of normal image, generated image and refined mask."""
    with np.load(run / "defects" / "generator" / reports.GENERATION) as stored:
        arrays = dict(stored)
    return [
        [
            arrays["normal"][row],
            arrays["image"][row],
            arrays["mask"][row].astype(np.float32),
        ]
        for row in range(NUM_ROWS)
    ]


def zero_shot(run: Path) -> list[list[np.ndarray]]:
    """Rows of outlined image, anomaly map and deviation, of defective images."""
    with np.load(run / "zero_shot" / reports.EXAMPLES) as stored:
        arrays = dict(stored)
    names = ("image", "mask", "anomaly_map", "anomaly_map_std")
    defective = np.flatnonzero(arrays["label"])
    rows = defective[np.linspace(0, len(defective) - 1, NUM_ROWS).round().astype(int)]
    examples = [{name: arrays[name][row] for name in names} for row in rows]
    return [row[1:3] + row[4:] for row in panels.detection_rows(examples)]


def sheet(run: Path) -> np.ndarray:
    """Composes both blocks, uint8 [H, W, 3]."""
    pictures = [
        _square(picture)
        for left, right in zip(generated(run), zero_shot(run), strict=True)
        for picture in (*left, *right)
    ]
    return figures.grid(pictures, len(pictures) // NUM_ROWS)


def _square(picture: np.ndarray) -> np.ndarray:
    """Enlarges to one size, in colour, pixel by pixel."""
    pixels = Image.fromarray(figures.to_uint8(np.asarray(picture)))
    return np.asarray(pixels.convert("RGB").resize((SIDE, SIDE), Image.NEAREST))


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.picture")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path, required=True)
    settings = parser.parse_args(arguments)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet(settings.run)).save(settings.out, optimize=True)
    return settings.out


if __name__ == "__main__":
    print(main())
