"""What network calls buy in generation: round trips, solvers, and levels for few moves.

    python -m benchmarks.quality.defects.trade_off --out runs/trade_off --seed 1 [--run DIR] [--record]

Two measurements on one fine-tuned generator, over normal test images that get the masks
of held-out defects:

- Round trip: relative error of the background after inversion and recomputed sampling,
  as B2 of `benchmarks.quality.defects.properties` measures it, for k = 0 to 3 fixed-point iterations.
- Solver: how far the defect's latents, inside the mask, end from those of a fine walk
  (DDIM, S = 200, its own inversion) that started from the same noise, relative to their
  size; background replayed, so its error has to be 0. Both solvers on even indices and
  on levels even in log SNR. Calls are those of the inversion and of the sampling.

A distance holds both errors: of the sampling, and of the replayed inversion, which is
DDIM's on the same levels.

Every walk is the library's own, taken move by move, so that one compiled network serves
them all. What is done is kept in --out: an interrupted call goes on where it stopped.
Without --run the generator of B1 and B2 is trained there first. Seed 0 is for
development.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxanom
from benchmarks import harness
from benchmarks.quality.defects import background, experiments, measures, runs
from jaxanom import record
from jaxanom.diffusion import inversion, schedules
from jaxanom.methods.defect_generation import model, objective, options
from jaxanom.models import backbones
from jaxanom.models.latent import unet
from jaxanom.report import tables
from jaxanom.types import Array

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


class Subject(NamedTuple):
    """What all walks share.

    Attributes:
      latents: [N, h, w, C], the clean latents of the normal images.
      mask: [N, h, w, 1], binary.
      noise: [N, h, w, C], what fills the hole.
      background_fn: the background's branch; one compiled program.
      pair_fn: both branches where the background is replayed; the same program.
      alphas_cumprod: [T] float64.
    """

    latents: Array
    mask: Array
    noise: Array
    background_fn: Callable[..., Array]
    pair_fn: Callable[..., tuple[Array, Array | None]]
    alphas_cumprod: np.ndarray


def subject(run: jaxanom.Run, num_images: int, seed: int) -> Subject:
    """Encodes images of the run's test part and compiles its network.

    Raises:
      ValueError: the run did not train the whole UNet.
    """
    if "unet" not in run.params:
        raise ValueError(
            f"{run.directory} has no UNet of its own; set "
            "config.defect_generation.lora_rank=0"
        )
    directory = run.prepared.config.model.directory
    image, mask, defect_id = experiments.held_out_pairs(run, num_images)
    latents, small = background.latents_of(run, image, mask, defect_id)
    module = backbones.load_unet(directory).module
    ids = jnp.asarray(defect_id, jnp.int32)
    prompt = model.prompted(
        model.Contexts(**run.frozen["contexts"]),
        small,
        ids,
        jnp.zeros_like(ids),
        options.read_training(run.prepared.config.defect_generation),
        unet.attention_resolutions(module.config, *small.shape[1:]),
    )
    params = jax.tree.map(jnp.asarray, run.params["unet"])
    apply = jax.jit(backbones.noise_apply(module, directory))

    def compiled(*inputs: Any) -> Array:
        with jax.disable_jit(False):
            return apply(*inputs)

    network = compiled, params, prompt
    return Subject(
        latents,
        prompt.mask,
        jax.random.normal(jax.random.key(seed), latents.shape),
        objective.background_noise(*network),
        objective.pair_noise(*network, hide_background=False),
        backbones.load_alphas(directory),
    )


def levels_of(subject: Subject, num_steps: int, spacing: str) -> np.ndarray:
    """Returns the levels of a walk, [S + 1]."""
    alphas = subject.alphas_cumprod
    if spacing == "log_snr":
        return schedules.log_snr_levels(alphas, num_steps)
    return schedules.levels(len(alphas), num_steps, spacing)


def inverted(
    subject: Subject, levels: np.ndarray, iterations: int = 0
) -> tuple[Array, Array]:
    """Returns the inverted latents and the trajectory, see `masked_invert`."""
    table = schedules.inversion_table(subject.alphas_cumprod, levels)
    # Scans become loops: what is compiled is the network, and not one walk per S.
    with jax.disable_jit():
        return inversion.masked_invert(
            subject.background_fn,
            subject.latents,
            subject.mask,
            table,
            iterations,
            keep_trajectory=True,
        )


def round_trip(subject: Subject, levels: np.ndarray, iterations: int) -> np.ndarray:
    """Returns the relative background error of every image, [N]."""

    def pair_fn(_, seen, timesteps):
        noise_pred = subject.background_fn(seen, timesteps)
        return noise_pred, noise_pred

    start, _ = inverted(subject, levels, iterations)
    table = schedules.sampling_table(subject.alphas_cumprod, levels)
    with jax.disable_jit():
        found = inversion.compose_sample(pair_fn, start, subject.mask, table)
    return measures.background_error(
        np.asarray(found), np.asarray(subject.latents), np.asarray(subject.mask[..., 0])
    )


def drawn(
    subject: Subject, levels: np.ndarray, trajectory: Array, solver: str
) -> np.ndarray:
    """Returns the latents of defects in a replayed background, [N, h, w, C]."""
    start = jnp.where(subject.mask > 0.5, subject.noise, trajectory[-1])
    table = schedules.sampling_table(subject.alphas_cumprod, levels)
    with jax.disable_jit():
        found = inversion.compose_sample(
            subject.pair_fn,
            start,
            subject.mask,
            table,
            trajectory,
            solver=solver,
        )
    return np.asarray(found)


def distance(subject: Subject, found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns the relative distance inside the mask of every image, [N]."""
    return measures.background_error(
        found, reference, 1 - np.asarray(subject.mask[..., 0])
    )


def round_trip_rows(subject: Subject, kept: set[str]) -> Iterator[dict[str, Any]]:
    """Yields a row for every walk that is not in `kept`."""
    walks = [(steps, "linspace", f"S = {steps}") for steps in ROUND_TRIPS]
    walks.append((10, "log_snr", "S = 10, log SNR"))
    for num_steps, spacing, name in walks:
        levels = levels_of(subject, num_steps, spacing)
        for iterations in ITERATIONS:
            case = f"round trip k={iterations}, {name}"
            if case in kept:
                continue
            values = round_trip(subject, levels, iterations)
            yield {
                "case": case,
                "num_steps": num_steps,
                "per_move": iterations + 1,
                "calls": num_steps * (iterations + 2),
                **_summary(values),
            }


def reference(subject: Subject, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fine walk's latents and its trajectory, from `folder` if there."""
    path = folder / "reference.npz"
    if not path.is_file():
        levels = levels_of(subject, FINE, "linspace")
        _, trajectory = inverted(subject, levels)
        found = drawn(subject, levels, trajectory, "ddim")
        np.savez(path, latents=found, trajectory=trajectory)
    kept = np.load(path)
    return kept["latents"], kept["trajectory"]


def solver_rows(
    subject: Subject, kept: set[str], folder: Path
) -> Iterator[dict[str, Any]]:
    """Yields a row for every walk that is not in `kept`."""
    # The first tells of what order the reference's own error is.
    walks = {f"fine S={FINE}, dpmpp_2m": (FINE, "dpmpp_2m", "linspace")}
    walks |= {
        f"defect S={steps}, {solver}, {spacing}": (steps, solver, spacing)
        for spacing in SPACINGS
        for steps in WALKS
        for solver in inversion.SOLVERS
    }
    wanted, fine = reference(subject, folder)
    before, trajectory = (FINE, "linspace"), jnp.asarray(fine)
    for case, (num_steps, solver, spacing) in walks.items():
        if case in kept:
            continue
        levels = levels_of(subject, num_steps, spacing)
        if before != (num_steps, spacing):
            _, trajectory = inverted(subject, levels)
            before = num_steps, spacing
        found = drawn(subject, levels, trajectory, solver)
        gap = np.where(subject.mask > 0.5, 0, found - np.asarray(subject.latents))
        yield {
            "case": case,
            "num_steps": num_steps,
            "calls": 2 * num_steps,
            **_summary(distance(subject, found, wanted)),
            "background": float(np.abs(gap).max()),
        }


def _summary(values: np.ndarray) -> dict[str, float]:
    return {"error": float(values.mean()), "worst": float(values.max())}


def measure(run: jaxanom.Run, folder: Path, seed: int, num_images: int) -> list[dict]:
    """Returns all rows; those in `folder` are not measured again.

    Raises:
      ValueError: `folder` holds rows of another run, seed or number of images.
    """
    path, asked = folder / "rows.jsonl", folder / "asked.json"
    wanted = {
        "run": run.prepared.config.to_json(sort_keys=True),
        "seed": seed,
        "num_images": num_images,
    }
    if asked.is_file() and record.read_json(asked) != wanted:
        raise ValueError(f"{folder} holds another measurement; choose another --out")
    record.write_json(asked, wanted)
    rows = list(record.read_metrics(path))
    kept = {row["case"] for row in rows}
    made = subject(run, num_images, seed)
    started = time.perf_counter()
    for parts in (
        solver_rows(made, kept, folder),
        round_trip_rows(made, kept),
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
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}")
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
        run = runs.trained(runs.config(job), settings.out / "pill")
    rows = measure(run, settings.out, settings.seed, settings.num_images)
    print(tables.to_text(tables.from_records(rows, COLUMNS, caption=NAME)))
    for row in rows:
        print(json.dumps(row))
        if settings.record:
            record.append_metrics(harness.RECORDS / f"{NAME}.jsonl", row)
    return rows


if __name__ == "__main__":
    main()
