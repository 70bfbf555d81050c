"""`jaxanom fewshot --normal=DIR --category=NAME --out=RUN`."""

import argparse

from jaxanom.errors import UserError


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
    from pathlib import Path

    from jaxanom import record
    from jaxanom.data.layouts import mvtec
    from jaxanom.jobs import api, config_file, kept
    from jaxanom.parallel import distributed

    distributed.check_alone("fewshot")
    files = mvtec.image_files(arguments.normal)
    config = config_file.load(arguments.config, arguments.overrides)
    if config.method != "adp":
        raise UserError(
            f"{arguments.config} is of method {config.method!r}; wanted 'adp'"
        )
    out = arguments.out
    config = kept.keep(config, files, arguments.category, out, arguments.features)
    trained = api.train(config, out)
    facts = record.read_json(Path(out) / record.RECORD)["adp"]
    print(json.dumps(facts, indent=2))
    print(f"{len(files)} normal images; the run is {trained.directory}. Next:")
    print(f"jaxanom detect --weights={out} IMAGE_OR_FOLDER ...")
