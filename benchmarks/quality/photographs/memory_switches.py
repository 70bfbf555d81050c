"""Which switches of the patch memory are on: chosen on procedural and training images.

    python -m benchmarks.quality.photographs.memory_switches --data ../shared/data

No test photograph is looked at. Two kinds of development data: procedural categories at
224 px with their own defects, and normal training photographs of which one half has
defects pasted in: pieces of the same or another photograph, lighter, darker or blurred
places, thin strokes. Every row differs from the default in one switch and is paired
with it by set, K and draw.
"""

import argparse
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage

from benchmarks.quality.photographs import few_shot
from jaxanom.data import catalog, images

RECORD = Path("benchmarks/records/memory_switches.json")
PROCEDURAL = ("wood", "grid", "fabric", "nut", "pill", "cable", "tile", "marble")
NUM_SHOTS, NUM_EACH, NUM_DRAWS = 8, 16, 3
DEFAULT = "default"
ROWS: dict[str, dict[str, Any]] = {
    "layers p8+p16": {"taps": ("p8+p16",)},
    "layers p8+p16 and e16, joined": {"taps": ("p8+p16+e16~",)},
    "layers p8+p16 and e16, by their levels": {"taps": ("p8+p16", "e16~")},
    "layers p8+p16 and e16, not by levels": {
        "taps": ("p8+p16", "e16~"),
        "calibrate": False,
    },
    "3 x 3 means": {"taps": ("e16",)},
    "no copies": {"turns": (0,), "mirrors": False},
    "mirrored alone": {"turns": (0,)},
    "all quarter turns": {"turns": (0, 1, 2, 3)},
    "224 px": {"scales": (0.7,)},
    "224 and 320 px": {"scales": (0.7, 1.0)},
    "mirrored border": {"border": 16},
    "foreground": {"foreground": True},
    "the maximum": {"share": 0.0},
    "the highest 4 %": {"share": 0.04},
    "no smoothing": {"smoothing": 0.0},
    "smoothing of 5 %": {"smoothing": 0.05},
    "a quarter of the patches": {"coreset": 0.25},
    DEFAULT: {},
}


def procedural(category: str) -> few_shot.Images:
    """Renders one category at 224 px, enlarged to the size of the photographs."""
    dataset = catalog.open_dataset(
        "foundry", None, (category,), 224, 3, NUM_SHOTS, NUM_EACH, 3
    )
    size = (few_shot.SIZE, few_shot.SIZE)
    half = (few_shot.SIZE // 2, few_shot.SIZE // 2)

    def loaded(split, anomalous):
        numbers = catalog.select(dataset, split, anomalous=anomalous)
        return [dataset.load(dataset.records[number]) for number in numbers]

    bad, good = loaded("test", True), loaded("test", False)
    return few_shot.Images(
        np.stack([images.resize_image(one, size) for one, _ in loaded("train", False)]),
        np.stack([images.resize_image(image, size) for image, _ in bad + good]),
        np.repeat([1, 0], [len(bad), len(good)]).astype(np.int32),
        np.stack([images.resize_mask(mask, half) for _, mask in bad + good]),
    )


def pasted(directory: Path) -> few_shot.Images:
    """Reads normal training photographs and pastes defects into half of those left."""
    dataset = catalog.open_dataset(
        "folder", directory, image_size=few_shot.SIZE, aspect="keep"
    )
    rng = np.random.default_rng(zlib.crc32(directory.name.encode()))
    numbers = rng.permutation(catalog.select(dataset, "train", anomalous=False))
    kept = numbers[: NUM_SHOTS + 2 * NUM_EACH]
    pictures = [dataset.load(dataset.records[number])[0] for number in kept]
    shots, rest = pictures[:NUM_SHOTS], pictures[NUM_SHOTS:]
    half = len(rest) // 2
    bad = [
        defect(rng, image, other)
        for image, other in zip(rest[:half], rest[half:], strict=False)
    ]
    good = rest[half:]
    size = tuple(side // 2 for side in dataset.image_size)
    masks = [images.resize_mask(mask, size) for _, mask in bad]
    return few_shot.Images(
        np.stack(shots),
        np.stack([image for image, _ in bad] + good),
        np.repeat([1, 0], [len(bad), len(good)]).astype(np.int32),
        np.stack(masks + [np.zeros(size, np.uint8)] * len(good)),
    )


def defect(
    rng: np.random.Generator, image: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Puts one defect into an image: (uint8 [H, W, 3], mask uint8 [H, W]).

    Args:
      rng: Decides place, shape and kind.
      image: [H, W, 3] uint8.
      other: Of the same shape; one kind pastes a piece of it.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    size = int(side * rng.uniform(0.05, 0.22))
    rows, columns = np.mgrid[:height, :width]
    place = [rng.integers(size, whole - size) for whole in (height, width)]
    rows, columns = rows - place[0], columns - place[1]
    rough = scipy.ndimage.gaussian_filter(
        rng.standard_normal((height, width)), side / 30
    )
    rough /= rough.std()
    if rng.random() < 0.3:  # a stroke
        angle = rng.uniform(0, np.pi)
        along = columns * np.cos(angle) + rows * np.sin(angle)
        across = rows * np.cos(angle) - columns * np.sin(angle) + rough * side / 100
        thick = side * rng.uniform(0.006, 0.015)
        mask = (np.abs(along) < size) & (np.abs(across) < thick)
    else:  # a blob
        radius = np.hypot(columns * rng.uniform(0.7, 1.4), rows)
        mask = radius < size / 2 * (1 + 0.35 * rough)
    pixels = image.astype(np.float32)
    sign = rng.choice([-1, 1])
    shift = [rng.integers(whole // 4, 3 * whole // 4) for whole in (height, width)]
    blurred = scipy.ndimage.gaussian_filter(pixels, (side / 80, side / 80, 0))
    content = (
        np.roll(pixels, shift, (0, 1)) * rng.uniform(0.8, 1.2),
        pixels + 255 * sign * rng.uniform(0.12, 0.4),
        other[::-1].astype(np.float32),
        blurred + 255 * sign * rng.uniform(0.03, 0.12),
    )[rng.integers(4)]
    weight = scipy.ndimage.gaussian_filter(mask.astype(np.float32), 0.8)[..., None]
    weight *= rng.uniform(0.6, 1)
    changed = np.clip(pixels + weight * (content - pixels), 0, 255)
    return changed.astype(np.uint8), mask.astype(np.uint8)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.photographs.memory_switches"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--photographs", nargs="*", default=few_shot.SETS)
    parser.add_argument("--procedural", nargs="*", default=PROCEDURAL)
    parser.add_argument("--draws", type=int, default=NUM_DRAWS)
    parser.add_argument("--out", type=Path, default=RECORD)
    arguments = parser.parse_args(argv)
    results: list[dict[str, Any]] = []
    for name in (*arguments.procedural, *arguments.photographs):
        if name in arguments.procedural:
            data = procedural(name)
        else:
            data = pasted(arguments.data / name)
        results += few_shot.on_set(name, data, ROWS, arguments.draws)
        few_shot.write(arguments.out, results, ROWS, DEFAULT)


if __name__ == "__main__":
    main()
