"""What each protocol measures, and in which order tables show it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxanom.contracts import Metric
from jaxanom.evaluation import runner
from jaxanom.metrics import ranking, recognition, regions, uncertainty

COLUMNS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1_max": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_f1_max": "Pixel F1-max",
    "pixel_aupro": "AU-PRO",
    "pixel_error_auroc": "Errors by std, AUROC",
    "pixel_error_auroc_of_mean": "Errors by mean, AUROC",
    # Tables show hundredths: percent of shares, and of nats.
    "accuracy": "Accuracy",
    "nll": "100 x NLL",
    "ece": "Calibration error",
    "mutual_information": "Mutual information (0.01 nat)",
}
"""Key of a result -> heading, in table order."""


IMAGE_KEYS = ("image_auroc", "image_ap", "image_f1_max")
LACKS = {
    "good": "the test images hold no good one, so ranking images is undefined",
    "defective": "the test images hold no defective one, so ranking is undefined",
}
"""Class that the test images of a category lack -> what a dash means there."""


class Protocol(NamedTuple):
    """Arguments of `runner.evaluate`.

    Attributes:
      metrics: Metrics by name.
      curves: Functions of the state of the metric of the same name.
    """

    metrics: Mapping[str, Metric]
    curves: Mapping[str, Callable[[Any], Mapping[str, Any]]]


def image_detection(rescale: ranking.Rescale | None = None) -> Protocol:
    """Does an image hold a defect? For datasets without masks.

    Args:
      rescale: `Method.rescale`; scores then depend on the other test images of their
        category (transductive).
    """

    def image_curves(state: ranking.Scores) -> dict[str, ranking.Curve]:
        scores = ranking.rescaled(state, rescale)
        return ranking.curves(ranking.count_scores(scores))

    return Protocol({"image": ranking.images(rescale)}, {"image": image_curves})


def few_shot_supervised(rescale: ranking.Rescale | None = None) -> Protocol:
    """Detection and localisation: the seven columns of defect-generation papers.

    A detector sees a few real defects per type (with or without generated ones) and is
    tested on the rest and on all normal test images. One whose maps have a spread is
    told too whether that finds their errors, see `metrics.uncertainty`.

    Args:
      rescale: See `image_detection`.
    """
    image = image_detection(rescale)

    def pixel_curves(
        state: ranking.Pixels | ranking.Histogram,
    ) -> dict[str, ranking.Curve]:
        return ranking.curves(ranking.count_pixels(state))

    return Protocol(
        metrics={
            **image.metrics,
            "pixel": ranking.pixels(),
            "regions": regions.per_region_overlap(),
            "errors": uncertainty.error_detection(),
        },
        curves={**image.curves, "pixel": pixel_curves, "regions": regions.curves},
    )


def with_classes(protocol: Protocol, target: str | None) -> tuple[Protocol, bool]:
    """Adds what is measured of a method that tells classes apart.

    Few-shot, base-to-new and cross-dataset classification differ in the images and
    class names that a method is made with, not in what is measured.

    Args:
      protocol: What is measured of detection.
      target: The batch entry that holds the class, see `contracts.Method`.

    Returns:
      (protocol, whether images of all categories count in one pool): categories as
      classes hold no defects, so detection is then left out.
    """
    if target is None:
        return protocol, False
    classes = {"classes": recognition.exact(target)}
    if target == "category_id":
        return Protocol(classes, {}), True
    return protocol._replace(metrics={**protocol.metrics, **classes}), False


def columns_of(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns {metric: heading} of what results of `runner.evaluate` hold, in order."""
    present = {key for result in results for key in result["mean"]}
    return {key: heading for key, heading in COLUMNS.items() if key in present}


def notes_of(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns what a table of evaluations has to say about numbers that it lacks."""
    notes = []
    missing = [name for result in results for name in result.get("without_masks", ())]
    if missing:
        folders = ", ".join(dict.fromkeys(missing))
        notes.append(f"Pixels were not measured where masks are missing: {folders}.")
    reasons: dict[str, list[str]] = {}
    for result in results:
        for category, lacks in result.get("one_class", {}).items():
            reasons.setdefault(lacks, []).append(category)
    for lacks, categories in reasons.items():
        notes.append(
            f"A dash (–): {LACKS[lacks]}; {', '.join(dict.fromkeys(categories))}."
        )
    return tuple(notes)


def undefined_without_both(results: dict[str, Any], labels: Mapping[str, set]) -> None:
    """Blanks, in place, what ranks images of a category that has one class only.

    AP and F1-max of defective images alone are 100 % for any detector.

    Args:
      results: From `runner.evaluate`; gains `one_class`, {category: key of `LACKS`},
        where there is such a category.
      labels: {category: labels of its test images, 0 or 1}.
    """
    one_class = {
        name: "good" if 1 in labels[name] else "defective"
        for name in results["per_category"]
        if len(labels.get(name, {0, 1})) == 1
    }
    if not one_class:
        return
    for name in one_class:
        values = results["per_category"][name]
        values.update({key: math.nan for key in IMAGE_KEYS if key in values})
        results["curves"].get(name, {}).pop("image/precision_recall", None)
    results["mean"].update(
        {
            key: value
            for key, value in runner.mean_over_categories(
                results["per_category"]
            ).items()
            if key in IMAGE_KEYS
        }
    )
    results["one_class"] = one_class
