"""Run directories -> one page that needs nothing else."""

import numpy as np
import pytest

from jaxanom import record
from jaxanom.report import page, runs

pytest.importorskip("matplotlib")
METRICS = {"image_auroc": 0.9, "image_ap": 0.8, "image_f1_max": 0.7}
CURVE = {"image/roc": {"x": [0.0, 1.0], "y": [0.0, 1.0]}}


def make_run(directory, evaluated=True, category="bolt", seed=0):
    record.write_json(directory / record.CONFIG, {"seed": seed})
    record.write_json(directory / record.RECORD, {"method": "detector"})
    for step in (1, 2):
        row = {"kind": "train", "phase": "fit", "step": step, "global_step": step}
        record.append_metrics(directory / record.METRICS, row | {"loss": 1.0 / step})
    if evaluated:
        runs.write_evaluation(
            directory,
            {
                "mean": METRICS,
                "per_category": {category: METRICS},
                "num_images": {category: 3},
                "curves": {category: CURVE},
            },
            [example(number) for number in range(2)],
        )
    return directory


def example(number, mask=True):
    rng = np.random.default_rng(number)
    return {
        "image": rng.random((16, 16, 3)).astype(np.float32),
        "mask": (rng.random((16, 16)) > 0.9).astype(np.float32) if mask else None,
        "anomaly_map": rng.random((16, 16)).astype(np.float32),
        "image_score": 0.25 + 0.5 * number,
        "label": number,
    }


def shown(number):
    one = example(number)
    return {
        "label": "bolt, dent",
        "normal": one["image"],
        "inverted": np.zeros((4, 4, 4), np.float32),
        "image": (255 * one["image"]).astype(np.uint8),
        "mask": one["mask"].astype(np.uint8),
        "requested_mask": np.ones((16, 16), np.uint8),
    }


def written(tmp_path, *directories, **options):
    path = runs.write(tmp_path / "out.html", directories, "Title of it", **options)
    return path.read_text(encoding="utf-8")


def test_the_page_needs_no_other_file(tmp_path):
    text = written(tmp_path, make_run(tmp_path / "run"))
    assert "Title of it" in text and "90.0" in text
    for outside in ("http://", "https://", 'src="/', "url(http"):
        assert outside not in text.replace("http://www.w3.org", ""), outside
    assert "image score 0.75" in text and "defective" in text


def test_every_run_is_on_the_page_even_if_two_have_one_name(tmp_path):
    first = make_run(tmp_path / "a" / "run", seed=1234)
    second = make_run(tmp_path / "b" / "run", seed=5678)
    text = written(tmp_path, first, second)
    assert "a/run" in text and "b/run" in text
    assert "1234" in text and "5678" in text
    # One run given twice is one run, under its short name.
    twice = written(tmp_path, first, first)
    assert twice.count("run: config.json") == written(tmp_path, first).count(
        "run: config.json"
    )
    assert "a/run" not in twice.replace(str(first), "")


def test_curves_of_categories_that_only_one_run_has_are_shown(tmp_path):
    text = written(
        tmp_path,
        make_run(tmp_path / "one", category="bolt"),
        make_run(tmp_path / "two", category="nut"),
    )
    assert "Curves: bolt" in text and "Curves: nut" in text


def test_a_run_that_was_not_evaluated_shows_its_losses(tmp_path):
    text = written(tmp_path, make_run(tmp_path / "run", evaluated=False))
    assert "Training" in text and "Anomaly maps" not in text


def test_examples_without_masks_or_none_at_all_are_no_error(tmp_path):
    run = make_run(tmp_path / "run")
    results = record.read_json(run / runs.EVALUATION)
    runs.write_evaluation(run, results, [example(0, mask=False)])
    assert "Anomaly maps" in written(tmp_path, run)
    bare = make_run(tmp_path / "bare", evaluated=False)
    runs.write_evaluation(bare, results, [])
    assert "Anomaly maps" not in written(tmp_path, bare)


def test_generated_defects_say_how_much_of_the_mask_was_kept(tmp_path):
    run = make_run(tmp_path / "run", evaluated=False)
    runs.write_generation(run, [shown(0), shown(1)])
    kept = shown(0)["mask"].mean()
    text = written(tmp_path, run)
    assert "Generated defects: run" in text and "bolt, dent" in text
    assert f"kept {kept:.0%} of the mask" in text


def test_a_lead_comes_first(tmp_path):
    text = written(
        tmp_path,
        make_run(tmp_path / "run"),
        lead=[page.text("Summary", "what it is worth")],
    )
    assert text.index("what it is worth") < text.index("Means over categories")


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no run"):
        written(tmp_path, tmp_path)


def test_variants_stand_beside_each_other_in_percent():
    table = runs.detection_table(
        {"real": {"mean": METRICS}, "both": {"mean": METRICS | {"pixel_ap": 0.5}}}
    )
    assert [row[0] for row in table.rows] == ["real", "both"]
    assert "Pixel AP" in table.columns and "AU-PRO" not in table.columns
