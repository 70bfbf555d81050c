"""`jaxanom quickstart --run=DIR [--config=FILE.py] --config.key=value ...`."""

import argparse

CONFIG = "configs/defect_generation/foundry.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument("--config", default=CONFIG, help=f"recipe; default {CONFIG}")
    parser.add_argument("--run", default="runs/quickstart", help="directory to work in")


def run(arguments: argparse.Namespace) -> None:
    """Fine-tunes, generates, trains detectors with and without, and reports."""
    from jaxanom.cli import config_file

    config = config_file.load(arguments.config, arguments.overrides)
    from jaxanom import api
    from jaxanom.report import tables

    page, table = api.generate_then_detect(config, arguments.run)
    print(tables.to_text(table))
    print(f"report: {page}")
