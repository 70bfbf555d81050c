"""`jaxanom quickstart --run=DIR [--parts defects ...]`, or a config of your own.

Without `--config`: a tour of the methods on the embedded towers, in one report. With
one: the whole job of defect generation on it.
"""

import argparse
import threading
from pathlib import Path

from jaxanom.errors import UserError
from jaxanom.jobs import tour


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--config", help="recipe of defect generation; default: the tour"
    )
    parser.add_argument("--run", default="runs/quickstart", help="directory to work in")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=(tour.DEFECTS, *tour.PARTS),
        default=(tour.DEFECTS, *tour.PARTS),
        help="of the tour; default all",
    )
    parser.add_argument(
        "--processes",
        type=int,
        choices=(1, 2),
        help="that share the parts and the cores; default 2 on a CPU host, else 1",
    )
    parser.add_argument("--beside", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Trains, generates, evaluates, and reports."""
    from jaxanom.jobs import config_file, defects_to_detector
    from jaxanom.parallel import distributed
    from jaxanom.report import tables

    distributed.check_alone("quickstart")
    if arguments.beside:
        threading.Thread(target=tour.end_with_starter, daemon=True).start()
    if arguments.config is None:
        if arguments.overrides:
            raise UserError(
                f"--config.{arguments.overrides[0]}: name the recipe it changes, such "
                f"as --config={tour.GENERATION}"
            )
        tour.tour(Path(arguments.run), arguments.parts, arguments.processes)
        return
    config = config_file.load(arguments.config, arguments.overrides)
    page, table = defects_to_detector.generate_then_detect(config, arguments.run)
    print(tables.to_text(table))
    print(f"report: {page}")
