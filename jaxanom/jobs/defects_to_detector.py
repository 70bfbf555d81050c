"""The whole job of defect generation: images to what the generated ones are worth."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from jaxanom.contracts import Drawn
from jaxanom.data import generated, pools
from jaxanom.errors import UserError
from jaxanom.jobs import prepare
from jaxanom.jobs.evaluate import evaluate
from jaxanom.jobs.generate import drawn
from jaxanom.jobs.train import train
from jaxanom.report import page, runs, tables

JOB_RUNS = ("generator", "real", "real+generated")
"""Directories of the runs of `generate_then_detect`."""


def generate_then_detect(
    config: ml_collections.ConfigDict, directory: str | Path
) -> tuple[Path, tables.Table]:
    """The whole job: generator, generated set, detectors without and with it, report.

    Both detectors see the same real images, the same number of steps and the same test
    images; they differ in the share of defective rows that are drawn from the generated
    set, 0 and `config.detector.share`. Done parts are not done again.

    Args:
      config: A config of defect generation with a section `detector`, see
        `configs/defect_generation`.
      directory: Where everything goes.

    Returns:
      (path of the report, table of both detectors).

    Raises:
      UserError: A config of something else, or what `train` refuses; of the detectors
        too, before the generator is trained.
    """
    directory = Path(directory)
    generated_set = directory / "generated"
    if config.method != "defect_generation" or "detector" not in config:
        raise UserError(
            f"config.method={config.method!r}: the whole job takes a config of "
            "'defect_generation' with a section `detector`; this one is for train"
        )
    prepared = prepare.prepare(prepare.without(config, "detector"))
    prepare.prepare(detector_config(config, "", 0.0))
    num_images = config.generate.num_images
    prepared.method.drawing.check(num_images, prepared.mesh)
    generator = train(prepared.config, directory / JOB_RUNS[0])
    manifest = generated_set / generated.MANIFEST
    if not (manifest.is_file() and (generator.directory / runs.GENERATION).is_file()):
        examples: list[dict[str, Any]] = []
        pairs = showing(drawn(generator, num_images), examples)
        normals = pools.normal_images(prepared.dataset, prepared.division)
        generated.write(generated_set, pairs, normals, overwrite=True)
        runs.write_generation(generator.directory, examples)
    results = {}
    for name, share in zip(JOB_RUNS[1:], (0.0, config.detector.share), strict=True):
        settings = detector_config(config, str(generated_set) if share else "", share)
        results[name] = evaluate(train(settings, directory / name))
    table = runs.detection_table(
        results,
        f"{config.data.shots} real defects a category to train on; in percent, on the "
        "test images.",
    )
    written = runs.write(
        directory / "report.html",
        [directory / name for name in JOB_RUNS],
        f"Generated defects and what they are worth: {generator.prepared.dataset.name}",
        [page.table("Real against real + generated", table)],
    )
    return written, table


def detector_config(
    config: ml_collections.ConfigDict, generated_directory: str, share: float
) -> ml_collections.ConfigDict:
    """Returns the config of the detector on the same data and split.

    Args:
      config: The generator's config, with its section `detector`.
      generated_directory: A generated set, or "".
      share: Share of the defective rows that is drawn from the generated set.
    """
    detector = config.detector
    settings = ml_collections.ConfigDict(
        {
            "method": "detector",
            "seed": config.seed,
            "kept": config.kept,
            "data": config.data.to_dict(),
            "mesh": config.mesh.to_dict(),
            "train": config.train.to_dict(),
            "detector": detector.options.to_dict(),
            "phases": {"segment": detector.phase.to_dict()},
            "mixture": {
                "segment": {
                    "normal": 0.5,
                    "defect": 0.5 * (1 - share),
                    "generated": 0.5 * share,
                }
            },
        }
    )
    settings.data.generated = generated_directory
    settings.data.num_views, settings.data.flips, settings.data.shift = 1, (), 0.0
    settings.data.batch_size = detector.batch_size
    return settings


def showing(
    pairs: Iterator[Drawn],
    examples: list[dict[str, Any]],
    limit: int = 12,
) -> Iterator[generated.GeneratedRow]:
    """Passes rows on and adds pictures of the first `limit` to `examples`.

    Rows with an empty mask, which no set takes in, are passed on and not shown.
    """
    for row, pictures in pairs:
        if len(examples) < limit and row.mask.any():
            label = f"{row.category}, {row.defect_type.replace('_', ' ')}"
            examples.append(
                {
                    "label": label,
                    "normal": pictures["normal"],
                    "inverted": pictures["inverted"],
                    "image": row.image,
                    "mask": row.mask,
                    "requested_mask": row.requested_mask,
                }
            )
        yield row
