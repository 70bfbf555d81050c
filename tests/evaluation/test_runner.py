import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.contracts import Metric
from jaxanom.evaluation import protocols, runner
from jaxanom.types import Predictions

CATEGORIES = ("bolt", "plate")


def predict(batch):
    """The red channel is the anomaly map."""
    anomaly_map = jnp.asarray(batch["image"])[..., 0]
    return Predictions(anomaly_map, anomaly_map.max(axis=(1, 2)))


def split(seed=0, num=12, side=8, categories=2):
    """Images whose red channel is noise, brighter in the defect."""
    rng = np.random.default_rng(seed)
    label = (np.arange(num) % 3 > 0).astype(np.int32)
    mask = (rng.random((num, side, side)) < 0.2) & (label[:, None, None] == 1)
    image = rng.random((num, side, side, 3)).astype(np.float32) / 2
    image[..., 0] += mask / 2 * rng.random(mask.shape)
    return {
        "image": image.astype(np.float32),
        "mask": mask.astype(np.float32),
        "label": label,
        "category_id": (np.arange(num) * categories // num).astype(np.int32),
        "defect_id": label,
        "index": np.arange(num, dtype=np.int32) + 100,
        "valid": np.ones(num, bool),
    }


def batches(examples, size):
    """Cuts into batches of one size; the last is padded with wrong values."""
    num = len(examples["valid"])
    for start in range(0, num, size):
        rows = np.arange(start, start + size)
        batch = {key: value[rows % num].copy() for key, value in examples.items()}
        batch["valid"] = rows < num
        batch["image"][~batch["valid"]] = np.nan
        yield batch


def rows_of(examples, chosen):
    return {key: value[chosen] for key, value in examples.items()}


def evaluate(examples, size=5, **options):
    protocol = protocols.few_shot_supervised()
    options.setdefault("categories", CATEGORIES)
    return runner.evaluate(
        predict,
        batches(examples, size),
        protocol.metrics,
        curves=protocol.curves,
        **options,
    )


def test_each_category_is_measured_as_if_it_were_alone():
    examples = split()
    result = evaluate(examples)
    assert result["num_images"] == {"bolt": 6, "plate": 6}
    for number, name in enumerate(CATEGORIES):
        alone = evaluate(rows_of(examples, examples["category_id"] == number))
        for key, value in alone["per_category"][name].items():
            # AU-PRO adds float64 weights, otherwise counts are equal integers.
            assert result["per_category"][name][key] == pytest.approx(value, abs=1e-12)


def test_mean_weighs_categories_alike():
    examples = split()
    examples["category_id"][:] = [0] * 9 + [1] * 3
    result = evaluate(examples)
    for key, value in result["mean"].items():
        per_category = [result["per_category"][name][key] for name in CATEGORIES]
        assert value == pytest.approx(np.mean(per_category), abs=1e-15)


@pytest.mark.parametrize("size", [1, 4, 7, 16])
def test_batch_size_and_padding_change_nothing(size):
    examples = split(num=7, categories=1)
    expected = evaluate(examples, size=7)["mean"]
    for key, value in evaluate(examples, size=size)["mean"].items():
        # AU-PRO adds float64 weights, otherwise counts are equal integers.
        assert value == pytest.approx(expected[key], abs=1e-12)


def test_counting_the_padding_would_be_noticed():
    """Negative control of the test above."""
    examples = split(num=7, categories=1)
    metrics = {"image": protocols.image_detection().metrics["image"]}
    padded = list(batches(examples, 4))
    for batch in padded:
        batch["valid"] = np.ones(4, bool)
        batch["image"] = np.nan_to_num(batch["image"], nan=1.0)
    wrong = runner.evaluate(predict, padded, metrics)["mean"]
    right = runner.evaluate(predict, batches(examples, 4), metrics)["mean"]
    assert wrong["image_auroc"] != right["image_auroc"]


def test_an_undefined_category_is_left_out_of_the_mean_and_shown_as_nan():
    examples = split()
    normal = examples["category_id"] == 1
    examples["label"][normal] = 0
    examples["mask"][normal] = 0
    result = evaluate(examples)
    assert all(np.isnan(value) for value in result["per_category"]["plate"].values())
    assert result["mean"] == result["per_category"]["bolt"]
    assert result["curves"]["plate"] == {}


def test_an_all_normal_split_is_undefined_throughout():
    examples = split(categories=1)
    examples["label"][:] = 0
    examples["mask"][:] = 0
    assert all(np.isnan(value) for value in evaluate(examples)["mean"].values())


def test_one_image_is_evaluated():
    examples = rows_of(split(categories=1), [1])
    result = evaluate(examples, size=1)["mean"]
    assert 0.5 < result["pixel_auroc"] <= 1
    assert np.isnan(result["image_auroc"])


def test_without_masks_image_metrics_remain():
    examples = split(categories=1)
    del examples["mask"]
    result = evaluate(examples, keep_indices=[101])
    assert 0 <= result["mean"]["image_auroc"] <= 1
    assert np.isnan(result["mean"]["pixel_auroc"])
    assert result["examples"][0]["mask"] is None


def test_chosen_examples_come_back_in_the_order_asked_for():
    examples = split()
    kept = evaluate(examples, size=5, keep_indices=[111, 100, 104])["examples"]
    assert [example["index"] for example in kept] == [111, 100, 104]
    assert [example["category"] for example in kept] == ["plate", "bolt", "bolt"]
    np.testing.assert_array_equal(kept[0]["anomaly_map"], examples["image"][11, ..., 0])
    np.testing.assert_array_equal(kept[1]["mask"], examples["mask"][0])
    assert kept[2]["image_score"] == pytest.approx(examples["image"][4, ..., 0].max())
    assert evaluate(examples)["examples"] == []


def test_results_but_for_pictures_are_json():
    result = evaluate(split(), keep_indices=[100])
    del result["examples"]
    assert json.loads(json.dumps(result)) == result
    curves = result["curves"]["bolt"]
    assert set(curves) == {
        "image/roc",
        "image/precision_recall",
        "pixel/roc",
        "pixel/precision_recall",
        "regions/pro",
    }
    assert all(
        len(points["x"]) == len(points["y"]) <= 200 for points in curves.values()
    )


def test_gather_is_applied_before_any_metric():
    seen = []

    def gather(tree):
        seen.append(tree)
        return tree

    examples = split()
    expected = evaluate(examples)
    assert evaluate(examples, gather=gather)["mean"] == expected["mean"]
    assert len(seen) == 3


def test_two_metrics_of_one_name_are_refused():
    metric = protocols.image_detection().metrics["image"]
    with pytest.raises(ValueError, match="two metrics report"):
        runner.evaluate(predict, batches(split(), 4), {"a": metric, "b": metric})


def test_empty_splits_unknown_categories_and_too_many_pictures_are_refused():
    examples = split()
    with pytest.raises(ValueError, match="the split is empty"):
        runner.evaluate(predict, [], {})
    with pytest.raises(ValueError, match="but 1 categories were named"):
        evaluate(examples, categories=("bolt",))
    with pytest.raises(ValueError, match="at most 64"):
        evaluate(examples, keep_indices=range(65))


def test_any_metric_of_the_contract_is_reduced():
    def update(state, predictions, batch):
        return state + int(np.sum(batch["valid"]))

    count = Metric(lambda: 0, update, lambda state: {"count": float(state)})
    result = runner.evaluate(predict, batches(split(), 5), {"count": count})
    assert result["per_category"] == {"0": {"count": 6.0}, "1": {"count": 6.0}}
