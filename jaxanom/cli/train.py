"""`jaxanom train --config=FILE.py[:ARG] --run=DIR --config.key=value ...`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--config",
        required=True,
        help="recipe, e.g. configs/defect_generation/folder.py",
    )
    parser.add_argument("--run", required=True, help="directory of the run")


def run(arguments: argparse.Namespace) -> None:
    """Trains, or goes on training."""
    from jaxanom.cli import config_file

    config = config_file.load(arguments.config, arguments.overrides)
    from jaxanom import api
    from jaxanom.parallel import distributed

    distributed.initialise()
    trained = api.train(config, arguments.run)
    print(f"trained: {trained.directory}")
