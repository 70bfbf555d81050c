"""Predicts a split once and reduces every metric, per category and over categories."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxanom.contracts import Metric
from jaxanom.errors import UserError
from jaxanom.types import Batch, Predictions

KEEP_LIMIT = 64
CurvesFn = Callable[[Any], Mapping[str, Any]]
"""State of a metric -> its curves by name."""


def evaluate(
    predict: Callable[[Batch], Predictions],
    batches: Iterable[Batch],
    metrics: Mapping[str, Metric],
    *,
    categories: Sequence[str] | None = None,
    curves: Mapping[str, CurvesFn] | None = None,
    keep_indices: Collection[int] = (),
    gather: Callable[[Any], Any] | None = None,
    pooled: bool = False,
) -> dict[str, Any]:
    """Evaluates a detector on a split, in one pass over its batches.

    Rows with `valid` False count nowhere. Each category has its own metric states, and
    the mean weighs categories alike, as benchmark tables do. A metric that is NaN
    (undefined, say AUROC of an all-normal category) is left out of the mean; it is NaN
    there only if no category defines it.

    Args:
      predict: From a batch to predictions; compiled, and bound to parameters.
      batches: Padded batches (types.py).
      metrics: Metrics by any name; results carry the names that `finalize` gives.
      categories: Names by `category_id`; numbers are used by default.
      curves: Functions of the state of the metric of the same name.
      keep_indices: Values of `index` whose pictures are returned, at most 64.
      gather: (predictions, batch) -> the same on the host. Needed on several
        processes; otherwise each metric fetches what it reads.
      pooled: Images of all categories count together, as the category "all".

    Returns:
      `mean`: {metric: float}; `per_category`: {category: {metric: float}};
      `num_images`: {category: int}; `curves`: {category: {curve: points}};
      `examples`: list of dicts of numpy arrays with `index`, `category`, `label`,
      `image`, `mask` (None without one), `anomaly_map`, `anomaly_map_std` (None of a
      method without a posterior), `image_score`, in the order of `keep_indices`. All
      but the last is plain JSON data.
    """
    if len(keep_indices) > KEEP_LIMIT:
        raise UserError(
            f"{len(keep_indices)} examples to keep; choose at most {KEEP_LIMIT}"
        )
    states: dict[int, dict[str, Any]] = {}
    num_images: dict[int, int] = {}
    examples = []
    for batch in batches:
        predictions = predict(batch)
        if gather is not None:
            predictions, batch = gather((predictions, batch))
        category_id = np.asarray(batch["category_id"])
        if pooled:
            category_id = np.zeros_like(category_id)
        valid = np.asarray(batch["valid"], bool)
        for number in np.unique(category_id[valid]).tolist():
            rows = valid & (category_id == number)
            of_category = {**batch, "valid": rows}
            state = states.setdefault(number, {n: m.init() for n, m in metrics.items()})
            for name, metric in metrics.items():
                state[name] = metric.update(state[name], predictions, of_category)
            num_images[number] = num_images.get(number, 0) + int(rows.sum())
        examples += _kept(predictions, batch, keep_indices)
    if not states:
        raise UserError("no batch holds a valid image; the split is empty")

    numbers = sorted(states)
    names = ["all"] if pooled else [_name(number, categories) for number in numbers]
    named = dict(zip(names, numbers, strict=True))
    per_category = {
        name: _finalize(metrics, states[number]) for name, number in named.items()
    }
    order = {index: place for place, index in enumerate(keep_indices)}
    for example in examples:
        example["category"] = _name(example.pop("category_id"), categories)
    return {
        "mean": mean_over_categories(per_category),
        "per_category": per_category,
        "num_images": {name: num_images[number] for name, number in named.items()},
        "curves": {
            name: _curves(curves or {}, states[number])
            for name, number in named.items()
        },
        "examples": sorted(examples, key=lambda example: order[example["index"]]),
    }


def mean_over_categories(
    per_category: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """Averages each metric over the categories that define it."""
    names = list(dict.fromkeys(name for row in per_category.values() for name in row))
    means = {}
    for name in names:
        values = np.array([row.get(name, np.nan) for row in per_category.values()])
        defined = values[~np.isnan(values)]
        means[name] = float(defined.mean()) if len(defined) else float("nan")
    return means


def _finalize(
    metrics: Mapping[str, Metric], states: Mapping[str, Any]
) -> dict[str, float]:
    results: dict[str, float] = {}
    for name, metric in metrics.items():
        values = metric.finalize(states[name])
        twice = sorted(results.keys() & values.keys())
        if twice:
            raise UserError(f"two metrics report {twice}; drop one of them")
        results.update(values)
    return results


def _curves(
    curves: Mapping[str, CurvesFn], states: Mapping[str, Any]
) -> dict[str, dict[str, list[float]]]:
    """Returns {"metric/curve": {"x": [...], "y": [...]}}."""
    return {
        f"{name}/{curve}": {"x": points.x, "y": points.y}
        for name, curves_fn in curves.items()
        for curve, points in curves_fn(states[name]).items()
    }


def _kept(
    predictions: Predictions, batch: Batch, keep_indices: Collection[int]
) -> list[dict[str, Any]]:
    """Copies valid rows of a batch that are to be kept to the host."""
    if len(keep_indices) == 0:
        return []
    indices = np.asarray(batch["index"])
    kept = np.isin(indices, list(keep_indices)) & np.asarray(batch["valid"], bool)
    mask, std = batch.get("mask"), predictions.anomaly_map_std
    return [
        {
            "index": int(indices[row]),
            "category_id": int(batch["category_id"][row]),
            "label": int(batch["label"][row]),
            "image": np.array(batch["image"][row]),
            "mask": None if mask is None else np.array(mask[row]),
            "anomaly_map": np.array(predictions.anomaly_map[row]),
            "anomaly_map_std": None if std is None else np.array(std[row]),
            "image_score": float(predictions.image_score[row]),
        }
        for row in np.flatnonzero(kept)
    ]


def _name(number: int, categories: Sequence[str] | None) -> str:
    if categories is None:
        return str(number)
    if not 0 <= number < len(categories):
        raise UserError(
            f"category_id is {number}, but {len(categories)} categories were named; "
            "pass Dataset.categories"
        )
    return categories[number]
