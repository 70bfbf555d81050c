"""How real the images of a generated set look, beside two yardsticks.

Every number compares images with the same real defects on a feature tower. The
yardsticks say what it can be at best and at worst: real defects against other real
defects, and normal images against real defects. All three rows take as many images, as
some of the numbers depend on how many there are.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxanom import record, trees
from jaxanom.data import canvas, generated, images
from jaxanom.data.layouts import mvtec
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.errors import UserError
from jaxanom.evaluation import runner
from jaxanom.metrics import generation
from jaxanom.models.features import towers
from jaxanom.report import tables

BATCH_SIZE = 16
LEAST = 4
"""Images of a row, one more than the neighbours that precision and recall look at."""

ROWS = {
    "generated": "generated",
    "real": "real defects, other half",
    "normal": "normal images",
}
COLUMNS = {
    "frechet": "Frechet",
    "kernel": "Kernel",
    "precision": "Precision",
    "recall": "Recall",
    "diversity": "Diversity in clusters",
    "nearest": "Nearest real defect",
}


def evaluate_generated(
    directory: str | Path,
    data: str | Path,
    tower: str = towers.DEFAULT,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Compares a generated set with real defects, per category and over categories.

    Real images are brought to the size of the generated ones first, so that sharpness
    is not taken for realism: stretched to it where it is square, else fitted in, as
    the two choices of `config.data.aspect` do. Frechet distance, kernel distance,
    precision and recall are those to one half of the real defects. "nearest" is the
    mean distance to the nearest of all other real defects, near 0 where training
    images are copied.
    "diversity" is among images that resemble the same real defect of their type.

    Args:
      directory: A set that `jaxanom generate` wrote.
      data: Real images of the same categories in the MVTec layout.
      tower: What images are compared by; see `models.features.towers`.
      out: JSON file to write, if any.

    Returns:
      {"tower", "num_images": {category: {row: int}}, "per_category": {category: {row:
      {number: float}}}, "mean": {row: {number: float}}}, with the keys of `ROWS` and
      `COLUMNS`.

    Raises:
      UserError: There is no such set, or too few images of a kind in a category.
    """
    network = towers.load(tower)
    drawn = [row for row in generated.read(directory) if row.defect_type != GOOD]
    categories = tuple(dict.fromkeys(row.category for row in drawn))
    records = mvtec.read_folder(data, categories)
    features_of = _extractor(network, images.header_size(drawn[0].image)[::-1])
    per_category, num_images = {}, {}
    for category in categories:
        real = [row for row in records if row.category == category]
        groups = {
            "generated": [row for row in drawn if row.category == category],
            "real": [row for row in real if row.defect_type != GOOD],
            "normal": [row for row in real if row.defect_type == GOOD],
        }
        _check_counts(category, groups, {"generated": directory}, data)
        features = {name: features_of(rows) for name, rows in groups.items()}
        types = {
            name: np.array([row.defect_type for row in rows])
            for name, rows in groups.items()
        }
        per_category[category] = _numbers(features, types)
        num_images[category] = {name: len(rows) for name, rows in groups.items()}
    results = {
        "tower": tower,
        "num_images": num_images,
        "per_category": per_category,
        "mean": {
            name: runner.mean_over_categories(
                {category: rows[name] for category, rows in per_category.items()}
            )
            for name in ROWS
        },
    }
    if out is not None:
        record.write_json(Path(out), results)
    return results


def _check_counts(category, groups, places, data) -> None:
    for name, least in (("generated", LEAST), ("real", 2 * LEAST), ("normal", LEAST)):
        if len(groups[name]) < least:
            what = "real defects" if name == "real" else f"{name} images"
            raise UserError(
                f"{places.get(name, data)} has {len(groups[name])} {what} of "
                f"{category!r}; at least {least} needed"
            )


def _extractor(
    tower: towers.FeatureTower, size: tuple[int, int]
) -> Callable[[Sequence[Record]], np.ndarray]:
    """Returns (N records) -> their images' features [N, D] float64, compiled once.

    Args:
      tower: Sees images at its own size, along their shorter side.
      size: (height, width) that all images are brought to first.
    """
    sides = [round(tower.size * side / min(size)) for side in size]
    resize = images.resize_image if size[0] == size[1] else canvas.fit_image

    @jax.jit
    def pooled(params, batch):
        resized = jax.image.resize(batch, (len(batch), *sides, 3), "cubic")
        return tower.pooled(params, resized.clip(0, 1))

    def features_of(rows):
        parts = []
        for numbers, count in trees.fixed_batches(len(rows), BATCH_SIZE):
            batch = [images.load_image(rows[number].image) for number in numbers]
            batch = pooled(tower.params, images.to_batch(batch, size, resize))
            parts.append(np.asarray(batch, np.float64)[:count])
        return np.concatenate(parts)

    return features_of


def _numbers(
    features: dict[str, np.ndarray], types: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Returns {row: {number: value}} of one category."""
    # Every second defect, so that both halves hold all types.
    other, half = (slice(start, None, 2) for start in (0, 1))
    real, real_types = features["real"], types["real"]
    normal_types = np.full(len(real), GOOD)  # no type of their own: all are one
    among = generation.distances(real, real)
    np.fill_diagonal(among, np.inf)
    nearest = {
        name: generation.distances(features[name], real).min(1)
        for name in ("generated", "normal")
    } | {"real": among.min(1)}
    subjects = {
        "generated": (features["generated"], types["generated"], real, real_types),
        "real": (real[other], real_types[other], real[half], real_types[half]),
        "normal": (features["normal"], types["normal"], real, normal_types),
    }
    size = min(len(subject) for subject, *_ in subjects.values())
    numbers = {}
    for name, subject in subjects.items():
        picked = np.linspace(0, len(subject[0]) - 1, size).round().astype(int)
        compared = subject[0][picked], real[half]
        precision, recall = generation.precision_recall(*compared, LEAST - 1)
        numbers[name] = {
            "frechet": generation.frechet_distance(*compared),
            "kernel": generation.kernel_distance(*compared),
            "precision": precision,
            "recall": recall,
            "diversity": _diversity(*subject),
            "nearest": float(nearest[name].mean()),
        }
    return numbers


def _diversity(
    subject: np.ndarray, types: np.ndarray, real: np.ndarray, real_types: np.ndarray
) -> float:
    """Averages the diversity in clusters over defect types; NaN where none has any."""
    values = []
    for kind in sorted(set(types) & set(real_types)):
        own = subject[types == kind]
        to_real = generation.distances(own, real[real_types == kind])
        among = generation.distances(own, own)
        values.append(generation.cluster_diversity(to_real, among))
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def table(results: dict[str, Any]) -> tables.Table:
    """Tabulates what `evaluate_generated` returns."""
    sections = dict(results["per_category"])
    if len(sections) > 1:
        sections["Mean"] = results["mean"]
    rows = tuple(
        (category, heading, *(numbers[name][key] for key in COLUMNS))
        for category, numbers in sections.items()
        for name, heading in ROWS.items()
    )
    return tables.Table(
        ("Category", "Images", *COLUMNS.values()),
        rows,
        caption=f"Against one half of the real defects, by {results['tower']}.",
        notes=(
            "Lower is closer for both distances; of few images the kernel distance "
            "tells most, and precision does not fall where defects are missing. A "
            "nearest defect much nearer than among real ones tells of copies.",
        ),
    )
