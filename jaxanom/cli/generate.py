"""`jaxanom generate --run=DIR --out=DIR [--num N] --config.generate.key=value ...`."""

import argparse

from jaxanom.cli import profiling
from jaxanom.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument("--run", required=True, help="directory of a trained run")
    parser.add_argument("--out", required=True, help="directory of the set to write")
    parser.add_argument("--num", type=int, help="image-mask pairs to draw")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier generated set"
    )
    profiling.add_argument(parser, "the generation, compiling included")
    parser.set_defaults(config=None)


def run(arguments: argparse.Namespace) -> None:
    """Draws and writes."""
    from jaxanom.jobs import config_file
    from jaxanom.jobs.generate import generate
    from jaxanom.jobs.load import load
    from jaxanom.parallel import distributed

    distributed.initialise()

    def override(config):
        for text in arguments.overrides:
            key, _, value = text.partition("=")
            if not key.startswith("generate."):
                raise UserError(f"--config.{key}: generate takes --config.generate.*")
            config_file.apply_override(config, key, value)

    trained = load(arguments.run, override)
    with profiling.whole(arguments.profile):
        written = generate(trained, arguments.out, arguments.num, arguments.overwrite)
    if not distributed.is_writer():
        return
    print(f"written: {written.directory} ({written.num_images} pairs)")
    if written.num_left_out:
        print(
            f"{written.num_left_out} requests changed hardly anything and were left "
            "out; the manifest lists them"
        )
