"""Scores a detector on its own test images, or on others."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxanom import record
from jaxanom.contracts import Metric, PredictFn
from jaxanom.data import catalog, pipeline, pools
from jaxanom.data.layouts.mvtec import GOOD
from jaxanom.errors import UserError
from jaxanom.evaluation import protocols, runner
from jaxanom.jobs import config_file, prepare
from jaxanom.jobs.load import Trained, check_detects, load
from jaxanom.metrics import recognition
from jaxanom.parallel import distributed, placement
from jaxanom.report import runs, tables
from jaxanom.training import selection

ELSEWHERE = "on"
"""Folder of a run that holds its results on other images."""

OTHER_IMAGES = ("data.name", "data.directory")
WHOLE_TEST = {"defect_rule": "none", "held_out": ()}
"""Keys of `config.data` by which no image of the test split is left out."""


def evaluate(
    run: Trained,
    num_examples: int = 12,
    extra: Mapping[str, Metric] | None = None,
    predict: PredictFn | None = None,
) -> dict[str, Any]:
    """Scores a detector on its test images; writes `evaluation.json` and examples.

    Args:
      run: A run of a method that detects.
      num_examples: Number of images whose maps are written.
      extra: Further metrics by name, beside those of the protocol.
      predict: Scored in place of the run's own detector.

    Returns:
      {"mean", "per_category", "num_images", "curves"}.

    Raises:
      UserError: The method only generates, there are no test images, or others than
        when the run was begun.
    """
    check_detects(run)
    check_images(run)
    prepared = run.prepared
    dataset, division = prepared.dataset, prepared.division
    key = jax.random.key(prepared.config.seed)
    apply = jax.jit(predict or prepared.method.predict)
    rescale = prepared.method.rescale
    protocol = protocols.image_detection(rescale)
    without_masks = sorted(catalog.unmasked(dataset, division.test))
    if not without_masks:
        protocol = protocols.few_shot_supervised(rescale)
    protocol, pooled = protocols.with_classes(protocol, prepared.method.target)
    source = catalog.source(dataset, division.test)
    size = prepared.config.data.batch_size
    rows = placement.process_rows(size, prepared.mesh)
    batches = (
        placement.place_batch(batch, prepared.mesh)
        for batch in pipeline.finite_batches(source, size, rows)
    )
    examples_at = pools.spread(dataset, division.test, num_examples)
    results = runner.evaluate(
        lambda batch: apply(run.params, run.frozen, batch, key),
        batches,
        {**protocol.metrics, **(extra or {})},
        categories=dataset.categories,
        curves=protocol.curves,
        keep_indices=examples_at,
        gather=placement.to_host if jax.process_count() > 1 else None,
        pooled=pooled,
    )
    examples = results.pop("examples")
    if rescale is not None:  # scores depend on the other test images: say so
        results["transductive"] = True
    select = selection.read(prepared.config.get("selection"))
    labels: dict[str, set] = {}
    for number in division.test:
        item = dataset.records[number]
        labels.setdefault(item.category, set()).add(int(item.defect_type != GOOD))
    if not pooled:
        protocols.undefined_without_both(results, labels)
    if without_masks:  # pixels were not measured: say why
        results["without_masks"] = without_masks
    if select.rule != "last":  # parameters were chosen by labels of test images
        results["selected_on"] = list(select.categories)
    if distributed.is_writer():
        runs.write_evaluation(run.directory, results, examples)
    distributed.wait_for_all(f"{run.directory} is evaluated")
    return results


def check_images(run: Trained) -> None:
    """Checks that a run is tested on the images that it was begun with, or on others.

    Raises:
      UserError: Its own folder holds others now, see `pools.check_recorded`.
    """
    stored = run.directory / record.CONFIG
    if not stored.is_file():
        return
    own = record.config_from_plain(record.read_json(stored))
    own, tested = prepare.located(own, run.directory), run.prepared.config
    keys = prepare.DIVIDED_BY
    if all(own.data.get(key) == tested.data.get(key) for key in keys):
        dataset, division = run.prepared.dataset, run.prepared.division
        pools.check_recorded(dataset, division, run.directory)


def evaluate_on(directory: str | Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluates a run; on other images its own results are left alone.

    Args:
      directory: The run.
      changes: "key=value" strings; results then go to a folder below the run that is
        named after them. Of another dataset or directory the whole test split counts,
        unless `data.defect_rule` or `data.held_out` is among them.

    Raises:
      UserError: A key that the run's config does not have, or a bad value.
    """
    keys = {change.partition("=")[0] for change in changes}
    elsewhere = not keys.isdisjoint(OTHER_IMAGES)

    def apply(config: Any) -> None:
        for change in changes:
            key, separator, value = change.partition("=")
            if not separator:
                raise UserError(f"--on={change}: wanted KEY=VALUE")
            config_file.apply_override(config, key, value)
        for key, value in WHOLE_TEST.items() if elsewhere else ():
            if f"data.{key}" not in keys and key in config.data:
                config.data[key] = value

    run = load(directory, apply if changes else None)
    if changes:
        name = "_".join(change.replace("/", "-") for change in changes)
        target = Path(directory) / ELSEWHERE / name
        target.mkdir(parents=True, exist_ok=True)
        if elsewhere:
            _tell_of_equal_names(run)
        check_images(run)
        run = run._replace(directory=target)
    return evaluate(run)


def _tell_of_equal_names(run: Trained) -> None:
    """Prints what looks like images that were trained on, in another place."""
    path = run.directory / record.RECORD
    split = record.read_json(path).get("split", {}) if path.is_file() else {}
    tested = pools.describe(run.prepared.dataset, run.prepared.division)["test"]
    equal = sorted(set(split.get("defect", ())).intersection(tested))
    if equal and distributed.is_writer():
        print(
            f"{len(equal)} test images have names of images trained on, such as "
            f"{equal[0]}; if they are the same, set data.defect_rule as for training",
            file=sys.stderr,
        )


def base_to_new(directory: str | Path, changes: Sequence[str] = ()) -> Any:
    """Base-to-new generalisation of a run trained on base classes (2203.05557).

    Each half is tested with its own class list; `changes` hold for both.

    Returns:
      A table of base and new accuracy and their harmonic mean, in percent.

    Raises:
      UserError: The run was not trained on the base classes alone.
    """
    config = record.read_json(Path(directory) / record.CONFIG)
    trained_on = config["data"].get("class_subset")
    if trained_on != "base":
        raise UserError(
            f"{directory} was trained with config.data.class_subset={trained_on!r}; "
            "base-to-new wants a run that has seen 'base' alone"
        )
    halves = {
        half: evaluate_on(directory, [*changes, f"data.class_subset={half}"])
        for half in ("base", "new")
    }
    base, new = (halves[half]["mean"]["accuracy"] for half in ("base", "new"))
    values = (base, new, recognition.harmonic_mean(base, new))
    return tables.Table(
        columns=("Base", "New", "Harmonic mean"),
        rows=(tuple(map(tables.percent, values)),),
        caption="Accuracy in percent.",
    )
