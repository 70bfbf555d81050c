"""Every image and pixel metric on 200 anomaly maps of 518 x 518, beside scikit-learn.

    python -m benchmarks.speed.metrics [--num-images N] [--size S] [--record]

Ours: what `jaxanom evaluate` computes, in its batches, from maps that are at hand:
AUROC, AP and F1-max of images and of pixels, and AU-PRO. scikit-learn sorts all pixels;
AU-PRO has no peer there. `error` is the largest difference of any metric both have.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks import harness
from jaxanom.evaluation import protocols
from jaxanom.types import Predictions

NAME = "metrics"
BATCH_SIZE = 8


def draw(num_images: int, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws smooth maps in (0, 1), higher where a third of the images is defective."""
    rng = np.random.default_rng(seed)
    side = max(size // 8, 4)
    mask = np.zeros((num_images, size, size), bool)
    for number in range(0, num_images, 3):
        for _ in range(2):
            top, left = rng.integers(0, size - side, 2)
            mask[number, top : top + side, left : left + side] = True
    noise = rng.standard_normal((num_images, size, size), np.float32)
    smooth = ndimage.uniform_filter(noise, (0, 7, 7))
    maps = 1 / (1 + np.exp(-8 * smooth - 2 * mask))
    return {
        "maps": maps.astype(np.float32),
        "mask": mask,
        "label": mask.any((1, 2)).astype(np.int32),
        "score": maps.max((1, 2)).astype(np.float32),
    }


def ours(drawn: dict[str, np.ndarray]) -> dict[str, float]:
    """Streams the maps through the metrics of `jaxanom evaluate`."""
    metrics = protocols.few_shot_supervised().metrics
    states = {name: metric.init() for name, metric in metrics.items()}
    total = len(drawn["label"])
    for start in range(0, total, BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        predictions = Predictions(
            anomaly_map=drawn["maps"][part], image_score=drawn["score"][part]
        )
        batch = {
            "label": drawn["label"][part],
            "mask": drawn["mask"][part].astype(np.float32),
            "valid": np.ones(len(drawn["label"][part]), bool),
        }
        for name, metric in metrics.items():
            states[name] = metric.update(states[name], predictions, batch)
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        values |= metric.finalize(states[name])
    return values


def scikit_learn(drawn: dict[str, np.ndarray]) -> dict[str, float]:
    """The same from scikit-learn, which has no AU-PRO."""
    from sklearn import metrics

    values = {}
    for level, score, truth in (
        ("image", drawn["score"], drawn["label"]),
        ("pixel", drawn["maps"].ravel(), drawn["mask"].ravel()),
    ):
        precision, recall, _ = metrics.precision_recall_curve(truth, score)
        # Both are 0 at most at one end, where F1 is 0.
        harmonic = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        values |= {
            f"{level}_auroc": metrics.roc_auc_score(truth, score),
            f"{level}_ap": metrics.average_precision_score(truth, score),
            f"{level}_f1_max": harmonic.max(),
        }
    return {name: float(value) for name, value in values.items()}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(NAME)
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--size", type=int, default=518)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    drawn = draw(settings.num_images, settings.size)
    shared = {"num_images": settings.num_images, "image_size": settings.size}
    results: dict[str, dict[str, float]] = {}

    def case(name, measure):
        def call():
            # What is timed is what is compared: scikit-learn's turn takes minutes.
            results[name] = measure(drawn)

        return harness.Case(name, call, facts=shared)

    ours(drawn)  # a warm-up of the one that compiles
    cases = [case("ours", ours), case("scikit-learn", scikit_learn)]
    rows = harness.run(cases, settings.warmup, settings.repeats)
    ours_values, peer_values = results["ours"], results["scikit-learn"]
    gaps = {name: abs(ours_values[name] - peer_values[name]) for name in peer_values}
    print({name: f"{gap:.1e}" for name, gap in gaps.items()})
    rows[0]["error"] = max(gaps.values())
    for row in rows:
        row["times_ours"] = row["median_s"] / rows[0]["median_s"]
    return harness.report(NAME, rows, settings.record)


if __name__ == "__main__":
    main()
