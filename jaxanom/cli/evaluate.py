"""`jaxanom evaluate --run=DIR [--on=KEY=VALUE ...] [--base-to-new]`.

Or `jaxanom evaluate --generated=SET --data=DIR [--tower=NAME] [--out=FILE]`.
"""

import argparse
from typing import Any

from jaxanom.cli import profiling
from jaxanom.errors import UserError

DEFAULT_TOWER = "efficientnet_lite0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--run", help="directory of a trained detector")
    subject.add_argument(
        "--generated",
        metavar="SET",
        help="a generated set, whose images are compared with real ones",
    )
    parser.add_argument(
        "--data", metavar="DIR", help="with --generated: the real images, MVTec layout"
    )
    parser.add_argument(
        "--tower",
        metavar="NAME",
        default=DEFAULT_TOWER,
        help="with --generated: what images are compared by, such as clip or "
        f"mobilenet_v2:DIR; default {DEFAULT_TOWER}",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="with --generated: JSON file of the numbers"
    )
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
    from jaxanom.jobs import evaluate
    from jaxanom.parallel import distributed
    from jaxanom.report import tables

    if arguments.generated is not None:
        print(tables.to_text(_generated_table(arguments)))
        return
    distributed.initialise()
    with profiling.whole(arguments.profile):
        if arguments.base_to_new:
            table = evaluate.base_to_new(arguments.run, arguments.on)
        else:
            results = evaluate.evaluate_on(arguments.run, arguments.on)
            columns, notes = (
                of([results]) for of in (protocols.columns_of, protocols.notes_of)
            )
            table = tables.per_category(results, columns, notes=notes)
    if distributed.is_writer():
        print(tables.to_text(table))


def _generated_table(arguments: argparse.Namespace) -> Any:
    from jaxanom.jobs import evaluate_generated as job
    from jaxanom.parallel import distributed

    distributed.check_alone("evaluate --generated")
    if arguments.data is None:
        raise UserError("--generated needs --data=DIR, the real images to compare with")
    results = job.evaluate_generated(
        arguments.generated,
        arguments.data,
        arguments.tower,
        arguments.out,
    )
    return job.table(results)
