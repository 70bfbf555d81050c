"""Seconds from the command to the first training step, first and second time.

    python -m benchmarks.speed.cold_start [--record]

`jaxanom train` on the embedded towers in a process of its own, twice, with a compile
cache that is empty the first time: "cold" compiles, "warm" finds the programs. Measured
until the record has its first training row: start of Python, imports, rendering and
encoding the images, loading weights, compiling, one step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from jaxanom import record

NAME = "cold_start"
RECIPE = "configs/defect_generation/foundry.py"
SMALL = ("data.num_train=16", "phases.finetune.num_steps=2", "train.log_every=1")


def seconds_to_first_step(run: Path, cache: Path) -> dict[str, float]:
    """Starts a training and waits for its first step.

    Returns:
      `first_step_s`, and `compile_s` of its record.
    """
    words = [f"--config.{word}" for word in (*SMALL, "phases.finetune.warmup_steps=0")]
    command = [sys.executable, "-m", "jaxanom", "train", f"--config={RECIPE}"]
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }
    metrics = run / record.METRICS
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, *words, f"--run={run}"], env=env, stdout=subprocess.DEVNULL
    ) as process:
        rows: list[dict[str, Any]] = []
        while process.poll() is None:
            rows = _rows(metrics)
            if any(row["kind"] == "train" for row in rows):
                break
            time.sleep(0.05)
        elapsed = time.perf_counter() - start
        if process.wait():
            raise RuntimeError(f"the training ended with status {process.returncode}")
    compiled = sum(row.get("compile_s", 0.0) for row in rows)
    return {"first_step_s": elapsed, "compile_s": compiled}


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return harness.parser(NAME).parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        for case in ("cold", "warm"):
            start = seconds_to_first_step(Path(place) / case, cache)
            seconds = start["first_step_s"]
            rows.append(
                {
                    "case": case,
                    "median_s": seconds,
                    "iqr_s": 0.0,
                    "rate": 1 / seconds,
                    "unit": "starts/s",
                    "compile_s": start["compile_s"],
                    "memory_mb": None,
                    "repeats": 1,
                }
            )
    return harness.report(NAME, rows, settings.record)


if __name__ == "__main__":
    main()
