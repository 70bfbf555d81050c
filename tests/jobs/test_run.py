"""The whole job on a tiny folder, and what a run refuses."""

import html.parser
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import jaxanom
from jaxanom import record
from jaxanom.data import catalog, generated
from jaxanom.data import images as image_files
from jaxanom.data.layouts import mvtec
from jaxanom.jobs import defects_to_detector, generate, load
from jaxanom.models.checkpoints.formats import weights
from jaxanom.report import runs

pytest.importorskip("matplotlib")


class Outside(html.parser.HTMLParser):
    """Collects everything a page would fetch or follow."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "data", "action") and value:
                if not value.startswith(("data:", "#")):
                    self.found.append((tag, name, value))


@pytest.fixture(scope="module")
def generator(whole_job):
    return jaxanom.load(whole_job.directory / "generator")


@pytest.fixture(scope="module")
def detector(whole_job):
    return jaxanom.load(whole_job.directory / "real+generated")


def test_the_job_leaves_runs_a_set_and_a_page(whole_job):
    names = {path.name for path in whole_job.directory.iterdir()}
    assert names == {"generator", "generated", "real", "real+generated", "report.html"}
    for run in ("generator", "real", "real+generated"):
        files = {path.name for path in (whole_job.directory / run).iterdir()}
        assert files >= {"config.json", "record.json", "metrics.jsonl", load.PARAMS}
        written = record.read_json(whole_job.directory / run / record.RECORD)
        assert written["num_params"] > 0 and written["split"]["defect"]
        assert written["versions"]["jax"] and written["train_seconds"] > 0
    steps = [
        (row["phase"], row["step"])
        for row in record.read_metrics(
            whole_job.directory / "generator" / record.METRICS
        )
        if row["kind"] == "train"
    ]
    assert steps == [("finetune", 1), ("finetune", 2)]


def test_the_page_is_one_file_without_outside_resources(whole_job):
    text = whole_job.page.read_text(encoding="utf-8")
    assert Outside(text).found == []
    assert "@import" not in text and "url(http" not in text
    for heading in ("Real against real + generated", "Generated defects", "Curves"):
        assert heading in text


def test_the_numbers_lie_between_0_and_1(whole_job):
    for name in ("real", "real+generated"):
        results = record.read_json(whole_job.directory / name / runs.EVALUATION)
        assert len(results["mean"]) >= 7
        for values in (results["mean"], *results["per_category"].values()):
            assert all(0 <= value <= 1 for value in values.values()), values
        assert results["num_images"] == {"bolt": 7}  # 3 good, 4 of 8 defects
    assert [row[0] for row in whole_job.table.rows] == ["real", "real+generated"]


def test_both_detectors_train_and_test_on_the_same_real_images(whole_job):
    splits = [
        record.read_json(whole_job.directory / name / record.RECORD)["split"]
        for name in ("generator", "real", "real+generated")
    ]
    assert splits[0] == splits[1] == splits[2]
    assert set(splits[0]["test"]).isdisjoint(splits[0]["defect"])


def test_the_generated_set_is_a_dataset(whole_job):
    directory = whole_job.directory / "generated"
    rows = generated.read_manifest(directory)
    assert [row["defect_type"] for row in rows] == ["dent", "scratch", "dent"]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert all(row["prompt"].startswith("a photo of a ") for row in rows)
    records = mvtec.read_folder(directory)
    mvtec.check(records)
    made = catalog.open_dataset("folder", directory, image_size=16)
    defective = catalog.select(made, "test", anomalous=True)
    assert len(defective) == sum(row["image"] is not None for row in rows)
    for number in defective:
        image, mask = made.load(made.records[number])
        assert image.shape == (16, 16, 3) and mask.any()


def test_the_same_command_again_does_nothing_again(whole_job, monkeypatch):
    def never(*args, **keywords):
        raise AssertionError("drawn again")

    before = (whole_job.directory / "real" / load.PARAMS).read_bytes()
    monkeypatch.setattr(generated, "write", never)
    page, table = defects_to_detector.generate_then_detect(
        whole_job.config, whole_job.directory
    )
    assert table == whole_job.table and page == whole_job.page
    assert (whole_job.directory / "real" / load.PARAMS).read_bytes() == before


def test_a_loaded_detector_scores_images_of_any_size(detector):
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(0, 255, (height, 20, 3)).astype(np.uint8) for height in (16, 33)
    ]
    found = jaxanom.predict(detector, pictures)
    assert found.anomaly_map.shape == (2, 16, 16) and found.image_score.shape == (2,)
    assert found.anomaly_map.min() >= 0 and found.anomaly_map.max() <= 1
    alone = jaxanom.predict(detector, pictures[1:])
    np.testing.assert_allclose(
        alone.anomaly_map[0],
        found.anomaly_map[1],
        atol=1e-5,  # another batch size, other sums
    )


def test_scores_do_not_depend_on_how_images_fall_into_batches(detector):
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 255, (6, 16, 16, 3)).astype(np.uint8)
    assert detector.prepared.config.data.batch_size == 4, "so that 6 make two batches"
    found = jaxanom.predict(detector, pictures)
    assert found.anomaly_map.shape == (6, 16, 16) and found.anomaly_map_std is None
    backwards = jaxanom.predict(detector, pictures[::-1])
    # The same program on other rows; float32 sums may be grouped differently.
    np.testing.assert_allclose(
        backwards.anomaly_map[::-1], found.anomaly_map, atol=1e-5
    )
    with pytest.raises(ValueError, match="no picture"):
        jaxanom.predict(detector, [])


def test_a_second_call_compiles_nothing_again(detector):
    traces = []

    def counted(*args):
        traces.append(1)
        return detector.prepared.method.predict(*args)

    method = detector.prepared.method._replace(predict=counted)
    run = detector._replace(prepared=detector.prepared._replace(method=method))
    picture = np.zeros((16, 16, 3), np.uint8)
    for _ in range(2):
        jaxanom.predict(run, [picture])
    assert len(traces) == 1
    jaxanom.predict(run, [picture] * 2)  # another shape is another program
    assert len(traces) == 2


def test_detect_writes_a_picture_and_a_row_for_every_image(
    detector, tiny_folder, tmp_path
):
    defective = tiny_folder / "bolt" / "test" / "scratch"
    calm = tiny_folder / "bolt" / "test" / "good"
    paths = [defective, next(calm.iterdir())]
    rows = jaxanom.detect(detector, paths, tmp_path / "out", normal=calm)
    assert list(record.read_metrics(tmp_path / "out" / "detections.jsonl")) == rows
    assert len(rows) == 5
    for row in rows:
        assert row["anomalous"] == (row["image_score"] > row["threshold"])
        with Image.open(row["picture"]) as picture:
            assert picture.size == (36, 16), "image and map, 4 pixels apart"
    # Three normal images bound the share of false alarms by one in four.
    assert rows[0]["false_alarm_rate"] == 0.25
    assert not rows[4]["anomalous"], "the threshold is the highest normal score"
    without = jaxanom.detect(detector, paths, tmp_path / "out")
    assert {row["anomalous"] for row in without} == {None}
    assert [row["image_score"] for row in without] == [r["image_score"] for r in rows]


def test_a_category_is_named_where_there_are_several(detector):
    picture = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"'nut': this run knows bolt"):
        jaxanom.predict(detector, [picture], "nut")
    wider = jaxanom.load(detector.directory, category="nut")
    assert wider.prepared.dataset.categories == ("bolt", "nut")
    with pytest.raises(ValueError, match=r"'': this run knows bolt, nut"):
        jaxanom.predict(wider, [picture])
    # A supervised detector does not read names: known and new ones score alike.
    np.testing.assert_array_equal(
        jaxanom.predict(wider, [picture], "nut").anomaly_map,
        jaxanom.predict(detector, [picture]).anomaly_map,
    )


def test_detect_names_the_path_that_is_no_image(detector, tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=r"no such image or folder: .*nowhere"):
        jaxanom.detect(detector, [tiny_folder / "nowhere"], tmp_path / "out")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"holds .*wanted images"):
        jaxanom.detect(detector, [empty], tmp_path / "out")
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read image .*x\.png"):
        jaxanom.detect(detector, [tmp_path / "x.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loaded_detector_repeats_its_evaluation(detector, whole_job):
    before = record.read_json(detector.directory / runs.EVALUATION)
    again = json.loads(json.dumps(jaxanom.evaluate(detector, num_examples=2)))
    assert again["mean"] == pytest.approx(before["mean"])
    with np.load(detector.directory / runs.EXAMPLES) as stored:
        assert len(stored["image"]) == 2


def test_more_images_leave_the_first_ones_as_they_are(generator, whole_job, tmp_path):
    jaxanom.generate(generator, tmp_path / "set", 4)
    first = generated.read_manifest(whole_job.directory / "generated")
    more = generated.read_manifest(tmp_path / "set")
    assert len(more) == 4
    for one, other in zip(first, more, strict=False):
        assert one == other
        if one["image"]:
            images = [
                image_files.load_image(place / one["image"])
                for place in (whole_job.directory / "generated", tmp_path / "set")
            ]
            np.testing.assert_array_equal(*images)


def test_an_interrupted_drawing_leaves_nothing(generator, tmp_path, monkeypatch):
    rows = generate.drawn

    def interrupted(run, num_images):
        yield next(rows(run, num_images))
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "drawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jaxanom.generate(generator, tmp_path / "set", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_is_there_is_kept_unless_told_otherwise(generator, whole_job):
    before = generated.read_manifest(whole_job.directory / "generated")
    with pytest.raises(ValueError, match="is not empty"):
        jaxanom.generate(generator, whole_job.directory / "generated", 1)
    assert generated.read_manifest(whole_job.directory / "generated") == before


@pytest.mark.parametrize("count", [0, -3])
def test_fewer_than_one_image_names_its_key(generator, tmp_path, count):
    with pytest.raises(ValueError, match=r"config\.generate\.num_images"):
        jaxanom.generate(generator, tmp_path / "set", count)


def test_a_detector_does_not_generate_and_a_generator_does_not_detect(
    generator, detector, tmp_path
):
    with pytest.raises(ValueError, match=r"'detector'.*does not generate"):
        jaxanom.generate(detector, tmp_path / "set")
    picture = np.zeros((16, 16, 3), np.uint8)
    said = r"'defect_generation'.*does not detect"
    with pytest.raises(ValueError, match=said):
        jaxanom.evaluate(generator)
    with pytest.raises(ValueError, match=said):
        jaxanom.predict(generator, [picture])


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((16, 16, 3), np.float32),
        np.zeros((16, 16, 4), np.uint8),
        np.zeros((16, 16), np.uint8),
    ],
)
def test_pictures_of_another_type_or_shape_are_refused(detector, picture):
    said = rf"{picture.dtype} \[16, 16.*wanted uint8 \[H, W, 3\]"
    with pytest.raises(ValueError, match=said):
        jaxanom.predict(detector, [picture])


def test_parameters_of_another_model_are_refused(whole_job, tmp_path):
    run = tmp_path / "run"
    for name in (record.CONFIG, load.PARAMS):
        source = whole_job.directory / "real" / name
        run.mkdir(exist_ok=True)
        (run / name).write_bytes(source.read_bytes())
    config = record.read_json(run / record.CONFIG)
    config["detector"]["width"] = 8
    record.write_json(run / record.CONFIG, config)
    with pytest.raises(ValueError, match=r"params\.safetensors.*another model.*wanted"):
        jaxanom.load(run)


def test_a_run_of_another_config_is_refused_and_left_alone(whole_job):
    run = whole_job.directory / "real"
    before = (run / record.RECORD).read_bytes()
    config = record.config_from_plain(record.read_json(run / record.CONFIG))
    config.seed = 5
    with pytest.raises(ValueError, match=r"another config \(config\.seed"):
        jaxanom.train(config, run)
    assert (run / record.RECORD).read_bytes() == before


def test_checkpoints_of_another_run_are_refused(whole_job, detection_config, tmp_path):
    """Even where the record that would tell is gone."""
    run = shutil.copytree(whole_job.directory / "real", tmp_path / "run")
    (run / record.CONFIG).unlink()
    with pytest.raises(ValueError, match=r"other settings|another model"):
        jaxanom.train(detection_config(data__split_seed=3), run)


def test_overrides_change_how_is_drawn_and_not_what_was_trained(whole_job, generator):
    def faster(config):
        config.generate.num_steps = 1

    other = load.load(whole_job.directory / "generator", faster)
    assert other.prepared.config.generate.num_steps == 1
    assert generator.prepared.config.generate.num_steps == 2
    stored = weights.read(whole_job.directory / "generator" / load.PARAMS)
    assert stored.keys() == weights.read(generator.directory / load.PARAMS).keys()


def test_every_row_of_metrics_is_handed_on(detection_config, tmp_path):
    rows = []
    jaxanom.train(detection_config(), tmp_path / "run", on_log=rows.append)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
