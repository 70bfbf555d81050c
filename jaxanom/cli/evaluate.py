"""`jaxanom evaluate --run=DIR [--on=KEY=VALUE ...] [--base-to-new]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxanom.cli import profiling
from jaxanom.errors import UserError

ELSEWHERE = "on"
"""Folder of a run that holds its results on other images."""

OTHER_IMAGES = ("data.name", "data.directory")
WHOLE_TEST = {"defect_rule": "none", "held_out": ()}
"""Keys of `config.data` by which no image of the test split is left out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument("--run", required=True, help="directory of a trained detector")
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="test on other images or with other settings, such as "
        "data.directory=DIR, whose whole test split counts unless data.defect_rule is "
        "given, or app.predict.alpha=0.7; may be given several times",
    )
    parser.add_argument(
        "--base-to-new",
        action="store_true",
        help="test on the first half of the classes, on the second, and average",
    )
    profiling.add_argument(parser, "the evaluation, compiling included")


def run(arguments: argparse.Namespace) -> None:
    """Scores the detector on its own test images, or on others; prints a table."""
    from jaxanom.evaluation import protocols
    from jaxanom.parallel import distributed
    from jaxanom.report import tables

    distributed.initialise()
    with profiling.whole(arguments.profile):
        if arguments.base_to_new:
            table = base_to_new(arguments.run, arguments.on)
        else:
            results = evaluate_on(arguments.run, arguments.on)
            found = [results]
            columns, notes = protocols.columns_of(found), protocols.notes_of(found)
            table = tables.per_category(results, columns, notes=notes)
    if distributed.is_writer():
        print(tables.to_text(table))


def evaluate_on(directory: str | Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluates a run; on other images its own results are left alone.

    Args:
      directory: of the run.
      changes: "key=value" strings; results then go to a folder below the run that is
        named after them. Of another dataset or directory the whole test split counts,
        unless `data.defect_rule` or `data.held_out` is among them.

    Raises:
      UserError: a key that the run's config does not have, or a bad value.
    """
    from jaxanom.jobs import api, config_file

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

    found = api.load(directory, apply if changes else None)
    if changes:
        name = "_".join(change.replace("/", "-") for change in changes)
        target = Path(directory) / ELSEWHERE / name
        target.mkdir(parents=True, exist_ok=True)
        if elsewhere:
            _tell_of_equal_names(found)
        api.check_images(found)
        found = found._replace(directory=target)
    return api.evaluate(found)


def _tell_of_equal_names(found: Any) -> None:
    """Prints what looks like images that were trained on, in another place."""
    from jaxanom import record
    from jaxanom.data import pools
    from jaxanom.parallel import distributed

    path = found.directory / record.RECORD
    split = record.read_json(path).get("split", {}) if path.is_file() else {}
    tested = pools.describe(found.prepared.dataset, found.prepared.division)["test"]
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
      UserError: the run was not trained on the base classes alone.
    """
    from jaxanom import record
    from jaxanom.metrics import recognition
    from jaxanom.report import tables

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
