"""What each protocol measures, and in which order its tables show it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxanom.contracts import Metric
from jaxanom.metrics import ranking, recognition, regions, uncertainty


class Protocol(NamedTuple):
    """Arguments of `runner.evaluate` and headings of its results.

    Attributes:
      metrics: by name.
      curves: functions of the state of the metric of the same name.
      columns: key of a result -> heading, in table order.
    """

    metrics: Mapping[str, Metric]
    curves: Mapping[str, Callable[[Any], Mapping[str, Any]]]
    columns: Mapping[str, str]


def image_detection(rescale: ranking.Rescale | None = None) -> Protocol:
    """Does an image hold a defect? For datasets without masks.

    Args:
      rescale: `Method.rescale`; scores then depend on the other test images of their
        category (transductive).
    """

    def image_curves(state: ranking.Scores) -> dict[str, ranking.Curve]:
        scores = ranking.rescaled(state, rescale)
        return ranking.curves(ranking.count_scores(scores))

    return Protocol(
        metrics={"image": ranking.exact("image", rescale)},
        curves={"image": image_curves},
        columns={
            "image_auroc": "Image AUROC",
            "image_ap": "Image AP",
            "image_f1_max": "Image F1-max",
        },
    )


def few_shot_supervised(
    fpr_limit: float = regions.FPR_LIMIT, rescale: ranking.Rescale | None = None
) -> Protocol:
    """Detection and localisation: the seven columns of defect-generation papers.

    A detector sees a few real defects per type (with or without generated ones) and is
    tested on the rest and on all normal test images.

    Args:
      fpr_limit: up to which AU-PRO is integrated.
      rescale: see `image_detection`.
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
            "regions": regions.per_region_overlap(fpr_limit=fpr_limit),
        },
        curves={**image.curves, "pixel": pixel_curves, "regions": regions.curves},
        columns={
            **image.columns,
            "pixel_auroc": "Pixel AUROC",
            "pixel_ap": "Pixel AP",
            "pixel_f1_max": "Pixel F1-max",
            "pixel_aupro": "AU-PRO",
        },
    )


def classification(target: str) -> Protocol:
    """Which class does an image show? Few-shot, base-to-new and cross-dataset alike.

    They differ in the images and class names that a method is made with, not in what is
    measured. Images of all classes count in one pool.

    Args:
      target: batch entry that holds the class.
    """
    return Protocol(
        metrics={"classes": recognition.exact(target)},
        curves={},
        columns={
            # Tables show hundredths: percent of shares, and of nats.
            "accuracy": "Accuracy",
            "nll": "100 x NLL",  # tables are in percent
            "ece": "Calibration error",
            "mutual_information": "Mutual information (0.01 nat)",
        },
    )


def columns_of(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns {metric: heading} of what evaluations hold, in table order.

    Args:
      results: of `runner.evaluate`.
    """
    known = with_spread(few_shot_supervised()).columns | classification("").columns
    return {
        key: heading
        for key, heading in known.items()
        if any(key in result["mean"] for result in results)
    }


def notes_of(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns what a table of evaluations has to say about columns that it lacks.

    Args:
      results: of `api.evaluate`.
    """
    missing = [name for result in results for name in result.get("without_masks", ())]
    if not missing:
        return ()
    folders = ", ".join(dict.fromkeys(missing))
    return (f"Pixels were not measured where masks are missing: {folders}.",)


def with_spread(protocol: Protocol) -> Protocol:
    """Adds whether the spread of maps finds their errors.

    Detectors without a spread report nothing of it; see `metrics.uncertainty`.
    """
    return protocol._replace(
        metrics={**protocol.metrics, "errors": uncertainty.error_detection()},
        columns={
            **protocol.columns,
            "pixel_error_auroc": "Errors by std, AUROC",
            "pixel_error_auroc_of_mean": "Errors by mean, AUROC",
        },
    )


def with_classes(protocol: Protocol, target: str | None) -> tuple[Protocol, bool]:
    """Adds what is measured of a method that tells classes apart.

    Args:
      protocol: of detection.
      target: of the method, see `contracts.Method`.

    Returns:
      (protocol, whether images of all categories count in one pool): categories as
      classes hold no defects, so detection is then left out.
    """
    if target is None:
        return protocol, False
    classes = classification(target)
    if target == "category_id":
        return classes, True
    both = ({**a, **b} for a, b in zip(protocol, classes, strict=True))
    return Protocol(*both), False
