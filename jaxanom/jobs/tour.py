"""A tour of the methods on the embedded towers, in one report.

The parts are divided among two processes where that saves time.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

GENERATION = "configs/defect_generation/foundry.py"


class Part(NamedTuple):
    """A run of the tour: trained from a recipe, evaluated, shown.

    Attributes:
      summary: Title of its table.
      recipe: Config file.
      overrides: Sizes that suit a few minutes on two CPU cores.
    """

    summary: str
    recipe: str
    overrides: tuple[str, ...] = ()


DEFECTS, POSTERIOR = "defects", "posterior"
DEFECTS_SUMMARY = "Defect generation: real defects against real and generated ones"
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


def tour(directory: Path, parts: Sequence[str], processes: int | None = None) -> None:
    """Runs the parts that are not done yet, prints their tables, writes one report.

    Args:
      directory: Where everything goes.
      parts: Names of the parts.
      processes: With 2, all parts but the first are run by a second process meanwhile;
        None does so where that saves time.
    """
    from jaxanom.jobs import config_file, defects_to_detector
    from jaxanom.report import page, runs, tables

    pages, lead, plots = [], [], []
    first, rest = parts[:1], parts[1:]
    with _beside(directory, rest, processes) as finished:
        for name in parts:
            done = name not in first and finished()
            print(f"{name} ...", flush=True)
            place = directory / name
            if name == DEFECTS:
                config = config_file.load(GENERATION, DEFECTS_OVERRIDES)
                _, table = defects_to_detector.generate_then_detect(config, place)
                pages += [place / run for run in defects_to_detector.JOB_RUNS]
            elif name == POSTERIOR:
                table, panels = _swept(PARTS[name], place)
                plots += panels
            else:
                table = _train_and_evaluate(PARTS[name], place, done)
                pages.append(place)
            title = DEFECTS_SUMMARY if name == DEFECTS else PARTS[name].summary
            lead.append(page.table(title, table))
            print(f"{title}\n{tables.to_text(table)}", flush=True)
    written = runs.write(
        directory / "report.html",
        pages,
        "jaxanom: a tour of the methods",
        [*lead, *plots],
    )
    print(f"report: {written}")


def _default_processes() -> int:
    """Two on a CPU host with a core for each; an accelerator is held by one process.

    Asked in a process of its own: a backend that is up keeps its number of threads.
    """
    if len(_cores()) < 2:
        return 1
    program = "import jax; print(jax.default_backend())"
    command = [sys.executable, "-c", program]
    backend = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return 2 if backend == "cpu" else 1


def _cores() -> list[int]:
    """The cores this process may use; none where that cannot be set."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def _beside(
    directory: Path, parts: Sequence[str], processes: int | None
) -> Iterator[Callable[[], bool]]:
    """Runs parts in a second process, this same command with `--parts`.

    Each process has half of the cores: threads that wait for each other's cores spin,
    and cost a third of the machine. Whatever the second one leaves undone is done here,
    where parts go on from where they stopped.

    Yields:
      A function that waits for the process and tells whether it did all of its parts.
    """
    if not parts or (processes or _default_processes()) == 1:
        yield lambda: False
        return
    log = directory / "beside.log"
    directory.mkdir(parents=True, exist_ok=True)
    print(f"{', '.join(parts)}: in a second process, see {log}", flush=True)
    cores = _cores()
    with log.open("w", encoding="utf-8") as output:
        _use(cores[len(cores) // 2 :])  # a process starts with its parent's cores
        process = subprocess.Popen(
            beside_command(directory, parts),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    _use(cores[: len(cores) // 2])

    def finished() -> bool:
        if process.poll() is None:
            print("waiting for the second process ...", flush=True)
        return process.wait() == 0

    try:
        yield finished
    finally:
        process.terminate()  # it saves its state; nothing happens where it has ended
        process.wait()
        process.stdin.close()
        _use(cores)


def end_with_starter() -> None:
    """Asks this process to stop once nobody holds the other end of its input.

    A starter that is killed, or leaves in the middle of a compile, ends nothing itself;
    the same command, started again, must not meet a process that still writes.
    """
    os.read(0, 1)  # nobody writes: it returns at the end
    os.kill(os.getpid(), signal.SIGTERM)


def _use(cores: Sequence[int]) -> None:
    """Keeps this thread, and the threads and processes it starts, to these cores."""
    if cores:
        os.sched_setaffinity(0, cores)


def beside_command(directory: Path, parts: Sequence[str]) -> list[str]:
    """Returns the command of the second process."""
    program = [sys.executable, "-m", "jaxanom", "quickstart", f"--run={directory}"]
    return [*program, "--beside", "--processes=1", "--parts", *parts]


def _train_and_evaluate(part: Part, directory: Path, evaluated: bool):
    from jaxanom import record
    from jaxanom.evaluation import protocols
    from jaxanom.jobs import config_file
    from jaxanom.jobs.evaluate import evaluate
    from jaxanom.jobs.train import train
    from jaxanom.report import runs, tables

    if evaluated:
        results = record.read_json(directory / runs.EVALUATION)
    else:
        config = config_file.load(part.recipe, part.overrides)
        results = evaluate(train(config, directory))
    return tables.per_category(results, protocols.columns_of([results]))


def _swept(part: Part, directory: Path):
    """Runs a sweep; returns its table, and its plots as sections of the page."""
    from jaxanom.jobs import config_file
    from jaxanom.jobs.sweep import runner
    from jaxanom.report import sweeps

    config = config_file.load(part.recipe, part.overrides)
    rows = runner.run(config, directory)
    seed = config.sweep.development_seed
    return sweeps.table(sweeps.chosen(rows, seed)), sweeps.sections(rows, seed)[1:]
