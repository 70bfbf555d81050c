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
        "--tower",
        default="",
        help="network whose features are remembered: efficientnet_lite0 to 2, "
        "mobilenet_v2:DIR, clip, clip:DIR",
    )
    parser.add_argument(
        "--config",
        help="recipe; by default configs/memory/folder.py, of images of 64 px and less "
        "configs/adp/folder.py",
    )


def run(arguments: argparse.Namespace) -> None:
    """Copies the images into the run, learns, and says what was chosen."""
    import json

    from jaxanom import record
    from jaxanom.jobs import config_file, fewshot
    from jaxanom.parallel import distributed

    distributed.check_alone("fewshot")
    recipe = arguments.config or fewshot.recipe(arguments.normal)
    config = config_file.load(recipe, arguments.overrides)
    run = fewshot.fewshot(
        arguments.normal,
        arguments.category,
        arguments.out,
        config,
        arguments.tower,
    )
    facts = record.read_json(run.directory / record.RECORD)[config.method]
    print(json.dumps(facts, indent=2))
    count = len(run.prepared.division.normal)
    print(f"{count} normal images; the run is {run.directory}. Next:")
    print(f"jaxanom detect --weights={arguments.out} IMAGE_OR_FOLDER ...")
