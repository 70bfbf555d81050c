"""`jaxanom evaluate --run=DIR [--on=KEY=VALUE ...] [--base-to-new]`."""

import argparse

from jaxanom.cli import profiling


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
    from jaxanom.jobs import evaluate
    from jaxanom.parallel import distributed
    from jaxanom.report import tables

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
