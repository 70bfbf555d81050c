"""`jaxanom detect --weights=RUN [--normal=DIR] --out=DIR IMAGE_OR_FOLDER ...`."""

import argparse

from jaxanom.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument("--weights", required=True, help="directory of a trained run")
    parser.add_argument("--method", help="refuse a run of any other method")
    parser.add_argument("--out", default="runs/detect", help="directory to write to")
    parser.add_argument(
        "--normal",
        help="folder of normal images that set the threshold, none of them trained on; "
        "without it a few-shot run has its own",
    )
    parser.add_argument(
        "--false_alarm_rate",
        type=float,
        default=0.05,
        help="wanted share of normal images called anomalous; default 0.05",
    )
    parser.add_argument(
        "--category",
        default="",
        help="what the images show, known to the run; or, unless its method needs "
        "images of it (adp), new",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files or folders")


def run(arguments: argparse.Namespace) -> None:
    """Scores images, writes heat maps, prints a JSON line per image."""
    import json

    from jaxanom.jobs.detect import detect
    from jaxanom.jobs.load import load
    from jaxanom.parallel import distributed

    distributed.check_alone("detect")
    trained = load(arguments.weights, category=arguments.category)
    method = trained.prepared.config.method
    if arguments.method not in (None, method):
        raise UserError(f"{arguments.weights} is a run of method {method!r}")
    for row in detect(
        trained,
        arguments.images,
        arguments.out,
        arguments.normal,
        arguments.false_alarm_rate,
        arguments.category,
    ):
        print(json.dumps(row), flush=True)
