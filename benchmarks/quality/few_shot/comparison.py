"""Few-shot detection: ADP (reconstructed from its abstract) beside its baselines.

    python -m benchmarks.quality.few_shot.comparison --out runs/few_shot
        --data ../shared/data [--sets hazelnut_toy pill] [--shots 1 2 4] [--draws 5]
        [--scale 0.1]

Sets are folders of `--data` in the MVTec layout, scored with MobileNetV2 features in C2
where `<data>/mobilenet_v2` is there, and procedural categories that the embedded towers
never saw. Every (set, shots, draw) is kept in --out, or with --record beside the other
records: a later call goes on with what is missing. Procedural categories of a kind are
one run, whose tokens train side by side; the token of a photograph has no say beside
MobileNetV2 (`adp.primary`), and is not learned. Writes `few_shot.md` and
`few_shot.json`. Draws are `data.split_seed` 0, 1, ... of `data.fewshot`; draw 0 of
`--shots 2` was used for development.

Variants: "adp" (tuned) and "adp, default" (the same token, calibration and memory with
the default settings) of one run; "winclip" (no shots: measured once a set), "winclip+"
and, where text has a say in ADP, "patch memory" of `adp.baseline`; "plain", a
nearest-neighbour search in the same features without any calibration or smoothing.
"agreement": Spearman correlation, over the settings that were tried, of their J on
synthetic and on test images. "adp, one standard error" is what
`adp.standard_errors=1` would have chosen.
"""

import argparse
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from benchmarks import harness
from benchmarks.quality.few_shot import published, summary, variants
from jaxanom import record
from jaxanom.data import catalog
from jaxanom.data.layouts import mvtec
from jaxanom.jobs import config_file, train
from jaxanom.methods import adp
from jaxanom.models.features import mobilenet_v2
from jaxanom.report import tables

REAL = (
    "hazelnut_toy",
    "magnetic_tile",
    "kolektor_sdd",
    "mvtec_grid_mini",
    "mvtec_bottle_nomask",
)
FOUNDRY = ("marble", "cork", "gear", "pill", "tray")
BASELINES = {
    "winclip": "winclip",
    "winclip+": "winclip_plus",
    "patch memory": "patch_bank",
}
SHOTLESS = "winclip"
TEXTURES = ("magnetic_tile", "mvtec_grid_mini", "marble", "cork")
VERSION = 2
"""Counts changes of the method that results of before do not know."""
FOUNDRY_POOL = 16
"""Normal images of a procedural category that shots are drawn from."""


class Cell(NamedTuple):
    """One run of the protocol: sets that are learned side by side."""

    names: tuple[str, ...]
    shots: int
    draw: int

    @property
    def key(self) -> str:
        """Of the run's files."""
        return f"{'+'.join(self.names)}-{self.shots}-{self.draw}"

    @property
    def keys(self) -> dict[str, str]:
        """Returns {set: key of its results}."""
        return {name: f"{name}-{self.shots}-{self.draw}" for name in self.names}


def cells(
    sets: Sequence[str], shots: Sequence[int], num_draws: int, known: Mapping[str, Any]
) -> Iterator[Cell]:
    """Yields the runs of what is not known.

    Draws go round last: what an interrupted call leaves covers all sets and shots.
    Turned copies are an option of a run, so textures and objects are two.
    """
    groups = [(name,) for name in sets if name not in FOUNDRY]
    ours = [name for name in sets if name in FOUNDRY]
    for is_texture in (True, False):
        groups.append(tuple(n for n in ours if (n in TEXTURES) is is_texture))
    for draw, count, group in itertools.product(range(num_draws), shots, groups):
        keys = Cell(group, count, draw).keys
        missing = tuple(name for name in group if keys[name] not in known)
        if missing:
            yield Cell(missing, count, draw)


def dataset_directory(cell: Cell, data: Path, out: Path) -> Path:
    """Returns a set's folder; procedural categories are written out first."""
    if cell.names[0] not in FOUNDRY:
        return data / cell.names[0]
    for name in cell.names:
        if not (out / "foundry" / name / "test").is_dir():
            _render(name, out / "foundry")
    return out / "foundry"


def _render(name: str, root: Path) -> None:
    dataset = catalog.open_dataset(
        "foundry", None, (name,), 64, 11, FOUNDRY_POOL, 24, 6
    )
    for item in dataset.records:
        image, mask = dataset.load(item)
        images_at = root / item.name
        images_at.parent.mkdir(parents=True, exist_ok=True)
        _save(images_at, image)
        if item.defect_type != mvtec.GOOD:
            truth = root / name / "ground_truth" / item.defect_type
            truth.mkdir(parents=True, exist_ok=True)
            _save(truth / f"{images_at.stem}_mask.png", mask * 255)


def _save(path: Path, array: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(array).save(path)


def config_of(
    cell: Cell, directory: Path, weights: Path | None, scale: float
) -> ml_collections.ConfigDict:
    """Returns the recipe for one run."""
    config = config_file.load("configs/adp/folder.py")
    real = cell.names[0] not in FOUNDRY
    config.data.directory = str(directory)
    config.data.num_train, config.data.split_seed = cell.shots, cell.draw
    config.seed = config.train.seed = cell.draw
    config.adp.turns = (0, 1, 2, 3) if cell.names[0] in TEXTURES else (0,)
    if real and weights is not None:
        config.adp.feature_tower = f"mobilenet_v2:{weights}"
        config.adp.feature_layers = mobilenet_v2.DEFAULT_LAYERS
        config.adp.primary = "reference"
        config.phases.invert.num_steps = 0
    if not real:
        config.data.categories = cell.names
        config.data.image_size, config.adp.map_size = 64, 16
    if scale < 1:
        steps = config.phases.invert.num_steps
        config.phases.invert.num_steps = min(steps, max(2, round(400 * scale)))
        config.adp.num_synthetic = max(8, round(256 * scale))
        config.adp.num_settings = max(8, round(4096 * scale))
    return config


def measure(
    cell: Cell,
    data: Path,
    out: Path,
    weights: Path | None,
    scale: float,
    results: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Trains and evaluates every variant of one run: {set: its results}.

    What uses no shots is taken from `results` of other shots and draws.
    """
    directory = dataset_directory(cell, data, out)
    config = config_of(cell, directory, weights, scale)
    tried: list[Any] = []
    make = functools.partial(adp.make, choose_fn=variants.keeping(tried))
    run = train.train(config, out / "runs" / cell.key, make=make)
    facts = record.read_json(run.directory / record.RECORD)
    names = run.prepared.dataset.categories
    grids = dict(
        zip([n for n in names if facts["adp"][n]["tuned"]], tried, strict=True)
    )
    rows = {"adp": variants.scores(run)}
    others = {"default": {}, "one standard error": variants.of_one_error(grids)}
    for rule, settings_of in others.items():
        other = variants.with_settings(run, settings_of)
        is_same = jax.tree.all(jax.tree.map(np.array_equal, other.params, run.params))
        rows[f"adp, {rule}"] = rows["adp"] if is_same else variants.scores(other)
    shotless = without_shots(results, dict(zip(cell.names, names, strict=True)))
    for name, baseline in BASELINES.items():
        if name == SHOTLESS and shotless is not None:
            rows[name] = shotless
            continue
        if name == "patch memory" and config.adp.primary == "reference":
            continue  # it is ADP's memory, calibration and smoothing: "adp, default"
        plain = config_of(cell, directory, weights, scale)
        plain.adp.baseline, plain.phases.invert.num_steps = baseline, 0
        rows[name] = variants.scores(
            train.train(plain, out / "runs" / f"{cell.key}-{baseline}")
        )
    rows["plain"] = variants.scores(run, variants.plain_predict(run))
    measured = {}
    for number, (name, known) in enumerate(zip(cell.names, names, strict=True)):
        grid = grids.get(known)
        measured[name] = {
            "variants": {variant: row[known] for variant, row in rows.items()},
            "tuning": {known: facts["adp"][known]},
            "agreement": variants.agreement(run, number, *grid) if grid else None,
            "train_seconds": facts["train_seconds"],
            "side_by_side": len(names),
        }
    return measured


def without_shots(
    results: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> dict[str, Any] | None:
    """Returns the scores of `SHOTLESS` where every set has some, else None.

    Args:
      results: known so far.
      names: {set: category}.
    """
    known = {key.rsplit("-", 2)[0]: entry for key, entry in results.items()}
    if not names.keys() <= known.keys():
        return None
    return {
        category: known[name]["variants"][SHOTLESS] for name, category in names.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.few_shot.comparison"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=[*REAL, *FOUNDRY])
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args(argv)
    weights = arguments.data / "mobilenet_v2"
    weights = weights if (weights / mobilenet_v2.WEIGHTS).is_file() else None
    path = (harness.RECORDS if arguments.record else arguments.out) / "few_shot.json"
    facts = {"scale": arguments.scale, "version": VERSION}
    results = harness.kept_results(path, facts)
    runs = list(cells(arguments.sets, arguments.shots, arguments.draws, results))
    for cell in runs:
        measured = measure(
            cell, arguments.data, arguments.out, weights, arguments.scale, results
        )
        for name, key in cell.keys.items():
            results[key] = harness.without_nan(measured[name])
        record.write_json(path, {"results": results, **harness.surroundings(), **facts})
        print(cell.key, {key: row["variants"]["adp"] for key, row in measured.items()})
    pages = [summary.table(results, metric) for metric in summary.METRICS]
    pages += [summary.tuning_table(results), published.table()]
    text = "\n\n".join(map(tables.to_markdown, pages))
    (arguments.out / "few_shot.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
