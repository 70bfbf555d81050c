"""What particles buy: few-shot accuracy, NLL and ECE against transport and count.

    python -m benchmarks.quality.posterior_few_shot --out runs/posterior_few_shot
        [--tasks state defect caltech] [--steps 120] [--data ../shared/data]

Tasks, all on the embedded CLIP: "defect", which of six kinds a procedural metal plate
shows; "state", normal or damaged (held-out pills); "caltech", twenty classes of
photographs, left out where the CLIP's own sentences answer no better than chance, with
that number. 16 shots a class.

Every transport aims at one posterior (a proper, fixed prior around the data-dependent
mean; no weight decay), so that rows of a task differ in the approximation alone. Step
sizes are chosen for each transport on a development seed, which is not reported, with
four particles: the smallest whose kernelised Stein discrepancy is within a tenth of the
least. That looks at training images only; test images choose nothing. Reported: 5 other
seeds (of shots, procedural images, batches, first particles and noise). A call that was
stopped goes on where it stopped. Writes `posterior_few_shot.md`, `.json` and a page for
each task.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import harness
from jaxanom import record
from jaxanom.data import pools
from jaxanom.jobs import config_file, prepare
from jaxanom.jobs.sweep import grid, runner, seeds
from jaxanom.methods.app import classes, model, parts
from jaxanom.models.clip import shared_prefix
from jaxanom.report import sweeps, tables

RECIPE = "configs/app/sweep_foundry.py"
TASKS = ("state", "defect", "caltech")
UPDATES = ("map", "svgd", "gfsd", "blob", "sgld")
NUMBERS = (1, 4, 16, 64)
STEP_SIZES = (0.3, 1.0, 3.0, 10.0, 30.0)
DEVELOPMENT_SEED, REPORTED_SEEDS = 0, (1, 2, 3, 4, 5)
DEVELOPMENT_NUMBER = 4
TOLERANCE = 0.1
"""How far above the least discrepancy a smaller step may stay and still be chosen."""
ABOVE_CHANCE = 2.0
"""Zero-shot accuracy over chance from which on features count as informative."""


def config_of(task: str, data: Path, num_steps: int) -> ml_collections.ConfigDict:
    """Returns the sweep's recipe for one task, all axes as reported."""
    config = config_file.load(RECIPE)
    config.phases.particles.num_steps = num_steps
    if task == "defect":
        config.data.categories = ("metal",)
    elif task == "state":
        config.data.categories = ("pill",)
        config.app.task = "state"
        config.data.defect_rule = "shots"
        # As many normal as defective test images: 5 x 28 less 16 shots.
        config.data.num_test_good, config.data.num_per_defect = 124, 28
        for phase in config.mixture:
            config.mixture[phase].normal = config.mixture[phase].defect = 0.5
    else:
        config.data.name, config.data.categories = "classes", ()
        config.data.directory = str(data / "caltech101_small")
        config.data.defect_rule, config.data.shots = "none", 0
        config.app.task = "category"
        for phase in config.mixture:
            config.mixture[phase].normal, config.mixture[phase].defect = 1.0, 0.0
    config.sweep.num_particles, config.sweep["update"] = NUMBERS, UPDATES
    return config


def zero_shot(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Accuracy of the CLIP's own sentences, without any learnt vector, and chance."""
    base = prepare.without(config, "sweep")
    _, made = seeds.load(base, (DEVELOPMENT_SEED,))
    own = seeds.config_of(base, DEVELOPMENT_SEED)
    pieces = parts.assemble(own, pools.training_part(*prepare.open_data(own)))
    frozen = parts.frozen(pieces)
    tokenizer, sizes = pieces.pair.tokenizer, pieces.pair.text_config
    layout = classes.layout(
        pieces.named,
        "a photo of a {name}.",
        0,
        tokenizer,
        sizes.max_position_embeddings,
    )
    # The tower takes at least one vector; no sentence has a place for it.
    whole = shared_prefix.whole(layout.replace(num_vectors=1))
    tower = pieces.network.tower._replace(parts=whole)
    unused = jnp.zeros((1, 1, sizes.hidden_size))
    text = model.text_features(tower, frozen["text"], unused)
    test = jax.tree.map(lambda leaf: leaf[0], made.test)
    logits = model.particle_logits(text, test["image_features"], frozen["logit_scale"])
    logits = model.of_category(logits, frozen["columns"], test["category_id"])[0]
    hits = np.asarray(logits.argmax(-1) == test[pieces.network.target])
    return {
        "accuracy": float(hits.mean()),
        "chance": 1 / logits.shape[-1],
        "num_test": len(hits),
    }


def step_sizes(config: ml_collections.ConfigDict, directory: Path) -> dict[str, float]:
    """Chooses each transport's step on the development seed, by KSD."""
    tried = ml_collections.ConfigDict(config.to_dict())
    tried.sweep.seed, tried.sweep.num_particles = (
        (DEVELOPMENT_SEED,),
        (DEVELOPMENT_NUMBER,),
    )
    tried.sweep.step_size = STEP_SIZES
    rows = runner.run(tried, directory, _tell)
    sizes = {}
    for update in UPDATES:
        tries = {
            row["step_size"]: row["ksd"]
            for row in rows
            if row["update"] == update and row["ksd"] is not None
        }
        enough = (1 + TOLERANCE) * min(tries.values())
        sizes[update] = min(size for size, value in tries.items() if value <= enough)
    return sizes


def measure(task: str, data: Path, num_steps: int, out: Path) -> dict[str, Any]:
    """Runs one task, or says why not."""
    config = config_of(task, data, num_steps)
    started = time.process_time()
    result: dict[str, Any] = {"zero_shot": zero_shot(config), "num_steps": num_steps}
    plain = result["zero_shot"]
    if task == "caltech" and plain["accuracy"] < ABOVE_CHANCE * plain["chance"]:
        return result | {"left_out": "the embedded CLIP knows nothing of photographs"}
    result["step_size"] = step_sizes(config, out / f"{task}_steps")
    config.sweep.seed = REPORTED_SEEDS
    for update, size in result["step_size"].items():
        config.sweep.scale[update] = size
    directory = out / task
    rows = runner.run(config, directory, _tell)
    result["cpu_minutes"] = round((time.process_time() - started) / 60, 1)
    result["rows"] = [
        {key: value for key, value in row.items() if key != "path"} for row in rows
    ]
    records = {"config": record.plain(config), **harness.surroundings()}
    sweeps.write(directory / "report.html", rows, records, DEVELOPMENT_SEED, task)
    return result


def _tell(row: dict[str, Any]) -> None:
    print({key: row[key] for key in (*grid.AXES, "nll", "ksd", "seconds")}, flush=True)


def paired(rows: Sequence[dict[str, Any]]) -> tables.Table:
    """NLL less that of independent MAP runs with the same seed, mean and its error.

    What a transport buys, without the differences between seeds; below zero is better.
    """
    nll = {(r["update"], r["num_particles"], r["seed"]): r["nll"] for r in rows}
    numbers = sorted({row["num_particles"] for row in rows})
    lines = []
    for update in dict.fromkeys(row["update"] for row in rows):
        line: list[tables.Cell] = [update]
        for number in numbers:
            gaps = [
                value - nll["map", number, seed]
                for (name, n, seed), value in nll.items()
                if (name, n) == (update, number) and value is not None
            ]
            error = np.std(gaps, ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 0
            line.append(f"{np.mean(gaps):+.4f} ± {error:.4f}" if gaps else None)
        if update != "map":
            lines.append(tuple(line))
    heads = ("Transport", *(f"N = {number}" for number in numbers))
    return tables.Table(heads, tuple(lines), caption="NLL less that of MAP, paired.")


def text(results: dict[str, Any]) -> str:
    """Returns the tables in Markdown."""
    parts = []
    for task, result in results.items():
        plain = result["zero_shot"]
        parts.append(
            f"### {task}\n\nZero-shot {100 * plain['accuracy']:.1f} % of "
            f"{plain['num_test']} test images, chance {100 * plain['chance']:.1f} %."
        )
        if "rows" in result:
            parts.append(tables.to_markdown(sweeps.table(result["rows"])))
            parts.append("NLL less that of MAP with the same seed, ± standard error:")
            parts.append(tables.to_markdown(paired(result["rows"])))
        else:
            parts.append(f"Left out: {result['left_out']}.")
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tasks that are not done and writes the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.posterior_few_shot"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args(argv)
    path = arguments.out / "posterior_few_shot.json"
    facts = {"steps": arguments.steps}
    results = harness.kept_results(path, facts)
    for task in arguments.tasks:
        if task == "caltech" and not (arguments.data / "caltech101_small").is_dir():
            continue
        if task not in results:
            results[task] = harness.without_nan(
                measure(task, arguments.data, arguments.steps, arguments.out)
            )
            around = harness.surroundings() | facts
            record.write_json(path, {"results": results, **around})
    written = text(results)
    (arguments.out / "posterior_few_shot.md").write_text(written, encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
