"""`jaxanom sweep --config=FILE.py[:ARG] --out=DIR --config.sweep.key=value ...`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--config",
        default="configs/app/sweep_foundry.py",
        help="recipe with a section `sweep`; the shipped one needs no change",
    )
    parser.add_argument(
        "--out", required=True, help="directory of the table and of its report"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the points that the table does not hold yet, prints it, writes the page."""
    from jaxanom.jobs import config_file
    from jaxanom.parallel import distributed
    from jaxanom.report import sweeps, tables

    distributed.check_alone("sweep")
    config = config_file.load(arguments.config, arguments.overrides)
    rows, page = swept(config, arguments.out)
    reported = sweeps.chosen(rows, config.sweep.development_seed)
    print(tables.to_text(sweeps.table(reported)))
    print(f"report: {page}")


def swept(config, directory):
    """Runs a sweep, tells each new row, and writes its page.

    Returns:
      (rows, path of the page).
    """
    from pathlib import Path

    from jaxanom import record
    from jaxanom.jobs.sweep import runner
    from jaxanom.report import sweeps

    rows = runner.run(config, directory, tell)
    records = {
        "config": record.plain(config),
        "record": record.read_json(Path(directory) / record.RECORD),
    }
    page = sweeps.write(
        Path(directory) / "report.html", rows, records, config.sweep.development_seed
    )
    return rows, page


def tell(row) -> None:
    """Prints one row as it comes."""
    point = " ".join(
        str(row[name])
        for name in ("num_particles", "update", "rkhs", "step_size", "seed")
    )
    scores = " ".join(
        f"{name}={row[name]:.4g}" if row[name] is not None else f"{name}=-"
        for name in ("accuracy", "nll", "ece", "spread", "ksd", "steps_per_s")
    )
    print(f"{point}: {scores}", flush=True)
