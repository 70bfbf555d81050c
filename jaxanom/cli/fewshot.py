"""`jaxanom fewshot --normal=DIR --category=NAME --out=RUN`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--normal", required=True, nargs="+", help="normal images, or a folder of them"
    )
    parser.add_argument(
        "--category", required=True, help="what the product is called, such as bottle"
    )
    parser.add_argument("--out", required=True, help="directory of the run")
    parser.add_argument(
        "--features", default="", help="folder of MobileNetV2 weights for the memory"
    )
    parser.add_argument(
        "--config",
        default="configs/adp/folder.py",
        help="recipe of method adp; the shipped one needs no change",
    )


def run(arguments: argparse.Namespace) -> None:
    """Copies the images into the run, learns, and says what was chosen."""
    import json

    from jaxanom import record
    from jaxanom.jobs import config_file
    from jaxanom.jobs.fewshot import fewshot
    from jaxanom.parallel import distributed

    distributed.check_alone("fewshot")
    config = config_file.load(arguments.config, arguments.overrides)
    run = fewshot(
        arguments.normal,
        arguments.category,
        arguments.out,
        config,
        arguments.features,
    )
    facts = record.read_json(run.directory / record.RECORD)[config.method]
    print(json.dumps(facts, indent=2))
    count = len(run.prepared.division.normal)
    print(f"{count} normal images; the run is {run.directory}. Next:")
    print(f"jaxanom detect --weights={arguments.out} IMAGE_OR_FOLDER ...")
