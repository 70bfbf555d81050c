"""What each protocol measures, and in which order tables show it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxanom.contracts import Metric
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
    """Returns what a table of evaluations has to say about columns that it lacks."""
    missing = [name for result in results for name in result.get("without_masks", ())]
    if not missing:
        return ()
    folders = ", ".join(dict.fromkeys(missing))
    return (f"Pixels were not measured where masks are missing: {folders}.",)
