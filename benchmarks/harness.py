"""Times callables side by side: warm-up, interleaved repeats, median and spread.

Several cases are timed in one run, turn by turn, so that a machine that slows down
slows all of them; the order rotates, so that nobody always follows the same neighbour.
What a case calls is its own business, jax or not: `wait` says when a result is there.
Nothing is asserted.
"""

import argparse
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from jaxanom import record
from jaxanom.report import tables
from jaxanom.training import meter

RECORDS = Path(__file__).parent / "records"


class Case(NamedTuple):
    """One thing to time.

    Attributes:
      name: What its row is called.
      call: () -> result; does the work once.
      work: How many `unit` one call does.
      unit: "images", "steps", ...
      facts: Shapes and options, JSON values.
      compile_s: Seconds that compiling took, None where nothing is compiled ahead.
      memory_mb: What the compiler says the program needs, None where it does not.
      wait: Blocks until a result is there.
    """

    name: str
    call: Callable[[], Any]
    work: float = 1.0
    unit: str = "calls"
    facts: Mapping[str, Any] = {}
    compile_s: float | None = None
    memory_mb: float | None = None
    wait: Callable[[Any], Any] = jax.block_until_ready


def compiled(
    name: str, function: Callable[..., Any], *args: Any, **fields: Any
) -> Case:
    """Compiles a function for its arguments, measures that alone, and makes a case.

    Args:
      name: What the case is called.
      function: The work, jitted or not; it must not donate its arguments.
      *args: What it is called with.
      **fields: Further fields of `Case`.
    """
    program = compile_alone(function, *args)
    return Case(
        name,
        lambda: program.call(*args),
        compile_s=program.seconds,
        memory_mb=program_megabytes(program.call),
        **fields,
    )


def compile_alone(function: Callable[..., Any], *args: Any) -> meter.Compiled:
    """Compiles ahead of time, past the compilation cache: a hit is no compile."""
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    before = jax.config.jax_enable_compilation_cache
    _use_cache(False)
    try:
        return meter.compile_ahead(jitted, *args)
    finally:
        _use_cache(before)


def _use_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    # jax looks at that setting once per process, unless it is made to forget.
    compilation_cache.reset_cache()


def program_megabytes(call: Any) -> float | None:
    """Returns arguments, outputs and temporaries of a compiled program, in MB."""
    analysis = call.memory_analysis()
    if analysis is None:
        return None
    size = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return round(size / 1e6, 2)


def peak_host_megabytes() -> float:
    """Returns the largest resident size of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def run(
    cases: Sequence[Case], num_warmup: int = 1, num_repeats: int = 5
) -> list[dict[str, Any]]:
    """Times the cases turn by turn.

    Args:
      cases: What to time, with distinct names.
      num_warmup: Number of calls of every case before the clock runs.
      num_repeats: Number of timed calls of every case.

    Returns:
      One row a case: `median_s`, `iqr_s` (distance of the quartiles), `min_s`, `rate`
      (work per second at the median) with its `unit`, `compile_s`, `memory_mb`,
      `seconds` of every repeat, and the case's facts.
    """
    names = [case.name for case in cases]
    if len(set(names)) != len(names):
        raise ValueError(f"cases need distinct names, got {names}")
    if num_repeats < 1:
        raise ValueError(f"num_repeats={num_repeats}; wanted at least 1")
    for case in cases:
        for _ in range(num_warmup):
            case.wait(case.call())
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(num_repeats):
        for place in range(len(cases)):
            case = cases[(turn + place) % len(cases)]
            start = time.perf_counter()
            case.wait(case.call())
            seconds[case.name].append(time.perf_counter() - start)
    return [_row(case, seconds[case.name], num_warmup) for case in cases]


def _row(case: Case, seconds: Sequence[float], num_warmup: int) -> dict[str, Any]:
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return {
        "case": case.name,
        "median_s": float(median),
        "iqr_s": float(high - low),
        "min_s": float(min(seconds)),
        "rate": float(case.work / median),
        "unit": f"{case.unit}/s",
        "compile_s": case.compile_s,
        "memory_mb": case.memory_mb,
        "warmup": num_warmup,
        "repeats": len(seconds),
        "seconds": [round(value, 6) for value in seconds],
        **case.facts,
    }


def surroundings() -> dict[str, Any]:
    """Returns what a number depends on beside the code: machine, versions, load."""
    return {
        "machine": {**record.machine(), "processor": _processor()},
        "versions": record.versions(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "time": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    return models[0].strip() if models else record.machine()["processor"]


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as aligned text."""
    columns = {
        "case": "case",
        "median_s": "median (s)",
        "iqr_s": "IQR (s)",
        "rate": "rate",
        "unit": "",
        "compile_s": "compile (s)",
        "memory_mb": "program (MB)",
        "repeats": "repeats",
    }
    return tables.to_text(tables.from_records(rows, columns, caption=title))


def report(
    name: str, rows: Sequence[Mapping[str, Any]], recorded: bool
) -> list[dict[str, Any]]:
    """Prints the table and one JSON line a row; adds them to the record if asked to.

    Args:
      name: The benchmark; its record is `benchmarks/records/<name>.jsonl`.
      rows: What was measured, as `run` returns it.
      recorded: Whether the lines are added to the record.

    Returns:
      The lines, with `surroundings`.
    """
    around = surroundings() | {"peak_host_mb": peak_host_megabytes()}
    lines = [{"benchmark": name, **row, **around} for row in rows]
    print(table(name, rows))
    print(
        f"peak host memory {around['peak_host_mb']} MB, load {around['load_average']}"
    )
    for line in lines:
        print(json.dumps(line))
        if recorded:
            record.append_metrics(RECORDS / f"{name}.jsonl", line)
    return lines


def kept_results(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results that an earlier call left, to go on from; {} without any.

    Args:
      path: A JSON file with "results" and the settings they were measured with.
      facts: The settings of this call, under the same names.

    Raises:
      ValueError: They were measured with other settings.
    """
    if not path.is_file():
        return {}
    kept = record.read_json(path)
    for name, value in json.loads(json.dumps(facts)).items():
        if kept.get(name) != value:
            raise ValueError(
                f"{path} was measured with {name}={kept.get(name)!r}, asked for is "
                f"{value!r}: choose another --out, or move that file away"
            )
    return kept["results"]


def relative_error(values: Any, reference: Any) -> float:
    """Returns max |values - reference| / max |reference|; infinite for other shapes.

    Args:
      values, reference: Arrays, or {name: array} with the reference's names, of which
        the largest difference and the largest magnitude count.
    """
    if isinstance(reference, Mapping):
        pairs = [(values[name], leaf) for name, leaf in reference.items()]
    else:
        pairs = [(values, reference)]
    gaps, sizes = [], []
    for pair in pairs:
        ours, theirs = (np.asarray(array, np.float64) for array in pair)
        if ours.shape != theirs.shape or not np.isfinite(ours).all():
            return float("inf")
        gaps.append(np.abs(ours - theirs).max())
        sizes.append(np.abs(theirs).max())
    return float(max(gaps) / max(sizes))


def without_nan(value: Any) -> Any:
    """Rounds floats to six digits and turns NaN into null, for JSON."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value


def with_nan(value: Any) -> Any:
    """Turns null back into NaN, which fails every comparison."""
    if isinstance(value, Mapping):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def parser(name: str, room: str = "speed") -> argparse.ArgumentParser:
    """Returns a parser with the flags that every timing benchmark has."""
    timing = argparse.ArgumentParser(prog=f"python -m benchmarks.{room}.{name}")
    timing.add_argument("--repeats", type=int, default=5)
    timing.add_argument("--warmup", type=int, default=1)
    timing.add_argument(
        "--record", action="store_true", help=f"add to benchmarks/records/{name}.jsonl"
    )
    return timing
