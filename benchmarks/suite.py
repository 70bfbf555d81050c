"""Runs the benchmarks that fit a machine, one after the other, and renders the results.

    make bench         rows for two CPU cores, 15 minutes
    make bench-gpu     rows for one accelerator, each command below nine minutes
    python -m benchmarks.suite --device cpu --only unet posterior

Each benchmark is a process of its own, so that none inherits another's memory or
threads. One that fails is named at the end, and the others still run.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import results


class Entry(NamedTuple):
    """One command.

    Attributes:
      module: A module of `benchmarks.speed`.
      words: Its arguments besides `--record`.
    """

    module: str
    words: tuple[str, ...] = ()


def entry(line: str) -> Entry:
    """Splits a command line."""
    module, *words = line.split()
    return Entry(module, tuple(words))


SUITES = {
    "cpu": (
        "unet --size embedded --num-steps 10 --repeats 3 --peers eager compiled",
        "unet --size quarter --batch 1 --num-steps 2 --repeats 2 --peers eager"
        " --calls forward train_step inversion",
        "defect_generation --repeats 2 --batch-sizes 8",
        "bayes_pfl --size short --repeats 3",
        "posterior_step --size short --cases 4x30 --repeats 2",
        "personal_tokens --steps 2 --repeats 2 --widths 1 8",
        "tuning_grid --repeats 1 --warmup 0",
        "posterior --part svgd --counts 32 128 --repeats 3",
        "attention --repeats 2",
        "metrics --repeats 1 --warmup 0",
        "cold_start",
    ),
    "gpu": (
        "unet --size full --batch 32 --dtype bfloat16 --calls forward train_step",
        "unet --size full --batch 16 --dtype bfloat16 --calls inversion --repeats 3",
        "attention --dtype bfloat16",
        "bayes_pfl --size published --batch 32",
        "posterior --part svgd --counts 512 4096",
    ),
}


def run(entry: Entry) -> int:
    """Runs one command with this interpreter; returns its exit status."""
    words = [sys.executable, "-m", f"benchmarks.speed.{entry.module}", *entry.words]
    return subprocess.run([*words, "--record"]).returncode


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite")
    parser.add_argument("--device", choices=SUITES, default="cpu")
    parser.add_argument("--only", nargs="+", help="names of benchmarks")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    settings = parse(arguments)
    entries = [entry(line) for line in SUITES[settings.device]]
    unknown = set(settings.only or ()) - {known.module for known in entries}
    if unknown:
        raise SystemExit(
            f"--only: no {sorted(unknown)} on {settings.device}; choose among "
            f"{sorted({known.module for known in entries})}"
        )
    failed = []
    for command in entries:
        if settings.only and command.module not in settings.only:
            continue
        name = " ".join((command.module, *command.words))
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        if run(command):
            failed.append(name)
        print(f"== {time.perf_counter() - start:.0f} s", flush=True)
    print(results.write())
    if failed:
        print("failed:", *failed, sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
