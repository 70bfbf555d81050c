"""Forward parity with the PyTorch classes on the same weights, at the true sizes.

    python -m benchmarks.parity.published_weights --record
    python -m benchmarks.parity.published_weights --small

Every architecture has two or three child processes, one after the other: torch draws
the weights, writes them as safetensors, computes and ends; ours reads them through the
loader that users have, computes and compares; so does the libraries' own Flax class,
where it can (`hf_flax`, extra `hf`). One model at a time is in memory, the most is
reported. Float32 throughout.

`error` is the largest absolute difference of any output, divided by that output's
largest magnitude; 1e-4 is what counts as the same function.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from benchmarks.parity import published_models
from jaxanom import flops, trees
from jaxanom.models.checkpoints import sources
from jaxanom.models.libraries import interop
from jaxanom.parallel import mesh as meshes
from jaxanom.report import tables

NAME = "published_weights"
LIMIT = 1e-4
IMPLEMENTATIONS = ("ours", "hf_flax")
COLUMNS = {
    "case": "case",
    "num_params": "parameters",
    "gflop": "GFLOP",
    "error": "error",
    "within": "within 1e-4",
    "median_s": "seconds",
    "torch_s": "torch (s)",
    "peak_mb": "peak (MB)",
    "torch_peak_mb": "torch peak (MB)",
}


def worst(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, float]:
    """Returns the output that differs most, and how much.

    Raises:
      ValueError: The names of the outputs differ.
    """
    if set(ours) != set(theirs):
        raise ValueError(f"outputs {sorted(ours)} and {sorted(theirs)} differ")
    errors = {name: harness.relative_error(ours[name], theirs[name]) for name in theirs}
    name = max(errors, key=lambda key: errors[key])
    return name, errors[name]


def write(subject: published_models.Subject, folder: Path) -> dict[str, Any]:
    """Draws the weights with torch, writes them and what they compute.

    Returns:
      Seconds of each call and the peak of memory.
    """
    model = published_models.torch_model(subject)
    model.save_pretrained(folder / subject.kind)
    seconds, outputs = [], {}
    for number, call in enumerate(subject.calls):
        compute = published_models.torch_call(model, subject, call)
        start = time.perf_counter()
        arrays = compute()
        seconds.append(time.perf_counter() - start)
        outputs |= {f"{number}/{name}": array for name, array in arrays.items()}
    np.savez(folder / "outputs.npz", **outputs)
    return {"seconds": seconds, "peak_mb": harness.peak_host_megabytes()}


def compare(
    subject: published_models.Subject,
    folder: Path,
    implementation: str = "ours",
    repeats: int = 1,
) -> list[dict[str, Any]]:
    """Reads the weights that torch wrote, computes, and compares.

    Returns:
      One row per call; a call that the implementation refuses has `refused` instead of
      numbers.
    """
    source = sources.find(folder, (subject.kind,), subject.kind)
    network = source.network(subject.kind)
    loading = sources.Loading(mesh=meshes.make_mesh())
    params = sources.read(source, subject.kind, network.shapes(), loading)
    module = network.module
    rows = []
    with np.load(folder / "outputs.npz") as stored:
        for number, call in enumerate(subject.calls):
            arrays = published_models.inputs(subject, call)
            try:
                used = interop.adapt(module) if implementation == "hf_flax" else module
                apply = published_models.our_call(used, subject, call)
                count = flops.count(apply, params, *arrays)
            except ValueError as error:
                rows.append({"refused": str(error)})
                continue
            case = harness.compiled(call.name, apply, params, *arrays)
            (row,) = harness.run([case], num_warmup=0, num_repeats=repeats)
            start = f"{number}/"
            theirs = {
                key.removeprefix(start): stored[key]
                for key in stored.files
                if key.startswith(start)
            }
            output, error = worst(jax.device_get(case.call()), theirs)
            row |= {
                "implementation": implementation,
                "num_params": trees.num_params(params),
                "gflop": round(count.total / 1e9, 2),
                "error": error,
                "worst_output": output,
                "within": bool(error <= LIMIT),
                "peak_mb": harness.peak_host_megabytes(),
            }
            rows.append(row)
    return rows


def measure(
    name: str, settings: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """Runs the children of one architecture; returns its rows."""
    subject = _subjects(settings.small)[name]
    theirs = _child("write", name, settings, folder)
    rows = []
    for implementation in IMPLEMENTATIONS[: 1 if settings.ours_only else None]:
        measured = _child(implementation, name, settings, folder)
        for number, (call, row) in enumerate(zip(subject.calls, measured, strict=True)):
            title = " ".join(
                str(word) for word in (name, call.name, call.size or "") if word
            )
            if "refused" in row:
                print(f"{title}, {implementation}: {row['refused']}", flush=True)
                continue
            rows.append(
                {
                    **row,
                    "case": f"{title}, {implementation}",
                    "torch_s": theirs["seconds"][number],
                    "torch_peak_mb": theirs["peak_mb"],
                }
            )
            print(f"{rows[-1]['case']}: error {row['error']:.2e}", flush=True)
    return rows


def _subjects(small: bool) -> dict[str, published_models.Subject]:
    return published_models.SMALL if small else published_models.TRUE


def _child(
    task: str, name: str, settings: argparse.Namespace, folder: Path
) -> dict[str, Any] | list[dict[str, Any]]:
    """Runs one task of one architecture in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.parity.{NAME}", "--child", task]
    command += ["--only", name, "--work", str(folder)]
    command += ["--repeats", str(settings.repeats)]
    command += ["--small"] if settings.small else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(NAME, "parity")
    parser.set_defaults(repeats=1)
    parser.add_argument("--small", action="store_true", help="small configs, seconds")
    parser.add_argument("--only", action="append", help="an architecture; repeatable")
    parser.add_argument("--ours_only", action="store_true", help="leave hf_flax out")
    parser.add_argument("--work", type=Path, help="directory for weights (3.5 GB)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    known = _subjects(settings.small)
    unknown = [name for name in settings.only or () if name not in known]
    if unknown:
        parser.error(f"--only {unknown}; known are {list(known)}")
    return settings


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    subjects = _subjects(settings.small)
    if settings.child:
        subject = subjects[settings.only[0]]
        if settings.child == "write":
            outcome = write(subject, settings.work)
        else:
            outcome = compare(subject, settings.work, settings.child, settings.repeats)
        print(json.dumps(outcome))
        return []
    rows = []
    for name in settings.only or subjects:
        with tempfile.TemporaryDirectory(dir=settings.work) as folder:
            rows += measure(name, settings, Path(folder))
    print(tables.to_text(tables.from_records(rows, COLUMNS, caption="parity")))
    return harness.report(NAME, rows, settings.record)


if __name__ == "__main__":
    main()
