"""`jaxanom data foundry|elpv|check|tokenizer|tfds`."""

import argparse

from jaxanom.errors import UserError

PARTS = ("foundry", "elpv", "check", "tokenizer", "tfds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parts = parser.add_subparsers(dest="part", metavar="WHAT", required=True)
    foundry = parts.add_parser(
        "foundry", help="write the procedural dataset in the MVTec layout"
    )
    foundry.add_argument("--out", required=True, help="directory to write")
    foundry.add_argument(
        "--categories", default="", help="names with commas between; all by default"
    )
    foundry.add_argument("--size", type=int, default=256, help="side in pixels")
    foundry.add_argument("--seed", type=int, default=0)
    foundry.add_argument("--num-train", type=int, default=64)
    foundry.add_argument("--num-test-good", type=int, default=16)
    foundry.add_argument("--num-per-defect", type=int, default=8)
    elpv = parts.add_parser(
        "elpv", help="write photographs of solar cells, for evaluation only"
    )
    elpv.add_argument("--out", required=True, help="directory to write")
    elpv.add_argument(
        "--categories", default="", help="mono, poly or, by default, both"
    )
    elpv.add_argument(
        "--seed", type=int, default=0, help="draws the normal cells that train"
    )
    elpv.add_argument(
        "--threshold",
        type=float,
        help="test unsure cells too, as defective from this probability on",
    )
    check = parts.add_parser(
        "check", help="check a folder of images and say what is in it"
    )
    check.add_argument("directory")
    check.add_argument(
        "--image-size",
        type=int,
        default=256,
        help="shorter side in training; smaller defects are named",
    )
    tokenizer = parts.add_parser(
        "tokenizer", help="train the small tokenizer on the procedural captions"
    )
    tokenizer.add_argument("--out", required=True, help="directory to write")
    tokenizer.add_argument("--vocab-size", type=int, default=1024)
    tfds = parts.add_parser(
        "tfds", help="write a published dataset, or foundry, for tensorflow-datasets"
    )
    tfds.add_argument("name", help="such as visa; a wrong one lists all")
    tfds.add_argument("--out", required=True, help="the data_dir to write to")
    tfds.add_argument(
        "--manual", default="", help="holds the unpacked dataset in a folder NAME"
    )
    tfds.add_argument("--categories", default="", help="names with commas between")
    tfds.add_argument("--size", type=int, default=256, help="of foundry, in pixels")
    tfds.add_argument("--seed", type=int, default=0, help="of foundry and elpv")


def run(arguments: argparse.Namespace) -> None:
    """Does the wanted part."""
    from jaxanom.parallel import distributed

    if arguments.part != "check":
        distributed.check_alone(f"data {arguments.part}")
    parts = {"foundry": _foundry, "elpv": _elpv, "check": _check}
    parts |= {"tokenizer": _tokenizer, "tfds": _tfds}
    parts[arguments.part](arguments)


def _categories(arguments: argparse.Namespace) -> tuple[str, ...]:
    return tuple(name for name in arguments.categories.split(",") if name)


def _foundry(arguments: argparse.Namespace) -> None:
    from jaxanom.data.foundry import names, render

    categories = _categories(arguments)
    counts = arguments.num_train, arguments.num_test_good, arguments.num_per_defect
    render.write_mvtec(
        arguments.out,
        categories or names.CATEGORIES,
        arguments.size,
        arguments.seed,
        *counts,
    )
    print(f"written: {arguments.out}")


def _elpv(arguments: argparse.Namespace) -> None:
    from jaxanom.data.layouts import elpv

    settings = _categories(arguments), arguments.seed, arguments.threshold
    records = elpv.write_mvtec(arguments.out, *settings)
    print(elpv.LICENCE)
    print(f"written: {arguments.out} ({len(records)} images)")


def _check(arguments: argparse.Namespace) -> None:
    import sys

    import tqdm

    from jaxanom.data.decoding import inspection
    from jaxanom.data.layouts import mvtec

    if arguments.image_size < 1:
        raise UserError(f"--image-size={arguments.image_size}; wanted at least 1")

    def shown(results, total):
        return tqdm.tqdm(results, "decoding", total, disable=not sys.stderr.isatty())

    records = mvtec.read_folder(arguments.directory)
    report = inspection.inspect(
        arguments.directory, records, arguments.image_size, progress=shown
    )
    for error in report.errors:
        print(f"error: {error}")
    for warning in report.warnings:
        print(f"warning: {warning}")
    if report.errors:
        listed = "\n  ".join(report.errors[:5])
        raise UserError(
            f"{len(report.errors)} of {len(records)} images are bad:\n  {listed}"
        )
    counts: dict[tuple[str, str, str], int] = {}
    for item in records:
        key = item.category, item.split, item.defect_type
        counts[key] = counts.get(key, 0) + 1
    for (category, split, defect_type), count in sorted(counts.items()):
        print(f"{category:20} {split:6} {defect_type:20} {count:5}")
    print(f"{len(records)} images are readable and fit their masks")
    for folder, count in mvtec.unmasked(records).items():
        print(
            f"{folder} has no masks of {count} defective images: methods that learn "
            "from pixels do not train on them, and no pixel is measured"
        )


def _tokenizer(arguments: argparse.Namespace) -> None:
    from jaxanom.data.foundry import names
    from jaxanom.methods.pretraining import captions
    from jaxanom.models.clip import tokenizer

    table = captions.table(names.CATEGORIES, ("good", *names.DEFECT_TYPES))
    trained = tokenizer.train(table.texts, arguments.vocab_size, arguments.out)
    print(f"written: {arguments.out} ({trained.vocab_size} ids)")


def _tfds(arguments: argparse.Namespace) -> None:
    from jaxanom.data.layouts import builders, elpv

    builder = builders.make(
        arguments.name,
        arguments.out,
        arguments.manual,
        _categories(arguments),
        arguments.size,
        arguments.seed,
    )
    builder.download_and_prepare()
    if arguments.name == builders.ELPV:
        print(elpv.LICENCE)
    print(f"written: {builder.data_path}; read it with --config.data.name=tfds and")
    print(f"--config.data.directory={builder.data_path}")
