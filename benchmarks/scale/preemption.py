"""Seconds from SIGTERM to the exit of a training that has saved its state, many times.

    python -m benchmarks.scale.preemption --out=DIR [--trials=50] [--record]

The embedded generator's training is started, stopped at a random moment after a step,
and started again by the same command, so that every trial but the first resumes what
the one before it saved. A trial counts if the process leaves with 75, names a
checkpoint, and the next start goes on from the step of that name. The last start trains
to the end; its parameters are compared, byte by byte, with those of a run that nobody
stopped. What is done is not done again: the trials are kept in DIR/trials.jsonl.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from jaxanom import record
from jaxanom.jobs import load
from jaxanom.training import preemption

NAME = "preemption"
LIMIT_S = 5.0
RECIPE = "configs/defect_generation/foundry.py"
SMALL = (
    *("data.num_train=16", "data.num_views=1", "data.num_test_good=4"),
    *("data.num_per_defect=4", "phases.finetune.warmup_steps=0"),
    # Nothing but the signal saves a step; the loop reads the device as seldom as usual.
    *("train.checkpoint_every=0", "train.ema_decay=0.9"),
)
STEPS_A_TRIAL = 12
FIRST_S, LAST_S = 0.2, 2.5  # after the step is compiled, for the signal
TRIALS, UNBROKEN, BROKEN = "trials.jsonl", "unbroken", "broken"
_SAVED_IN = re.compile(r"after step (\d+); the state is saved in (\S+):")
_PATIENCE_S = 900  # of the first compile, on a machine shared with others


def command(run: Path, num_steps: int) -> list[str]:
    """Returns the words of the command that is started again and again."""
    words = [f"--config.{word}" for word in SMALL]
    words += [f"--config.phases.finetune.num_steps={num_steps}", f"--run={run}"]
    return ["train", f"--config={RECIPE}", *words]


def stop_once(words: Sequence[str], run: Path, cache: Path) -> dict[str, Any]:
    """Starts a training, stops it after a few steps, and sees what it leaves.

    Args:
      words: The words of its command.
      run: Its directory, in which a trial may have been stopped before.
      cache: Where compiled programs are kept.

    Returns:
      `status`, `seconds` from the signal to the exit, `step` that is said to be saved
      (None: nothing was said), `resumed_from` (0: from nothing), `saved`: whether a
      folder of that name is there and no file of an unfinished one.

    Raises:
      RuntimeError: the training ended before it took a step.
    """
    before = len(_first_steps(run))
    with _started(words, cache) as process:
        give_up = time.monotonic() + _PATIENCE_S
        while len(_first_steps(run)) == before:
            if process.poll() is not None or time.monotonic() > give_up:
                process.kill()
                raise RuntimeError(
                    f"no step was taken, status {process.wait()}: "
                    f"{process.communicate()[1][-2000:]}"
                )
            time.sleep(0.005)
        time.sleep(random.SystemRandom().uniform(FIRST_S, LAST_S))
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=_PATIENCE_S)[1]
        seconds = time.monotonic() - sent
    saved = _SAVED_IN.search(said)
    step = int(saved[1]) if saved else None
    folder = run / "checkpoints"
    left = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {
        "status": process.returncode,
        "seconds": round(seconds, 3),
        "resumed_from": _first_steps(run)[-1] - 1,
        "step": step,
        "saved": saved is not None
        and Path(saved[2]).is_dir()
        and all(name.isdigit() for name in left)
        and step == max(map(int, left)),
    }


def finish(words: Sequence[str], cache: Path) -> None:
    """Trains to the end."""
    with _started(words, cache) as process:
        said = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(said[-2000:])


def good(trials: Sequence[dict[str, Any]], last_start: int) -> list[bool]:
    """Tells of each trial whether it left with 75, in time, and lost no step.

    Args:
      trials: of one run, in order.
      last_start: step from which the run was trained to its end.
    """
    next_starts = [trial["resumed_from"] for trial in trials[1:]] + [last_start]
    return [
        trial["status"] == preemption.EXIT_CODE
        and trial["saved"]
        and trial["seconds"] <= LIMIT_S
        and trial["resumed_from"] < trial["step"] == following
        for trial, following in zip(trials, next_starts, strict=True)
    ]


def _started(words: Sequence[str], cache: Path) -> subprocess.Popen:
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "jaxanom", *words],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _first_steps(run: Path) -> list[int]:
    """Returns the step that each start of a run began with, once it is compiled."""
    rows = record.read_metrics(run / record.METRICS)
    return [row["step"] for row in rows if row["kind"] == "compile"]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.scale.{NAME}")
    parser.add_argument("--out", type=Path, required=True, help="directory to work in")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument(
        "--record", action="store_true", help=f"add to benchmarks/records/{NAME}.jsonl"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    out, num_steps = settings.out, STEPS_A_TRIAL * settings.trials
    cache, unbroken, broken = out / "cache", out / UNBROKEN, out / BROKEN
    # The unbroken run first: the trials then start from a warm compile cache.
    finish(command(unbroken, num_steps), cache)
    words = command(broken, num_steps)
    trials = list(record.read_metrics(out / TRIALS))
    while len(trials) < settings.trials:
        outcome = stop_once(words, broken, cache)
        trials.append({"trial": len(trials), **outcome, "load": os.getloadavg()[0]})
        record.append_metrics(out / TRIALS, trials[-1])
        print(trials[-1], flush=True)
    finish(words, cache)
    same = (unbroken / load.PARAMS).read_bytes() == (broken / load.PARAMS).read_bytes()
    held = good(trials, _first_steps(broken)[-1] - 1)
    seconds = [trial["seconds"] for trial in trials]
    low, median, high = np.percentile(seconds, (25, 50, 75))
    row = {
        "case": "SIGTERM to exit, state saved",
        "median_s": float(median),
        "iqr_s": float(high - low),
        "max_s": max(seconds),
        "rate": sum(held) / len(held),
        "unit": f"saved within {LIMIT_S} s",
        "compile_s": None,
        "memory_mb": None,
        "repeats": len(trials),
        "same_bits_as_unbroken": same,
        "seconds": seconds,
        "load": [round(trial["load"], 1) for trial in trials],
    }
    return harness.report(NAME, [row], settings.record)


if __name__ == "__main__":
    main()
