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
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from scipy import stats

import jaxanom
from benchmarks import harness
from benchmarks.quality.few_shot import published
from jaxanom import record
from jaxanom.data import catalog
from jaxanom.data.layouts import mvtec
from jaxanom.jobs import config_file
from jaxanom.methods import adp
from jaxanom.methods.adp import model, options, predict
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.memory import bank, crops, windows
from jaxanom.methods.adp.tuning import choose, grid
from jaxanom.models.features import mobilenet_v2
from jaxanom.report import tables
from jaxanom.types import Predictions

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
METRICS = {
    "image_auroc": "Image AUROC",
    "pixel_auroc": "Pixel AUROC",
    "pixel_aupro": "AU-PRO",
}
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
    """Trains and evaluates every variant of one run: {set: what was found}.

    What uses no shots is taken from `results` of other shots and draws.
    """
    directory = dataset_directory(cell, data, out)
    config = config_of(cell, directory, weights, scale)
    with listening() as heard:
        run = jaxanom.train(config, out / "runs" / cell.key)
    facts = record.read_json(run.directory / record.RECORD)
    names = run.prepared.dataset.categories
    grids = dict(
        zip([n for n in names if facts["adp"][n]["tuned"]], heard, strict=True)
    )
    variants = {"adp": scores(run)}
    for shown, chosen in (("default", {}), ("one standard error", of_one_error(grids))):
        other = with_settings(run, chosen)
        is_same = jax.tree.all(jax.tree.map(np.array_equal, other.params, run.params))
        variants[f"adp, {shown}"] = variants["adp"] if is_same else scores(other)
    shotless = without_shots(results, dict(zip(cell.names, names, strict=True)))
    for name, baseline in BASELINES.items():
        if name == SHOTLESS and shotless is not None:
            variants[name] = shotless
            continue
        if name == "patch memory" and config.adp.primary == "reference":
            continue  # it is ADP's memory, calibration and smoothing: "adp, default"
        plain = config_of(cell, directory, weights, scale)
        plain.adp.baseline, plain.phases.invert.num_steps = baseline, 0
        variants[name] = scores(
            jaxanom.train(plain, out / "runs" / f"{cell.key}-{baseline}")
        )
    variants["plain"] = scores(run, plain_predict(run))
    found = {}
    for number, (name, known) in enumerate(zip(cell.names, names, strict=True)):
        grid = grids.get(known)
        found[name] = {
            "variants": {variant: rows[known] for variant, rows in variants.items()},
            "tuning": {known: facts["adp"][known]},
            "agreement": agreement(run, number, *grid) if grid else None,
            "train_seconds": facts["train_seconds"],
            "side_by_side": len(names),
        }
    return found


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


def of_one_error(
    grids: Mapping[str, tuple[fusion.Settings, np.ndarray]],
) -> dict[str, fusion.Settings]:
    """Returns what the one-standard-error rule chooses, by category."""
    return {
        name: choose.choose(settings, per_fold, 0, 1.0).settings
        for name, (settings, per_fold) in grids.items()
    }


@contextlib.contextmanager
def listening() -> Iterator[list[tuple[fusion.Settings, np.ndarray]]]:
    """Yields a list that gets every grid that is tuned on, and what it scored."""
    heard, rule = [], choose.choose

    def choosing(settings, per_fold, *rest):
        heard.append((settings, per_fold))
        return rule(settings, per_fold, *rest)

    with mock.patch.object(choose, "choose", choosing):
        yield heard


def agreement(
    run: jaxanom.Run, number: int, settings: fusion.Settings, per_fold: np.ndarray
) -> float:
    """Spearman correlation over the grid: J on synthetic and on the test images.

    Args:
      run: of these categories.
      number: of one of them.
      settings: leaves [H, ...].
      per_fold: [H, F], J on synthetic images.
    """
    prepared = run.prepared
    dataset = prepared.dataset
    records = [dataset.records[place] for place in prepared.division.test]
    known = dataset.categories[number]
    pairs = [dataset.load(item) for item in records if item.category == known]
    chosen = options.read(prepared.config.adp)
    towers, _ = model.load(prepared.config.model, chosen.diffusion_size)
    detector = adp.make_detector(chosen, towers)
    look = jax.jit(predict.every_cell(detector))
    scoring = predict.from_tree(run.params["scoring"])
    images = np.stack([image for image, _ in pairs]).astype(np.float32) / 255
    nobody = np.full(len(images), bank.NOBODY, np.int32)
    maps, whole = model.batched(
        lambda *rows: look(scoring, run.frozen, *rows),
        8,
        images,
        np.full(len(images), number, np.int32),
        nobody,
    )
    found = fusion.Calibration(
        centre=np.asarray(scoring.centre[number]),
        spread=np.asarray(scoring.spread[number]),
        image_centre=np.asarray(scoring.image_centre[number]),
        image_spread=np.asarray(scoring.image_spread[number]),
    )
    masks = np.stack([mask for _, mask in pairs]) > 0
    covered = crops.cell_means(masks, detector.side)
    synthetic = grid.Synthetic(
        maps=fusion.standardised(np.moveaxis(maps, 1, 0), found),
        whole=(whole.T - found.image_centre[:, None]) / found.image_spread[:, None],
        masks=(covered >= 0.5).astype(np.float32),
        source=masks.any((1, 2)).astype(np.int32),
    )
    real = grid.objectives(synthetic, detector.cell_counts, settings)
    ranked = stats.spearmanr(per_fold.mean(1), np.asarray(real).mean(1))
    return float(ranked.statistic)


def scores(run: jaxanom.Run, predict_fn: Any = None) -> dict[str, dict[str, float]]:
    """Evaluates a run, or another detector on its test images, by category."""
    if predict_fn is not None:
        method = run.prepared.method._replace(predict=predict_fn)
        run = run._replace(prepared=run.prepared._replace(method=method))
    return dict(jaxanom.evaluate(run, num_examples=0)["per_category"])


def with_settings(
    run: jaxanom.Run, chosen: Mapping[str, fusion.Settings]
) -> jaxanom.Run:
    """Returns the run with other settings; categories not named get the default."""
    scoring = predict.from_tree(run.params["scoring"])
    adp_options = options.read(run.prepared.config.adp)
    weights = options.default_weights(adp_options)
    default = fusion.default(weights, True, adp_options.sigma)
    rows = [chosen.get(name, default) for name in run.prepared.dataset.categories]
    settings = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    tree = predict.as_tree(scoring._replace(settings=settings))
    return run._replace(params={**run.params, "scoring": tree})


def plain_predict(run: jaxanom.Run) -> Any:
    """Nearest neighbour in the features of C2: no calibration, text or smoothing."""
    config = run.prepared.config.adp
    tower = bank.feature_tower(
        config.feature_tower, tuple(config.feature_layers), config.feature_size, (2, 3)
    )
    if not config.feature_tower:
        return clip_plain_predict(run)
    name = tower.groups.names[0]

    def call(params, frozen, batch, key):
        del params, key
        kinds = tower.features(frozen["towers"]["features"], batch["image"], None)
        memory = frozen["memory"][name]
        nobody = jnp.full_like(batch["category_id"], bank.NOBODY)
        distance = bank.distances(
            kinds[name],
            memory["features"],
            memory["owners"],
            batch["category_id"],
            nobody,
        )
        size = batch["image"].shape[1:3]
        return Predictions(fusion.to_image(distance, size), jnp.max(distance, (1, 2)))

    return call


def clip_plain_predict(run: jaxanom.Run) -> Any:
    """The same with the last of CLIP's layers, where no other tower is used."""
    config = run.prepared.config
    towers, _ = model.load(config.model, config.adp.diffusion_size)
    layer = int(config.adp.feature_layers[-1])

    def call(params, frozen, batch, key):
        del params, key
        seen = windows.features(towers, frozen["towers"], batch["image"], (), (layer,))
        memory = frozen["memory"][f"layer{layer}"]
        nobody = jnp.full_like(batch["category_id"], bank.NOBODY)
        distance = bank.distances(
            bank.unit(seen.layers[layer]),
            memory["features"],
            memory["owners"],
            batch["category_id"],
            nobody,
        )
        size = batch["image"].shape[1:3]
        return Predictions(fusion.to_image(distance, size), jnp.max(distance, (1, 2)))

    return call


def table(results: Mapping[str, Mapping[str, Any]], metric: str) -> tables.Table:
    """Mean and standard deviation over draws, one row a set and number of shots."""
    rows: dict[tuple[str, int], dict[str, list[float]]] = {}
    for key, entry in results.items():
        name, shots, _ = key.rsplit("-", 2)
        row = rows.setdefault((name, int(shots)), {})
        for variant, values in entry["variants"].items():
            if metric in values and values[metric] is not None:
                row.setdefault(variant, []).append(100 * values[metric])
    variants = list(dict.fromkeys(v for row in rows.values() for v in row))
    lines = [
        {
            "set": name,
            "shots": shots,
            **{
                v: f"{np.nanmean(row[v]):.1f} ± {np.nanstd(row[v]):.1f}"
                for v in variants
                if v in row
            },
        }
        for (name, shots), row in sorted(rows.items())
    ]
    columns = {"set": "set", "shots": "K", **{v: v for v in variants}}
    return tables.from_records(lines, columns, caption=METRICS[metric])


def tuning_table(results: Mapping[str, Mapping[str, Any]]) -> tables.Table:
    """What self-tuning changed, and what it went by; one row a set and shots.

    Gains are of the tuned settings over the default, in points, mean and deviation over
    draws; acceptance is the mean over kinds of normals, and of anomalies.
    """
    rows: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for key, entry in results.items():
        name, shots, _ = key.rsplit("-", 2)
        rows.setdefault((name, int(shots)), []).append(entry)
    lines = []
    for (name, shots), entries in sorted(rows.items()):
        line: dict[str, Any] = {"set": name, "shots": shots}
        for metric, shown in METRICS.items():
            gains = [
                entry["variants"]["adp"][metric]
                - entry["variants"]["adp, default"][metric]
                for entry in entries
                if entry["variants"]["adp"].get(metric) is not None
            ]
            if gains:
                line[shown] = tables.mean_std(gains, 100, 1)
        heard = [e["agreement"] for e in entries if e.get("agreement") is not None]
        line["agreement"] = f"{np.mean(heard):.2f}" if heard else "-"
        for kind in ("normal", "anomaly"):
            rates = [
                rate
                for entry in entries
                for facts in entry["tuning"].values()
                for source, rate in facts.get("accepted", {}).items()
                if source.startswith(kind)
            ]
            line[f"{kind} accepted"] = f"{100 * np.mean(rates):.0f} %" if rates else "-"
        lines.append(line)
    names = dict.fromkeys(key for line in lines for key in line)
    columns = {key: "K" if key == "shots" else key for key in names}
    return tables.from_records(lines, columns, caption="Self-tuning")


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
        found = measure(
            cell, arguments.data, arguments.out, weights, arguments.scale, results
        )
        for name, key in cell.keys.items():
            results[key] = harness.without_nan(found[name])
        record.write_json(path, {"results": results, **harness.surroundings(), **facts})
        print(cell.key, {name: found[name]["variants"]["adp"] for name in found})
    shown = [*(table(results, metric) for metric in METRICS), tuning_table(results)]
    shown.append(published.table())
    text = "\n\n".join(map(tables.to_markdown, shown))
    (arguments.out / "few_shot.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
