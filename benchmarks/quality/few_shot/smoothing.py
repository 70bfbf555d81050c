"""Which smoothing a memory of MobileNetV2 features wants, on procedural categories.

    python -m benchmarks.quality.few_shot.smoothing --out runs/smoothing
        --data ../shared/data

What ADP smooths by default was set by this and not by any test set: the 14 categories
for training, rendered at 224 px with the development seed, K of their normal images in
the memory, two draws. Every width of `fusion.SIGMAS` smooths the same distances, 0 not
at all, and images are scored by the mean of every top share of what comes out. Writes
`few_shot_smoothing.md`: means over draws and categories, in percent.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.quality.few_shot import summary
from jaxanom import trees
from jaxanom.data import catalog
from jaxanom.data.foundry import names
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.memory import bank, crops
from jaxanom.metrics import ranking, regions
from jaxanom.models.features import mobilenet_v2, patches
from jaxanom.report import tables
from jaxanom.types import Array, Predictions

SEED, SIZE, NUM_DRAWS, BATCH = 5, 224, 2, 8


def images_of(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns normals to draw from [N, H, W, 3], test images and masks [M, H, W]."""
    dataset = catalog.open_dataset("foundry", None, (name,), SIZE, SEED, 16, 24, 6)
    pool, test = (
        [dataset.load(r) for r in dataset.records if r.split == split]
        for split in ("train", "test")
    )
    return (
        np.stack([image for image, _ in pool]).astype(np.float32) / 255,
        np.stack([image for image, _ in test]).astype(np.float32) / 255,
        np.stack([mask for _, mask in test]) > 0,
    )


def settings(distances: Array) -> Iterator[tuple[str, Predictions]]:
    """Yields what every setting makes of distances [M, m, m]."""
    count, size = len(distances), (SIZE, SIZE)
    for sigma in (0.0, *sorted(fusion.SIGMAS)):
        smoothed = fusion.smooth(distances, jnp.full(count, sigma))
        enlarged = fusion.to_image(smoothed, size)
        for share in fusion.SHARES:
            score = fusion.top_mean(smoothed, jnp.full(count, share))
            yield f"sigma {sigma:g}, share {share:g}", Predictions(enlarged, score)


def measured(predictions: Predictions, masks: np.ndarray, images_only: bool) -> dict:
    """Returns the metrics of one setting; those of pixels do not know the share."""
    batch = {
        "mask": masks,
        "label": masks.any((1, 2)).astype(np.int32),
        "valid": np.ones(len(masks), bool),
    }
    metrics = [ranking.images()]
    if not images_only:
        metrics += [ranking.histogram(), regions.per_region_overlap()]
    values: dict[str, float] = {}
    for metric in metrics:
        values |= metric.finalize(metric.update(metric.init(), predictions, batch))
    return values


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.few_shot.smoothing"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4])
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tower = bank.from_network(
        f"mobilenet_v2:{arguments.data / 'mobilenet_v2'}",
        mobilenet_v2.DEFAULT_LAYERS,
        0,
    )
    look = jax.jit(lambda image: tower.features(tower.params, image, None)["joined"])
    compare = jax.jit(patches.distances)
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for name in names.TRAIN_CATEGORIES:
        pool, test, masks = images_of(name)
        turns = (0, 1, 2, 3) if name in names.TEXTURES else (0,)
        looked_at = trees.batched(look, BATCH, test)
        for shots in arguments.shots:
            for draw in range(NUM_DRAWS):
                drawn = np.random.default_rng(draw).permutation(len(pool))[:shots]
                turned, _ = crops.turned([pool[n] for n in drawn], turns)
                entries = trees.batched(look, BATCH, turned)
                entries = entries.reshape(1, -1, entries.shape[-1])
                owners = np.zeros(entries.shape[:2], np.int32)
                nobody = np.full(len(test), patches.NOBODY, np.int32)
                which = np.zeros(len(test), np.int32)
                distances = compare(looked_at, entries, owners, which, nobody)
                for setting, predictions in settings(distances):
                    pixels = not setting.endswith(
                        tuple(f"share {share:g}" for share in fusion.SHARES[1:])
                    )
                    row = measured(predictions, masks, not pixels)
                    runs.setdefault((setting, shots), []).append(row)
        print(name, flush=True)
    lines = [
        {"setting": setting, "K": shots}
        | {
            heading: f"{100 * np.mean([row[metric] for row in rows]):.2f}"
            for metric, heading in summary.METRICS.items()
            if metric in rows[0]
        }
        for (setting, shots), rows in sorted(runs.items(), key=lambda pair: pair[0][1])
    ]
    table = tables.from_records(lines, {key: key for key in lines[0]}, caption="")
    text = tables.to_markdown(table)
    (arguments.out / "few_shot_smoothing.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
