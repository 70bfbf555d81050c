"""`jaxanom quickstart --run=DIR [--parts defects ...]`, or a config of your own.

Without `--config`: a tour of the methods on the embedded towers, in one report. With
one: the whole job of defect generation on it.
"""

import argparse
from typing import NamedTuple

GENERATION = "configs/defect_generation/foundry.py"


class Part(NamedTuple):
    """A run of the tour: trained from a recipe, evaluated, shown.

    Attributes:
      summary: title of its table.
      recipe: config file.
      overrides: sizes that suit a few minutes on two CPU cores.
    """

    summary: str
    recipe: str
    overrides: tuple[str, ...] = ()


DEFECTS, POSTERIOR = "defects", "posterior"
DEFECTS_OVERRIDES = ("detector.phase.num_steps=150",)
PARTS = {
    "zero_shot": Part(
        "Bayes-PFL: categories that neither CLIP nor training has seen",
        "configs/bayes_pfl/foundry.py",
        ("phases.stage1.num_steps=400",),
    ),
    "few_shot": Part(
        "ADP: one normal image of a category never seen (reconstructed from the "
        "abstract)",
        "configs/adp/foundry.py",
        ("phases.invert.num_steps=200", "adp.num_synthetic=128"),
    ),
    POSTERIOR: Part(
        "APP: particle posteriors over prompts, by number of particles",
        "configs/app/sweep_foundry.py",
        (
            "app.task=state",
            "data.defect_rule=shots",
            "data.num_train=8",
            "data.shots=8",
            "data.num_views=1",
            "data.num_test_good=32",
            "data.num_per_defect=8",
            "mixture.prior.normal=0.5",
            "mixture.prior.defect=0.5",
            "mixture.particles.normal=0.5",
            "mixture.particles.defect=0.5",
            "phases.prior.num_steps=0",
            "phases.particles.num_steps=40",
            "sweep.num_particles=1,4,16",
            "sweep.update=map,svgd,sgld",
            "sweep.scale.sgld=10",
            "sweep.seed=0,1",
            "sweep.num_snapshots=4",
        ),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--config", help="recipe of defect generation; default: the tour"
    )
    parser.add_argument("--run", default="runs/quickstart", help="directory to work in")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=(DEFECTS, *PARTS),
        default=(DEFECTS, *PARTS),
        help="of the tour; default all",
    )


def run(arguments: argparse.Namespace) -> None:
    """Trains, generates, evaluates, and reports."""
    from pathlib import Path

    from jaxanom.cli import config_file

    if arguments.config is None:
        if arguments.overrides:
            raise ValueError(
                f"--config.{arguments.overrides[0]}: name the recipe it changes, such "
                f"as --config={GENERATION}"
            )
        tour(Path(arguments.run), arguments.parts)
        return
    config = config_file.load(arguments.config, arguments.overrides)
    from jaxanom import workflow
    from jaxanom.report import tables

    page, table = workflow.generate_then_detect(config, arguments.run)
    print(tables.to_text(table))
    print(f"report: {page}")


def tour(directory, parts) -> None:
    """Runs the parts that are not done yet, prints their tables, writes one report."""
    from jaxanom import workflow
    from jaxanom.cli import config_file
    from jaxanom.report import page, runs, tables

    shown, lead, plots = [], [], []
    for name in parts:
        print(f"{name} ...", flush=True)
        if name == DEFECTS:
            config = config_file.load(GENERATION, DEFECTS_OVERRIDES)
            _, table = workflow.generate_then_detect(config, directory / name)
            title = "Defect generation: real defects against real and generated ones"
            shown += [directory / name / run for run in workflow.JOB_RUNS]
        elif name == POSTERIOR:
            title = PARTS[name].summary
            table, panels = _swept(PARTS[name], directory / name)
            plots += panels
        else:
            title = PARTS[name].summary
            table = _train_and_evaluate(PARTS[name], directory / name)
            shown.append(directory / name)
        lead.append(page.table(title, table))
        print(f"{title}\n{tables.to_text(table)}", flush=True)
    written = runs.write(
        directory / "report.html",
        shown,
        "jaxanom: a tour of the methods",
        [*lead, *plots],
    )
    print(f"report: {written}")


def _train_and_evaluate(part: Part, directory):
    from jaxanom import api
    from jaxanom.cli import config_file
    from jaxanom.evaluation import protocols
    from jaxanom.report import tables

    config = config_file.load(part.recipe, part.overrides)
    results = api.evaluate(api.train(config, directory))
    return tables.per_category(results, protocols.columns_of([results]))


def _swept(part: Part, directory):
    """Runs a sweep; returns its table, and its plots as sections of the page."""
    from jaxanom.cli import config_file
    from jaxanom.report import sweeps
    from jaxanom.sweep import runner

    config = config_file.load(part.recipe, part.overrides)
    rows = runner.run(config, directory)
    seed = config.sweep.development_seed
    return sweeps.table(sweeps.chosen(rows, seed)), sweeps.sections(rows, seed)[1:]
