"""`jaxanom report --run=DIR [--run=DIR ...] --out=FILE.html`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--run",
        action="append",
        required=True,
        help="directory of a run; give it again for more runs on one page",
    )
    parser.add_argument("--out", required=True, help="HTML file to write")
    parser.add_argument("--title", default="jaxanom report")


def run(arguments: argparse.Namespace) -> None:
    """Writes the page."""
    from jaxanom.parallel import distributed
    from jaxanom.report import runs

    distributed.check_alone("report")
    page = runs.write(arguments.out, arguments.run, arguments.title)
    print(f"report: {page}")
