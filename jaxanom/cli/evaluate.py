"""`jaxanom evaluate --run=DIR`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument("--run", required=True, help="directory of a trained detector")


def run(arguments: argparse.Namespace) -> None:
    """Scores the detector on its own test images and prints a table."""
    from jaxanom import api
    from jaxanom.evaluation import protocols
    from jaxanom.report import tables

    results = api.evaluate(api.load(arguments.run))
    columns = protocols.columns_of([results])
    print(tables.to_text(tables.per_category(results, columns)))
