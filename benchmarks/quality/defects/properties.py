"""Properties of background-aware defect generation (arXiv 2411.16767), on foundry.

    python -m benchmarks.quality.defects.properties --out runs/properties --seed 1
        [--only generated_set_helps] [--sets recipe refined] [--scale 0.2] [--ablations]

Fine-tunes the embedded UNet for every experiment. What is done is kept in --out: an
interrupted call goes on where it stopped. `--sets` names the generated sets that
`generated_set_helps` compares with real defects alone. Seed 0 is for development, 1 is
reported. The targets are this project's, not the paper's. Writes `properties.md` and
`properties.json`; what is measured is in `experiments.py`, and how in `measures.py`.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.quality.defects import experiments, runs
from jaxanom import record
from jaxanom.report import tables

ABLATIONS = "ablations"


class Line(NamedTuple):
    """One measured number and what was asked of it; `passed` None: nothing was."""

    measure: str
    value: float | str
    target: str = ""
    passed: bool | None = None


def _losses_fall(result: Mapping[str, Any]) -> list[Line]:
    rows = []
    for term in ("matching", "background"):
        fall = result["fall_from_untrained"][term]
        path = [result[name][term] for name in ("untrained", "embedded", "trained")]
        values = " -> ".join(f"{value:.4f}" for value in path)
        rows += [
            Line(f"{term} term: untrained -> embedded -> trained", values),
            Line(f"{term}: fall below step 0", fall, ">= 0.5", fall >= 0.5),
            Line(
                f"{term}: fall below the embedded UNet",
                result["fall_from_embedded"][term],
            ),
        ]
    return [*rows, Line("gap g, trained", result["trained"]["gap"])]


def _background_stays(result: Mapping[str, Any]) -> list[Line]:
    rows = []
    for time_name, curve in result["recompute"].items():
        means = {int(n): value["mean"] for n, value in curve.items()}
        at_50, least, most = means[50], min(means), max(means)
        ratio = means[most] / means[least]
        values = ", ".join(f"{value:.3f}" for value in means.values())
        steps = ", ".join(map(str, means))
        ends = f"S = {most} over S = {least}"
        rows += [
            Line(f"background error, {time_name} time, S = {steps}", values),
            Line(f"S = 50, {time_name} time", at_50, "<= 0.10", at_50 <= 0.10),
            Line(f"{ends}, {time_name} time", ratio, "< 1", ratio < 1),
        ]
    replay, unchanged = result["replay"]["50"]["worst"], result["invariance"]
    rows.append(Line("S = 50, source time, in the whole generator", unchanged["error"]))
    rows.append(Line("S = 50, replay", replay, "= 0", replay == 0))
    for what in ("seeds", "prompts"):
        change = f"two {what}: largest latent change"
        outside, inside = unchanged[f"{what}_outside"], unchanged[f"{what}_inside"]
        rows.append(Line(f"{change} outside m", outside, "= 0", outside == 0))
        rows.append(Line(f"{change} inside m", inside, "> 0", inside > 0))
    return rows


def _colour_follows_background(result: Mapping[str, Any]) -> list[Line]:
    full, hidden = (result[name]["correlation"] for name in ("full", "hidden"))
    value, gap, errors = full["value"], result["gap"], 2 * result["gap_error"]
    share = full["num_images"] / result["full"]["num_images"]
    return [
        Line("colour correlation, real defects (ceiling)", result["real"]["value"]),
        Line("colour correlation, full model", value, ">= 0.8", value >= 0.8),
        Line("its bootstrap error", full["error"]),
        Line("colour correlation, background hidden", hidden["value"]),
        Line("full - hidden", gap, f"> {errors:.3f} (2 errors)", gap > errors),
        Line("share with a non-empty m*, full", share),
    ]


def _rust_stays_on_steel(result: Mapping[str, Any]) -> list[Line]:
    rows = []
    for name, loss in (("panel", ""), ("panel_refusing", ", refusal_share = 0.5")):
        part, ratio = result[name], result[name]["ratio"]
        for kind in ("steel", "plastic"):
            rows.append(Line(f"|m*|/|m| on {kind}{loss}", part[kind]["kept"]))
        rows.append(Line(f"plastic / steel{loss}", ratio, "< 0.5", ratio < 0.5))
    return rows


def _generated_set_helps(result: Mapping[str, Any]) -> list[Line]:
    titles = {
        "real": "real",
        "requested": "real + generated, m",
        "refined": "real + generated, m*",
        "recipe": "real + generated as the recipe draws",
    }
    pixel_ap = {name: result[name]["pixel_ap"] for name in titles if name in result}
    rows = [
        Line(f"pixel AP, {titles[name]}", f"{row['mean']:.3f} ± {row['std']:.3f}")
        for name, row in pixel_ap.items()
    ]
    for name in [name for name in ("refined", "recipe") if name in pixel_ap]:
        gain, stds = result[f"gain_{name}"], result[f"gain_{name}_in_stds"]
        rows.append(Line(f"gain, {name}", gain, ">= 0", gain >= 0))
        rows.append(Line(f"gain in stds of real, {name}", stds, "> 2", stds > 2))
    if {"refined", "requested"} <= set(pixel_ap):
        better = pixel_ap["refined"]["mean"] - pixel_ap["requested"]["mean"]
        rows.append(Line("m* - m", better, ">= 0", better >= 0))
    return rows


class Experiment(NamedTuple):
    """What is run, and how its result is compared with its targets."""

    run: Callable[[runs.Job], dict[str, Any]]
    compare: Callable[[Mapping[str, Any]], list[Line]]


EXPERIMENTS = {
    "losses_fall": Experiment(experiments.losses_fall, _losses_fall),
    "background_stays": Experiment(experiments.background_stays, _background_stays),
    "colour_follows_background": Experiment(
        experiments.colour_follows_background, _colour_follows_background
    ),
    "rust_stays_on_steel": Experiment(
        experiments.rust_stays_on_steel, _rust_stays_on_steel
    ),
    "generated_set_helps": Experiment(
        experiments.generated_set_helps, _generated_set_helps
    ),
}


def lines(results: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Line]]:
    """Compares every result that is there with its targets: {experiment: lines}."""
    results = harness.with_nan(results)
    return {
        name: experiment.compare(results[name])
        for name, experiment in EXPERIMENTS.items()
        if name in results
    }


def ablation_table(results: Mapping[str, Mapping[str, Any]]) -> tables.Table:
    """Tabulates the ablations, one row a switch."""
    columns = {
        "colour r in m*": lambda row: row["correlation"]["value"],
        "colour r in m": lambda row: row["correlation_whole_mask"]["value"],
        "colour error": lambda row: row["colour_error"],
        "|m*|/|m|": lambda row: row["kept"],
        "background error": lambda row: row["background_error"],
    }
    rows = tuple(
        (name, *(cell(row) for cell in columns.values()))
        for name, row in results.items()
    )
    return tables.Table(
        ("variant", *columns), rows, caption="Ablations, blobs in bottles of juice"
    )


def result_table(compared: Mapping[str, list[Line]]) -> tables.Table:
    """Tabulates lines with their verdicts."""
    verdict = {None: "", True: "pass", False: "miss"}
    cells = tuple(
        (name, row.measure, row.value, row.target, verdict[row.passed])
        for name, rows in compared.items()
        for row in rows
    )
    return tables.Table(("", "measure", "value", "target", ""), cells, digits=4)


def done(job: runs.Job, name: str, run: Callable[[runs.Job], dict]) -> dict[str, Any]:
    """Returns an experiment's result, from --out if it is there.

    Raises:
      ValueError: --out holds results of another seed, scale or model.
    """
    path = job.out / f"{name}.json"
    settings = {"model": job.model, "seed": job.seed, "scale": job.scale}
    if kept := harness.kept_results(path, settings):
        return kept
    print(f"{name} ...", flush=True)
    started = time.perf_counter()
    result = harness.without_nan(run(job))
    seconds = round(time.perf_counter() - started, 1)
    record.write_json(path, {"results": result, **settings, "seconds": seconds})
    print(f"{name} took {seconds} s", flush=True)
    return result


def write(job: runs.Job, results: Mapping[str, Any]) -> None:
    """Writes `properties.md` and `properties.json` of the results so far."""
    compared = lines(results)
    parts = [tables.to_markdown(result_table(compared))]
    if ABLATIONS in results:
        parts.append(tables.to_markdown(ablation_table(results[ABLATIONS])))
    heading = f"# Properties of defect generation, seed {job.seed}, scale {job.scale:g}"
    text = "\n\n".join([heading, *parts]) + "\n"
    (job.out / "properties.md").write_text(text, encoding="utf-8")
    record.write_json(
        job.out / "properties.json",
        {
            "lines": [
                {"experiment": name, **row._asdict()}
                for name, rows in compared.items()
                for row in rows
            ],
            "results": results,
            "model": job.model,
            "seed": job.seed,
            "scale": job.scale,
            "machine": record.machine(),
            "versions": record.versions(),
        },
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.defects.properties"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="embedded", help="a backbone directory")
    parser.add_argument("--seed", type=int, default=0, help="0 develops, 1 reports")
    parser.add_argument("--scale", type=float, default=1.0, help="of steps and images")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--sets", nargs="+", choices=runs.SETS, default=runs.SETS)
    parser.add_argument("--ablations", action="store_true", help="as well")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    settings = parse(arguments)
    source = settings.model
    if source != "embedded":
        source = str(Path(source).resolve())
    job = runs.Job(
        source,
        settings.out.resolve(),
        settings.seed,
        settings.scale,
        tuple(settings.sets),
    )
    job.out.mkdir(parents=True, exist_ok=True)
    runs.keep_programs(job.out)
    names = [*(settings.only or EXPERIMENTS), *[ABLATIONS] * settings.ablations]
    functions = {name: experiment.run for name, experiment in EXPERIMENTS.items()}
    results = {}
    for name, run in {**functions, ABLATIONS: experiments.ablations}.items():
        if name in names or (job.out / f"{name}.json").is_file():
            results[name] = done(job, name, run)
            write(job, results)
    print(tables.to_text(result_table(lines(results))))
    if ABLATIONS in results:
        print(tables.to_text(ablation_table(results[ABLATIONS])))
    return results


if __name__ == "__main__":
    main()
