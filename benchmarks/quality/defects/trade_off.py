"""What network calls buy in generation: round trips, solvers, and levels for few moves.

    python -m benchmarks.quality.defects.trade_off --out runs/trade_off --seed 1
        [--run DIR] [--record]

Two measurements on one fine-tuned generator, over normal test images that get the masks
of held-out defects:

- Round trip: relative error of the background after inversion and recomputed sampling,
  for k = 0 to 3 fixed-point iterations a move.
- Solver: how far the defect's latents, inside the mask, end from those of a fine walk
  (DDIM, S = 200, its own inversion) that started from the same noise, relative to their
  size; background replayed, so its error has to be 0. Both solvers on even indices and
  on levels even in log SNR. Calls are those of the inversion and of the sampling.

A distance holds both errors: of the sampling, and of the replayed inversion, which is
DDIM's on the same levels.

What is done is kept in --out: an interrupted call goes on where it stopped. Without
--run a generator is trained there first, the one of
`benchmarks.quality.defects.properties`. Seed 0 is for development.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxanom
from benchmarks import harness
from benchmarks.quality.defects import experiments, measures, runs, walks
from jaxanom import record
from jaxanom.diffusion import inversion
from jaxanom.report import tables

NAME = "trade_off"
ROUND_TRIPS = (10, 20, 50)
ITERATIONS = (0, 1, 2, 3)
WALKS = (5, 10, 20, 50)
FINE = 200
SPACINGS = ("linspace", "log_snr")
COLUMNS = {
    "case": "case",
    "calls": "network calls",
    "error": "relative error",
    "worst": "worst image",
    "background": "background",
}


def distance(
    subject: walks.Subject, latents: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """Returns the relative distance inside the mask of every image, [N]."""
    outside = 1 - np.asarray(subject.mask[..., 0])
    return measures.background_error(latents, reference, outside)


def round_trip_rows(subject: walks.Subject, kept: set[str]) -> Iterator[dict[str, Any]]:
    """Yields a row for every walk that is not in `kept`."""
    trips = [(steps, "linspace", f"S = {steps}") for steps in ROUND_TRIPS]
    trips.append((10, "log_snr", "S = 10, log SNR"))
    for num_steps, spacing, name in trips:
        levels = walks.levels_of(subject, num_steps, spacing)
        for iterations in ITERATIONS:
            case = f"round trip k={iterations}, {name}"
            if case in kept:
                continue
            yield {
                "case": case,
                "num_steps": num_steps,
                "per_move": iterations + 1,
                "calls": num_steps * (iterations + 2),
                **_summary(walks.round_trip(subject, levels, iterations)),
            }


def reference(subject: walks.Subject, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fine walk's latents and its trajectory, from `folder` if there."""
    path = folder / "reference.npz"
    if not path.is_file():
        levels = walks.levels_of(subject, FINE, "linspace")
        _, trajectory = walks.inverted(subject, levels)
        latents = walks.drawn(subject, levels, trajectory, "ddim")
        np.savez(path, latents=latents, trajectory=trajectory)
    kept = np.load(path)
    return kept["latents"], kept["trajectory"]


def solver_rows(
    subject: walks.Subject, kept: set[str], folder: Path
) -> Iterator[dict[str, Any]]:
    """Yields a row for every walk that is not in `kept`."""
    # The first tells of what order the reference's own error is.
    cases = {f"fine S={FINE}, dpmpp_2m": (FINE, "dpmpp_2m", "linspace")}
    cases |= {
        f"defect S={steps}, {solver}, {spacing}": (steps, solver, spacing)
        for spacing in SPACINGS
        for steps in WALKS
        for solver in inversion.SOLVERS
    }
    fine, fine_trajectory = reference(subject, folder)
    before, trajectory = (FINE, "linspace"), jnp.asarray(fine_trajectory)
    for case, (num_steps, solver, spacing) in cases.items():
        if case in kept:
            continue
        levels = walks.levels_of(subject, num_steps, spacing)
        if before != (num_steps, spacing):
            _, trajectory = walks.inverted(subject, levels)
            before = num_steps, spacing
        latents = walks.drawn(subject, levels, trajectory, solver)
        gap = np.where(subject.mask > 0.5, 0, latents - np.asarray(subject.latents))
        yield {
            "case": case,
            "num_steps": num_steps,
            "calls": 2 * num_steps,
            **_summary(distance(subject, latents, fine)),
            "background": float(np.abs(gap).max()),
        }


def _summary(values: np.ndarray) -> dict[str, float]:
    return {"error": float(values.mean()), "worst": float(values.max())}


def measure(run: jaxanom.Run, folder: Path, seed: int, num_images: int) -> list[dict]:
    """Returns all rows; those in `folder` are not measured again.

    Raises:
      ValueError: `folder` holds rows of another run, seed or number of images.
    """
    path, settings_file = folder / "rows.jsonl", folder / "asked.json"
    settings = {
        "run": run.prepared.config.to_json(sort_keys=True),
        "seed": seed,
        "num_images": num_images,
    }
    if settings_file.is_file() and record.read_json(settings_file) != settings:
        raise ValueError(f"{folder} holds another measurement; choose another --out")
    record.write_json(settings_file, settings)
    rows = list(record.read_metrics(path))
    kept = {row["case"] for row in rows}
    subject = walks.subject(run, num_images, seed)
    started = time.perf_counter()
    for parts in (
        solver_rows(subject, kept, folder),
        round_trip_rows(subject, kept),
    ):
        for row in parts:
            seconds = round(time.perf_counter() - started, 1)
            facts = {"seed": seed, "num_images": num_images, "seconds": seconds}
            line = {"benchmark": NAME, **row, **facts, **harness.surroundings()}
            record.append_metrics(path, line)
            rows.append(line)
            print(f"{row['case']}: {row['error']:.4f}", flush=True)
            started = time.perf_counter()
    return rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.defects.trade_off"
    )
    parser.add_argument("--out", type=Path, default=Path("runs") / NAME)
    parser.add_argument("--run", type=Path, help="a trained generator")
    parser.add_argument("--model", default="embedded", help="to train one from")
    parser.add_argument("--seed", type=int, default=1, help="0 while developing")
    parser.add_argument("--scale", type=float, default=1.0, help="of that training")
    parser.add_argument("--num-images", type=int, default=4)
    parser.add_argument(
        "--record", action="store_true", help=f"add to benchmarks/records/{NAME}.jsonl"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    if settings.run:
        run = jaxanom.load(settings.run)
    else:
        job = runs.Job(settings.model, settings.out, settings.seed, settings.scale)
        run = experiments.pill_run(job)
    rows = measure(run, settings.out, settings.seed, settings.num_images)
    print(tables.to_text(tables.from_records(rows, COLUMNS, caption=NAME)))
    for row in rows:
        print(json.dumps(row))
        if settings.record:
            record.append_metrics(harness.RECORDS / f"{NAME}.jsonl", row)
    return rows


if __name__ == "__main__":
    main()
