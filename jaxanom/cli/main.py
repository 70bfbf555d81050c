"""The `jaxanom` command: one verb a file, flags in, functions called."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from jaxanom.errors import UserError
from jaxanom.training import preemption

VERBS = {
    "quickstart": "the whole job on one config: train, generate, detect, report",
    "train": "train the method of a config; started again, it resumes",
    "generate": "write a set of image-mask pairs from a trained run",
    "fewshot": "learn a detector from a handful of normal images of a product",
    "evaluate": "score a trained detector on a test split",
    "detect": "score images of your own with a trained detector; heat maps",
    "sweep": "particle counts against transports: one table, one page of plots",
    "report": "one self-contained HTML file from one or more runs",
    "data": "write the procedural dataset, or check a folder of images",
    "doctor": "tell what this machine has, and what a checkpoint is and needs",
}


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser; only the wanted verb's file is imported."""
    parser = argparse.ArgumentParser(
        prog="jaxanom",
        description="Visual anomaly detection when anomalies are scarce.",
        epilog="jaxanom VERB --help tells the flags of one verb.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        sub = verbs.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + "."
        )
        if name == verb:
            importlib.import_module(f"jaxanom.cli.{name}").add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
      0 when done; 1 when what was examined does not fit; 2 after a wrong input, a file
      that cannot be read or written, or a loss that is no number, told on stderr
      without a traceback, which every other error keeps; 75 after SIGTERM: a
      training has saved its state, and the same command goes on or starts again (see
      `launch/`); 130 on Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in argv if not word.startswith("-")), None)
    parser = build_parser(verb)
    arguments, extra = parser.parse_known_args(argv)
    overrides = []
    for word in extra:
        if not word.startswith("--config."):
            parser.error(f"unknown argument {word}")
        if "=" not in word:
            parser.error(f"write {word}=VALUE")
        overrides.append(word.removeprefix("--config."))
    if overrides and not hasattr(arguments, "config"):
        parser.error(f"{arguments.verb} takes no --config.key=value")
    arguments.overrides = overrides
    try:
        with preemption.at_once():
            verb = importlib.import_module(f"jaxanom.cli.{arguments.verb}")
            code = verb.run(arguments)
    except (UserError, OSError, FloatingPointError) as error:
        print(f"jaxanom {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except preemption.Preempted as stop:
        print(f"jaxanom {arguments.verb}: {stop.message}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("stopped; start the same command again", file=sys.stderr)
        return 130
    return code or 0
