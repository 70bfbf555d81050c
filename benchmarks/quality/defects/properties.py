"""Tier B of background-aware defect generation (arXiv 2411.16767), on foundry.

    python -m benchmarks.quality.defects.properties --out runs/tier_b --seed 1 [--only B3] [--scale 0.2]

Fine-tunes the embedded UNet for every experiment. What is done is kept in --out: an
interrupted call goes on where it stopped. `--sets` names the generated sets that B5
compares with real defects alone. Seed 0 is for development, 1 is reported. The
targets are this project's, not the paper's. Writes `tier_b.md` and `tier_b.json`; what
is measured, and how, is in `tier_b_measures.py` and `tier_b_experiments.py`.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import harness
from benchmarks.quality.defects import experiments, runs
from jaxanom import record
from jaxanom.report import tables

EXPERIMENTS: dict[str, Callable[[runs.Job], dict[str, Any]]] = {
    "B1": experiments.b1,
    "B2": experiments.b2,
    "B3": experiments.b3,
    "B4": experiments.b4,
    "B5": experiments.b5,
}
ABLATIONS = "ablations"


class Line(NamedTuple):
    """One measured number and what was asked of it; `passed` None: nothing was."""

    experiment: str
    measure: str
    value: float | str
    target: str = ""
    passed: bool | None = None


def lines(results: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """Compares every result that is there with its target."""
    made = {"B1": _b1, "B2": _b2, "B3": _b3, "B4": _b4, "B5": _b5}
    results = harness.with_nan(results)
    return [
        line
        for name, make in made.items()
        if name in results
        for line in make(results[name])
    ]


def _b1(found: Mapping[str, Any]) -> list[Line]:
    rows = []
    for term in ("matching", "background"):
        fall = found["fall_from_untrained"][term]
        path = [found[name][term] for name in ("untrained", "embedded", "trained")]
        shown = " -> ".join(f"{value:.4f}" for value in path)
        rows += [
            Line("B1", f"{term} term: untrained -> embedded -> trained", shown),
            Line("B1", f"{term}: fall below step 0", fall, ">= 0.5", fall >= 0.5),
            Line(
                "B1",
                f"{term}: fall below the embedded UNet",
                found["fall_from_embedded"][term],
            ),
        ]
    return [*rows, Line("B1", "gap g, trained", found["trained"]["gap"])]


def _b2(found: Mapping[str, Any]) -> list[Line]:
    rows = []
    for told, curve in found["recompute"].items():
        means = {int(n): value["mean"] for n, value in curve.items()}
        at_50, ends = means[50], (means[min(means)], means[max(means)])
        shown = ", ".join(f"{value:.3f}" for value in means.values())
        steps = ", ".join(map(str, means))
        rows += [
            Line("B2", f"background error, {told} time, S = {steps}", shown),
            Line("B2", f"S = 50, {told} time", at_50, "<= 0.10", at_50 <= 0.10),
            Line(
                "B2",
                f"S = {max(means)} over S = {min(means)}, {told} time",
                ends[1] / ends[0],
                "< 1",
                ends[1] < ends[0],
            ),
        ]
    whole = found["invariance"]["error"]
    rows.append(Line("B2", "S = 50, source time, in the whole generator", whole))
    replay = found["replay"]["50"]["worst"]
    rows.append(Line("B2", "S = 50, replay", replay, "= 0", replay == 0))
    for what in ("seeds", "prompts"):
        outside = found["invariance"][f"{what}_outside"]
        inside = found["invariance"][f"{what}_inside"]
        rows += [
            Line(
                "B2",
                f"two {what}: largest latent change outside m",
                outside,
                "= 0",
                outside == 0,
            ),
            Line(
                "B2",
                f"two {what}: largest latent change inside m",
                inside,
                "> 0",
                inside > 0,
            ),
        ]
    return rows


def _b3(found: Mapping[str, Any]) -> list[Line]:
    full, hidden = (found[name]["correlation"] for name in ("full", "hidden"))
    gap, error = found["gap"], found["gap_error"]
    return [
        Line(
            "B3", "colour correlation, real defects (ceiling)", found["real"]["value"]
        ),
        Line(
            "B3",
            "colour correlation, full model",
            full["value"],
            ">= 0.8",
            full["value"] >= 0.8,
        ),
        Line("B3", "its bootstrap error", full["error"]),
        Line("B3", "colour correlation, background hidden", hidden["value"]),
        Line(
            "B3", "full - hidden", gap, f"> {2 * error:.3f} (2 errors)", gap > 2 * error
        ),
        Line(
            "B3",
            "share with a non-empty m*, full",
            full["num_images"] / found["full"]["num_images"],
        ),
    ]


def _b4(found: Mapping[str, Any]) -> list[Line]:
    rows = []
    for name, said in (("panel", ""), ("panel_refusing", ", refusal_share = 0.5")):
        part, ratio = found[name], found[name]["ratio"]
        rows += [
            *(
                Line("B4", f"|m*|/|m| on {kind}{said}", part[kind]["kept"])
                for kind in ("steel", "plastic")
            ),
            Line("B4", f"plastic / steel{said}", ratio, "< 0.5", ratio < 0.5),
        ]
    return rows


def _b5(found: Mapping[str, Any]) -> list[Line]:
    names = {
        "real": "real",
        "requested": "real + generated, m",
        "refined": "real + generated, m*",
        "recipe": "real + generated as the recipe draws",
    }
    lines = [
        Line("B5", f"pixel AP, {shown}", f"{row['mean']:.3f} ± {row['std']:.3f}")
        for name, shown in names.items()
        if name in found
        for row in [found[name]["pixel_ap"]]
    ]
    for name in ("refined", "recipe"):
        if name not in found:
            continue
        gain, stds = found[f"gain_{name}"], found[f"gain_{name}_in_stds"]
        lines += [
            Line("B5", f"gain, {name}", gain, ">= 0", gain >= 0),
            Line("B5", f"gain in stds of real, {name}", stds, "> 2", stds > 2),
        ]
    if {"refined", "requested"} <= set(found):
        means = [found[name]["pixel_ap"]["mean"] for name in ("refined", "requested")]
        better = means[0] - means[1]
        lines.append(Line("B5", "m* - m", better, ">= 0", better >= 0))
    return lines


def ablation_table(found: Mapping[str, Mapping[str, Any]]) -> tables.Table:
    """Tabulates the ablations, one row a switch."""
    rows = tuple(
        (
            name,
            row["correlation"]["value"],
            row["correlation_whole_mask"]["value"],
            row["colour_error"],
            row["kept"],
            row["background_error"],
        )
        for name, row in found.items()
    )
    columns = (
        "variant",
        "colour r in m*",
        "colour r in m",
        "colour error",
        "|m*|/|m|",
        "background error",
    )
    return tables.Table(columns, rows, caption="Ablations on the bottles of B3")


def result_table(rows: list[Line]) -> tables.Table:
    """Tabulates lines with their verdicts."""
    verdict = {None: "", True: "pass", False: "miss"}
    cells = tuple((*row[:4], verdict[row.passed]) for row in rows)
    return tables.Table(("", "measure", "value", "target", ""), cells, digits=4)


def done(job: runs.Job, name: str, run: Callable[[runs.Job], dict]) -> dict[str, Any]:
    """Returns an experiment's result, from --out if it is there.

    Raises:
      ValueError: --out holds results of another seed, scale or model.
    """
    path = job.out / f"{name}.json"
    asked = {"model": job.model, "seed": job.seed, "scale": job.scale}
    if path.is_file():
        kept = record.read_json(path)
        if kept["asked"] != asked:
            raise ValueError(
                f"{path} was made with {kept['asked']}, asked for now is {asked}; "
                "choose another --out"
            )
        return kept["result"]
    print(f"{name} ...", flush=True)
    started = time.perf_counter()
    result = harness.without_nan(run(job))
    seconds = round(time.perf_counter() - started, 1)
    record.write_json(path, {"asked": asked, "result": result, "seconds": seconds})
    print(f"{name} took {seconds} s", flush=True)
    return result


def write(job: runs.Job, results: Mapping[str, Any]) -> None:
    """Writes `tier_b.md` and `tier_b.json` of the results so far."""
    rows = lines(results)
    parts = [tables.to_markdown(result_table(rows))]
    if ABLATIONS in results:
        parts.append(tables.to_markdown(ablation_table(results[ABLATIONS])))
    heading = f"# Tier B, seed {job.seed}, scale {job.scale:g}"
    text = "\n\n".join([heading, *parts]) + "\n"
    (job.out / "tier_b.md").write_text(text, encoding="utf-8")
    record.write_json(
        job.out / "tier_b.json",
        {
            "lines": [row._asdict() for row in rows],
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
    parser.add_argument("--only", nargs="+", choices=sorted(EXPERIMENTS), default=None)
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
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # Detectors and reopened generators are the same programs again and again.
        jax.config.update("jax_compilation_cache_dir", str(job.out / ".jax_cache"))
    chosen = [*(settings.only or EXPERIMENTS), *[ABLATIONS] * settings.ablations]
    everything = {**EXPERIMENTS, ABLATIONS: experiments.ablations}
    results = {}
    for name, run in everything.items():
        if name in chosen or (job.out / f"{name}.json").is_file():
            results[name] = done(job, name, run)
            write(job, results)
    print(tables.to_text(result_table(lines(results))))
    if ABLATIONS in results:
        print(tables.to_text(ablation_table(results[ABLATIONS])))
    return results


if __name__ == "__main__":
    main()
