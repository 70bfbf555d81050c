"""Assembles the embedded towers from their training runs, and measures them.

    python -m benchmarks.quality.towers --runs runs/pretrain
        --assets jaxanom/assets/foundry [--measure-only]

Images are those of a foundry seed that training never used (training: seed 1), of the
14 categories of training and, apart from them, of the 5 held-out ones. Writes
`towers.json` and a sheet of samples; a tower that is not there yet is left out.
"""

import argparse
import filecmp
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from PIL import Image

from benchmarks import harness
from benchmarks.quality import tower_quality
from jaxanom import record
from jaxanom.report import figures, tables

MEGABYTE = 10**6
LIMIT_BYTES = 20 * MEGABYTE
TRAINING_SEED = 1
TOWERS_JSON = "towers.json"
# Folder of the assembled directory -> where its training run leaves it.
PARTS = {
    "vae": "autoencoder/model/vae",
    "clip": "clip/model/clip",
    "unet": "unet/model/unet",
    "scheduler": "unet/model/scheduler",
    "tokenizer": "tokenizer",
}
RUNS = ("autoencoder", "clip", "unet")
ABOUT = {
    "vae": "KL autoencoder, diffusers AutoencoderKL, 64 px images to 16x16x8 latents",
    "clip": "CLIP of 8 px patches, transformers CLIPModel, text of 24 tokens",
    "unet": "text-conditional noise predictor, diffusers UNet2DConditionModel",
    "scheduler": "noise schedule of the UNet",
    "tokenizer": "byte-pair vocabulary, transformers CLIPTokenizer",
}
KEPT_ROWS = 100


def assemble(runs: Path, assets: Path) -> list[str]:
    """Copies every finished part into the embedded layout.

    Returns:
      Names of the parts that are missing in `runs`.

    Raises:
      ValueError: a weight file is not float16, the UNet was trained with another text
        tower, or the directory grows beyond 20 MB.
    """
    missing = []
    for part, place in PARTS.items():
        source = runs / place
        if not source.is_dir():
            missing.append(part)
            continue
        check_half_precision(source)
        target = assets / part
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(source, target)
    if "unet" not in missing and "clip" not in missing:
        _check_same_text_tower(runs)
    for name in RUNS:
        if (runs / name / record.RECORD).is_file():
            copy_record(runs / name, assets / "records" / name)
    check_size(assets)
    return missing


def check_half_precision(directory: Path) -> None:
    """Raises ValueError if a weight file holds anything but float16."""
    for path in sorted(directory.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
        wrong = sorted({kind for kind in types.values() if kind != "F16"})
        if wrong:
            raise ValueError(f"{path} holds {wrong}; wanted float16 (F16) throughout")


def check_size(assets: Path) -> dict[str, int]:
    """Returns bytes per entry and in total; raises ValueError beyond 20 MB."""
    sizes = {}
    for entry in sorted(assets.iterdir()):
        files = [file for file in (entry, *entry.rglob("*")) if file.is_file()]
        sizes[entry.name] = sum(file.stat().st_size for file in files)
    total = sum(sizes.values())
    if total > LIMIT_BYTES:
        raise ValueError(f"{assets} holds {total} bytes, the limit is {LIMIT_BYTES}")
    return {**sizes, "total": total}


def copy_record(run: Path, target: Path) -> None:
    """Keeps a run's record with the sizes of its split and evenly thinned metrics."""
    kept = record.read_json(run / record.RECORD)
    split = kept.pop("split", {})
    kept["num_images"] = {part: len(names) for part, names in split.items()}
    record.write_json(target / record.RECORD, kept)
    shutil.copyfile(run / record.CONFIG, target / record.CONFIG)
    rows = list(record.read_metrics(run / record.METRICS))
    if len(rows) > KEPT_ROWS:
        step = (len(rows) - 1) / (KEPT_ROWS - 1)
        rows = [rows[round(step * number)] for number in range(KEPT_ROWS)]
    (target / record.METRICS).unlink(missing_ok=True)
    for row in rows:
        record.append_metrics(target / record.METRICS, row)


def _check_same_text_tower(runs: Path) -> None:
    used, shipped = (runs / place / "clip" for place in ("text", "clip/model"))
    if not used.is_dir():
        return
    for path in sorted(shipped.iterdir()):
        if not filecmp.cmp(path, used / path.name, shallow=False):
            raise ValueError(
                f"{path} differs from {used / path.name}, which the UNet was trained "
                "with; train the UNet again or restore that file"
            )


def measure(assets: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """Measures every tower that is there; writes the sheet of samples."""
    measured: dict[str, Any] = {}
    there = {part: (assets / part).is_dir() for part in PARTS}
    if there["vae"] or there["clip"]:
        images = tower_quality.fresh_images(
            (*tower_quality.SEEN, *tower_quality.HELD_OUT),
            settings.seed,
            settings.num_good,
            settings.num_per_defect,
        )
    if there["vae"]:
        measured["vae"] = tower_quality.measure_autoencoder(assets, images)
    if there["clip"] and there["tokenizer"]:
        measured["clip"] = tower_quality.measure_clip(assets, images)
    if all(there.values()) and settings.num_samples:
        numbers, samples = tower_quality.measure_unet(
            assets,
            settings.num_samples,
            settings.sampling_steps,
            settings.guidance_scale,
        )
        measured["unet"] = numbers
        sheet = Path(settings.sheet or assets / "records" / "samples.png")
        sheet.parent.mkdir(parents=True, exist_ok=True)
        grid = figures.grid(samples, settings.num_samples)
        Image.fromarray(grid).save(sheet)
    return measured


def describe(
    assets: Path, measured: Mapping[str, Any], settings: argparse.Namespace
) -> dict[str, Any]:
    """Returns what `towers.json` says."""
    about = {part: text for part, text in ABOUT.items() if (assets / part).is_dir()}
    trained = {}
    for name in RUNS:
        path = assets / "records" / name / record.RECORD
        if path.is_file():
            kept = record.read_json(path)
            facts = ("num_params", "train_seconds", "num_images", "machine")
            trained[name] = {key: kept[key] for key in facts if key in kept}
    return {
        "about": about,
        "bytes": check_size(assets),
        "trained": trained,
        "training_seed": TRAINING_SEED,
        "measured_on": {
            "seed": settings.seed,
            "good_images_per_category": settings.num_good,
            "images_per_defect_type": settings.num_per_defect,
            "seen_categories": list(tower_quality.SEEN),
            "held_out_categories": list(tower_quality.HELD_OUT),
            "versions": record.versions(),
            "machine": record.machine(),
        },
        "measured": harness.without_nan(measured),
    }


def category_table(measured: Mapping[str, Any]) -> tables.Table:
    """Tabulates all towers, one row a category, then both groups."""
    columns = {
        "PSNR (dB)": ("vae", "mean_psnr"),
        "PSNR of mean": ("vae", "psnr_of_mean"),
        "named": ("clip", "named"),
        "named, plain": ("clip", "named_plain"),
        "image AUROC": ("clip", "image_auroc"),
        "patch AUROC": ("clip", "patch_auroc"),
        "sample named": ("unet", "named"),
    }

    def cells(rows: Mapping[str, Mapping[str, Any]]) -> list[Any]:
        return [rows.get(tower, {}).get(key) for tower, key in columns.values()]

    lines = []
    for group, members in tower_quality.GROUPS.items():
        for name in members:
            rows = {
                tower: result["per_category"].get(name, {})
                for tower, result in measured.items()
            }
            lines.append((name, *cells(rows)))
        of_group = {tower: result.get(group, {}) for tower, result in measured.items()}
        if group == "seen" and "unet" in measured:
            of_group["unet"] = measured["unet"]
        lines.append((f"all {group.replace('_', '-')}", *cells(of_group)))
    return tables.Table(("category", *columns), tuple(lines))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.towers")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--assets", type=Path, default=Path("jaxanom/assets/foundry"))
    parser.add_argument("--measure-only", action="store_true")
    parser.add_argument("--seed", type=int, default=2, help="of the fresh images")
    parser.add_argument("--num-good", type=int, default=30, help="per category")
    parser.add_argument("--num-per-defect", type=int, default=8, help="per type")
    parser.add_argument(
        "--num-samples", type=int, default=8, help="per category; 0: none"
    )
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--sheet", default="", help="PNG; default: in ASSETS/records")
    settings = parser.parse_args(arguments)
    if settings.seed == TRAINING_SEED:
        parser.error(f"--seed={TRAINING_SEED} is the one the towers were trained on")
    return settings


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    settings = parse(arguments)
    assets = settings.assets
    if not settings.measure_only:
        missing = assemble(settings.runs, assets)
        for part in missing:
            print(f"left out: {part}, {settings.runs / PARTS[part]} is not there yet")
    elif not assets.is_dir():
        raise ValueError(f"{assets} is not there; leave --measure-only out")
    started = time.perf_counter()
    measured = measure(assets, settings)
    report = describe(assets, measured, settings)
    report["measured_on"]["seconds"] = round(time.perf_counter() - started, 1)
    record.write_json(assets / TOWERS_JSON, report)
    print(tables.to_text(category_table(report["measured"])))
    if "unet" in report["measured"]:
        numbers = report["measured"]["unet"]
        print(f"samples: damage AUROC {numbers['damage_auroc']}")
    print(
        f"{report['bytes']['total'] / MEGABYTE:.2f} MB; {assets / TOWERS_JSON} written"
    )
    return report


if __name__ == "__main__":
    main()
