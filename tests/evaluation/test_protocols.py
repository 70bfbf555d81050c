import numpy as np
import pytest

from jaxanom.evaluation import protocols
from jaxanom.report import tables
from jaxanom.types import Predictions


@pytest.mark.parametrize(
    "protocol", [protocols.image_detection(), protocols.few_shot_supervised()]
)
def test_columns_are_exactly_what_the_metrics_report(protocol):
    maps = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)
    batch = {
        "mask": (maps > 0.7).astype(np.float32),
        "label": np.array([1, 0, 1, 0], np.int32),
        "valid": np.ones(4, bool),
    }
    predictions = Predictions(maps, maps.max((1, 2)))
    reported = []
    for name, metric in protocol.metrics.items():
        state = metric.update(metric.init(), predictions, batch)
        reported += metric.finalize(state)
        assert name == "errors" or protocol.curves[name](state)
    shown = protocols.columns_of([{"mean": reported}])
    assert reported == list(shown)


def test_curves_belong_to_metrics():
    protocol = protocols.few_shot_supervised()
    assert list(protocol.curves) == ["image", "pixel", "regions"]
    assert protocol.curves.keys() <= protocol.metrics.keys()


def test_a_spread_is_measured_where_there_is_one():
    metric = protocols.few_shot_supervised().metrics["errors"]
    maps = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)
    batch = {"mask": (maps > 0.7).astype(np.float32), "valid": np.ones(4, bool)}
    alone = Predictions(maps, maps.max((1, 2)))
    assert metric.finalize(metric.update(metric.init(), alone, batch)) == {}
    both = alone._replace(anomaly_map_std=maps)
    found = metric.finalize(metric.update(metric.init(), both, batch))
    shown = ["pixel_error_auroc", "pixel_error_auroc_of_mean"]
    assert list(protocols.columns_of([{"mean": found}])) == shown


@pytest.mark.parametrize("target", [None, "defect_id", "category_id"])
def test_categories_as_classes_leave_detection_out(target):
    detection = protocols.image_detection()
    protocol, pooled = protocols.with_classes(detection, target)
    names = {"image"} if target is None else {"image", "classes"}
    assert pooled == (target == "category_id")
    assert set(protocol.metrics) == names - ({"image"} if pooled else set())


def test_a_category_of_one_class_has_no_trivial_number_and_says_why():
    def values(number):
        return {"image_auroc": number, "image_ap": number, "pixel_ap": 0.5}

    results = {
        "per_category": {"nut": values(1.0), "cap": values(0.8)},
        "mean": values(0.9),
        "curves": {"nut": {"image/precision_recall": {}}},
    }
    protocols.undefined_without_both(results, {"nut": {1}, "cap": {0, 1}})
    assert np.isnan(results["per_category"]["nut"]["image_ap"])
    assert results["per_category"]["nut"]["pixel_ap"] == 0.5
    assert results["mean"] == values(0.8) and not results["curves"]["nut"]
    (note,) = protocols.notes_of([results])
    assert "no good one" in note and "nut" in note and "cap" not in note
    table = tables.per_category(results, {"image_ap": "AP"})
    assert table.rows == (("nut", "no good"), ("cap", "80.0"), ("Mean", "80.0"))
