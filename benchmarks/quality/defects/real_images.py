"""Defect generation on photographs: is a detector better for the generated images?

    python -m benchmarks.quality.defects.real_images --data DIR --autoencoder DIR
        --out runs/real

For each set (a folder in the MVTec layout below --data) a UNet is trained from scratch
in the latents of the autoencoder on all normal training images and 10 defects; then
segmenters learn from the same 10 defects, without and with the generated images, with
the same steps, and are tested on every other defective and all normal test images.
Split, UNet and generated set are of one seed; the segmenters of `--num_seeds`: the
deviation is theirs alone. Every number was fixed before any test image was looked at.
What is done is kept in --out; an interrupted call goes on where it stopped.
"""

import argparse
from pathlib import Path
from typing import Any

import ml_collections

import jaxanom
from benchmarks import harness
from benchmarks.quality.defects import measures, runs
from jaxanom import record
from jaxanom.data import generated
from jaxanom.jobs import config_file, defects_to_detector, generate, prepare
from jaxanom.report import runs as reports
from jaxanom.report import tables

SETS = ("hazelnut_toy", "magnetic_tile")
METRICS = ("pixel_ap", "pixel_auroc", "image_auroc")
RECIPE = "configs/defect_generation/folder.py"


def config(settings: argparse.Namespace, name: str) -> ml_collections.ConfigDict:
    """Returns the shipped recipe for folders with this call's sizes."""
    recipe = config_file.load(RECIPE)
    recipe.data.directory = str(settings.data / name)
    recipe.model.autoencoder = str(settings.autoencoder)
    recipe.data.image_size = settings.image_size
    recipe.train.log_every, recipe.train.keep = 25, 1
    for phase in recipe.phases.values():
        phase.num_steps = settings.num_steps
        phase.warmup_steps = min(phase.warmup_steps, settings.num_steps // 4)
    recipe.generate.num_images = settings.num_images
    recipe.detector.phase.num_steps = settings.detector_steps
    recipe.detector.batch_size = settings.detector_batch
    return recipe


def measure(settings: argparse.Namespace, name: str) -> dict[str, Any]:
    """Trains, generates, trains the segmenters; returns plain JSON values."""
    out = settings.out / name
    base = config(settings, name)
    generator = jaxanom.train(prepare.without(base, "detector"), out / "generator")
    generated_set = out / "generated"
    if not (generated_set / generated.MANIFEST).is_file():
        pictures: list[dict[str, Any]] = []
        rows = generate.drawn(generator, settings.num_images)
        rows = defects_to_detector.showing(rows, pictures)
        generated.write(generated_set, rows, overwrite=True)
        reports.write_generation(generator.directory, pictures)
    result: dict[str, Any] = {}
    for variant, share in (("real", 0.0), ("real+generated", base.detector.share)):
        scores = []
        for seed in range(settings.num_seeds):
            base.seed = base.train.seed = seed
            detector = defects_to_detector.detector_config(
                base, str(generated_set) if share else "", share
            )
            run = jaxanom.train(detector, out / f"{variant}_{seed}")
            scores.append(jaxanom.evaluate(run)["mean"])
        result[variant] = measures.spreads(scores, METRICS)
    result["num_defects"] = base.data.shots
    result["num_test_images"] = len(generator.prepared.division.test)
    rows = generated.read_manifest(generated_set)
    result["num_generated"] = sum(row["image"] is not None for row in rows)
    reports.write(
        out / "report.html",
        [generator.directory, out / "real_0", out / "real+generated_0"],
        f"Generated defects and what they are worth: {name}",
    )
    return result


def table(results: dict[str, dict[str, Any]]) -> tables.Table:
    """Tabulates mean and standard deviation over the segmenters' seeds, in percent."""
    rows = [
        (
            name,
            variant,
            *(
                tables.mean_std(result[variant][metric]["values"], 100, 1)
                for metric in METRICS
            ),
        )
        for name, result in results.items()
        for variant in ("real", "real+generated")
    ]
    return tables.Table(("set", "trained on", *METRICS), tuple(rows))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.defects.real_images"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--num_steps", type=int, default=400, help="of each phase")
    parser.add_argument("--num_images", type=int, default=48, help="generated")
    parser.add_argument("--detector_steps", type=int, default=200)
    parser.add_argument("--detector_batch", type=int, default=4)
    parser.add_argument("--num_seeds", type=int, default=5)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    settings = parse(arguments)
    settings.out.mkdir(parents=True, exist_ok=True)
    runs.keep_programs(settings.out.resolve())
    results = {name: measure(settings, name) for name in settings.sets}
    text = tables.to_markdown(table(results))
    (settings.out / "real_images.md").write_text(text + "\n", encoding="utf-8")
    places = ("data", "autoencoder", "out")
    sizes = {key: value for key, value in vars(settings).items() if key not in places}
    record.write_json(
        settings.out / "real_images.json",
        {
            "asked": sizes,
            "results": harness.without_nan(results),
            "machine": record.machine(),
            "versions": record.versions(),
        },
    )
    print(tables.to_text(table(results)))
    return results


if __name__ == "__main__":
    main()
