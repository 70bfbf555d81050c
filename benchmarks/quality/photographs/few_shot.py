"""Few-shot detection on photographs against nearest neighbours, PatchCore and PaDiM.

    python -m benchmarks.quality.photographs.few_shot --data ../shared/data

For K = 1, 2, 4 and five draws of the shots, the rows of `ROWS` on the same test images,
in the same evaluator: images are fitted in at 320 px with their aspect ratio, at most
`MOST_TEST` are tested on, pixels are compared at half that size. Every image is encoded
once per tower and scale. `--sets` takes any folders in the MVTec layout, one category
each; a set without masks has no pixel metrics.
"""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom import record, trees
from jaxanom.data import catalog, images
from jaxanom.jobs import config_file
from jaxanom.methods.memory import complete, options, predict, views
from jaxanom.metrics import ranking
from jaxanom.models.features import patches, towers
from jaxanom.types import Predictions

SETS = (
    "magnetic_tile",
    "kolektor_sdd",
    "hazelnut_toy",
    "mvtec_grid_mini",
    "mvtec_bottle_nomask",
)
RECORD = Path("benchmarks/records/photographs_few_shot.json")
SIZE, MOST_TEST, SHOTS, NUM_DRAWS = 320, 60, (1, 2, 4), 5
PLAIN = {"turns": (0,), "mirrors": False, "share": 0.0, "smoothing": 0.0}
OURS = "ours"
ROWS: dict[str, dict[str, Any]] = {
    # 320 px times 0.7 is 224 px, which the tower was trained on.
    "nearest, p8+p16": {**PLAIN, "taps": ("p8+p16",), "scales": (0.7,)},
    "nearest, same features": {**PLAIN, "scales": (0.7,)},
    "nearest, same features, 320 px": PLAIN,
    "PatchCore-like": {
        **PLAIN,
        "taps": ("p8+p16",),
        "kind": "patchcore",
        "coreset": 0.25,
        "smoothing": 0.02,
    },
    "PaDiM-like": {**PLAIN, "taps": ("p8~+p16~",), "kind": "padim", "smoothing": 0.02},
    OURS: {},
}


class Images(NamedTuple):
    """Images of one set.

    Attributes:
      normal: [P, H, W, 3] uint8, from which shots are drawn.
      test: [N, H, W, 3] uint8.
      label: [N], 1 = defective.
      mask: [N, H / 2, W / 2], or None of a set without masks.
    """

    normal: np.ndarray
    test: np.ndarray
    label: np.ndarray
    mask: np.ndarray | None


def read(directory: Path, num_normal: int) -> Images:
    """Reads up to `MOST_TEST` test images, half of each label, and normal ones."""
    dataset = catalog.open_dataset("folder", directory, image_size=SIZE, aspect="keep")
    rng = np.random.default_rng(0)
    normal = catalog.select(dataset, "train", anomalous=False)
    normal = rng.permutation(normal)[:num_normal]
    test = []
    for anomalous in (True, False):
        numbers = catalog.select(dataset, "test", anomalous=anomalous)
        test += rng.permutation(numbers)[: MOST_TEST // 2].tolist()
    examples = [dataset.load(dataset.records[number]) for number in test]
    half = tuple(side // 2 for side in dataset.image_size)
    mask = None
    if not catalog.unmasked(dataset, test):
        mask = np.stack([images.resize_mask(mask, half) for _, mask in examples])
    return Images(
        np.stack([dataset.load(dataset.records[number])[0] for number in normal]),
        np.stack([image for image, _ in examples]),
        np.array([dataset.records[n].defect_type != "good" for n in test], np.int32),
        mask,
    )


def settings(changes: Mapping[str, Any]) -> options.Options:
    """Returns the shipped options with changes."""
    section = config_file.load("configs/memory/folder.py").memory
    return options.read({**section.to_dict(), **changes})


class Encoder:
    """Encodes images once per group of layers, scale and border."""

    def __init__(self, data: Images):
        self._data, self._kept = data, {}
        self._views: dict[Any, views.Views] = {}

    def views(self, option: options.Options) -> views.Views:
        """Returns the views of these options."""
        key = option.tower, option.taps, option.scales, option.border
        if key not in self._views:
            self._views[key] = views.make(
                _tower(option.tower),
                option.taps,
                option.scales,
                option.border,
                self._data.test.shape[1:3],
            )
        return self._views[key]

    def test(self, option: options.Options) -> list[np.ndarray]:
        """Features of the test images, one array a view."""
        return self._look(option, "test", self._data.test)

    def turned(self, option: options.Options, shots: np.ndarray) -> list[Any]:
        """What `complete.filled` takes, of shots by their numbers."""
        pool = views.copies(self._data.normal, option.turns, option.mirrors)
        return [
            (
                [array[shots] for array in self._look(option, str(place), pictures)],
                np.arange(len(shots), dtype=np.int32),
            )
            for place, (pictures, _) in enumerate(pool)
        ]

    def _look(self, option: options.Options, name: str, pictures: np.ndarray):
        own = option.turns, option.mirrors
        key = option.tower, option.taps, option.scales, option.border, name, own
        if name in ("test", "0"):  # as they are
            key = key[:-1]
        if key not in self._kept:
            seen = self.views(option)
            look = jax.jit(lambda image: seen.look(seen.params, image / 255))
            arrays = trees.batched(
                lambda rows: look(rows.astype(np.float32)), 4, pictures
            )
            self._kept[key] = [array.astype(np.float16) for array in arrays]
        return [array.astype(np.float32) for array in self._kept[key]]


@functools.cache
def _tower(name: str) -> towers.FeatureTower:
    return towers.load(name)


@functools.cache
def _score(option: options.Options):
    def score(params, looks):
        nobody = jnp.full(len(looks[0]), patches.NOBODY, jnp.int32)
        return predict.scores(option, params, looks, jnp.zeros_like(nobody), nobody)

    return jax.jit(score)


def measured(
    data: Images, encoder: Encoder, option: options.Options, shots: np.ndarray
) -> dict[str, float]:
    """Metrics of one row on one draw, in percent."""
    seen = encoder.views(option)
    memory = complete.Memory(option, seen, ("set",), (data.normal[shots],))
    params = complete.filled(
        memory, complete.blank(memory), 0, encoder.turned(option, shots)
    )
    looks = encoder.test(option)
    values, image_score = _score(option)(params, looks)
    values = np.asarray(values)
    size = data.test.shape[1] // 2, data.test.shape[2] // 2
    enlarged = np.asarray(predict.enlarged(values, option.smoothing, size))
    batch = {"label": data.label, "valid": np.ones(len(values), bool)}
    found = Predictions(enlarged, np.asarray(image_score))
    metrics = [ranking.images()]
    if data.mask is not None:
        batch["mask"] = data.mask
        metrics.append(ranking.histogram())
    result: dict[str, float] = {}
    for metric in metrics:
        result |= metric.finalize(metric.update(metric.init(), found, batch))
    return {name: 100 * float(value) for name, value in result.items()}


def compare(
    rows: Sequence[Mapping[str, Any]], first: str, second: str, metric: str
) -> dict[str, Any]:
    """Differences second - first, paired by set, K and draw.

    Returns:
      Mean over sets and its 95 % interval over draws (each draw averaged over sets and
      K), and the mean of every set.
    """
    values = {(r["row"], r["set"], r["K"], r["draw"]): r.get(metric) for r in rows}
    differences: dict[str, dict[int, list[float]]] = {}
    for (row, name, shots, draw), value in values.items():
        other = values.get((second, name, shots, draw))
        if row == first and value is not None and other is not None:
            by_draw = differences.setdefault(name, {})
            by_draw.setdefault(draw, []).append(other - value)
    per_set = {
        name: {d: np.mean(v) for d, v in by.items()} for name, by in differences.items()
    }
    if not differences:  # no set has masks
        return {}
    draws = sorted({draw for by in per_set.values() for draw in by})
    over_sets = [np.mean([by[draw] for by in per_set.values()]) for draw in draws]
    error = np.std(over_sets, ddof=1) / np.sqrt(len(draws)) if len(draws) > 1 else 0
    return {
        "mean": round(float(np.mean(over_sets)), 2),
        # Student's t at 97.5 % of few draws.
        "interval": round(float({5: 2.776, 3: 4.303}.get(len(draws), 2.26) * error), 2),
        "per_set": {
            name: round(float(np.mean(list(by.values()))), 2)
            for name, by in per_set.items()
        },
    }


def write(
    path: Path,
    results: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
    ours: str,
) -> None:
    """Writes the record: every measurement, and how far one row is ahead of others."""
    names = ("image_auroc", "pixel_auroc", "pixel_ap")
    ahead = {
        row: {name: compare(results, row, ours, name) for name in names}
        for row in rows
        if row != ours
    }
    text = {
        "machine": record.machine(),
        f"{ours} less": ahead,
        "rows": [
            {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
            for row in results
        ],
    }
    path.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def on_set(
    name: str, data: Images, rows: Mapping[str, Mapping[str, Any]], num_draws: int
) -> list[dict[str, Any]]:
    """Measures all rows on one set."""
    encoder, results = Encoder(data), []
    for row, changes in rows.items():
        option = settings(changes)
        for shots in SHOTS:
            for draw in range(num_draws):
                order = np.random.default_rng(draw).permutation(len(data.normal))
                one = measured(data, encoder, option, order[:shots])
                results.append(
                    {"row": row, "set": name, "K": shots, "draw": draw, **one}
                )
        own = [r for r in results if r["row"] == row]
        means = {k: np.mean([r[k] for r in own]) for k in own[0] if "auroc" in k}
        print(name, row, {k: round(float(v), 1) for k, v in means.items()}, flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.photographs.few_shot"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="*", type=Path, help="folders instead of SETS")
    parser.add_argument("--elpv", type=Path, help="what `jaxanom data elpv` wrote")
    parser.add_argument("--draws", type=int, default=NUM_DRAWS)
    parser.add_argument("--out", type=Path, default=RECORD)
    arguments = parser.parse_args(argv)
    places = arguments.sets or [arguments.data / name for name in SETS]
    places += [arguments.elpv] if arguments.elpv else []
    results: list[dict[str, Any]] = []
    for place in places:
        data = read(place, arguments.draws * max(SHOTS))
        results += on_set(place.name, data, ROWS, arguments.draws)
        write(arguments.out, results, ROWS, OURS)  # a set that takes long loses nothing


if __name__ == "__main__":
    main()
