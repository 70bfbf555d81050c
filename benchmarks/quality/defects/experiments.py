"""Experiments on foundry: each takes a job and returns plain JSON values.

Each writes its training runs into folders of its own below `job.out` and finds them
there when it is called again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxanom
from benchmarks.quality.defects import measures, runs, walks
from jaxanom.data import catalog, generated, pipeline
from jaxanom.data.foundry import render
from jaxanom.jobs import defects_to_detector, generate

NUM_LEVELS = (10, 20, 50, 100)
FRESH = 1000  # first test index that no training folder uses
BLOB_PROMPT = "a photo of a {defect} blob"
RUST_PROMPT = "a photo of a {defect} spot"
# Training run -> share of normal images in whose masks the defect is asked for.
REFUSAL_SHARES = {"panel": 0.0, "panel_refusing": 0.5}
# Blobs and rust spots to train on: as many, so that both are one program.
NUM_DEFECTS = 24
NUM_DETECTOR_SEEDS = 5
# By development seed 5: after 150 steps of 8 the generated defects gain nothing, after
# 600, when ten real defects alone are learnt by heart, they do.
DETECTOR_STEPS = 600
METRICS = ("pixel_ap", "pixel_auroc", "pixel_aupro", "image_auroc")


def pill_run(job: runs.Job) -> jaxanom.Run:
    """A generator of a category that the towers never saw, from 10 defects."""
    return jaxanom.train(runs.config(job), job.out / "pill")


def losses_fall(job: runs.Job) -> dict[str, Any]:
    """Both loss terms and the gap on defects that were not trained on.

    The same images, noise and timesteps for three networks: `untrained` (predicts 0, as
    a new UNet does: step 0 of all training), `embedded` (step 0 of the fine-tuning) and
    `trained`.
    """
    run = pill_run(job)
    settings, method = run.prepared.config, run.prepared.method
    dataset, division = run.prepared.dataset, run.prepared.division
    held_out = [
        number
        for number in division.test
        if dataset.records[number].defect_type != catalog.GOOD
    ]
    embedded, _ = method.init(jax.random.key(settings.train.seed))
    last = embedded["unet"]["conv_out"]
    silent = {**embedded["unet"], "conv_out": jax.tree.map(jnp.zeros_like, last)}
    size = min(8, len(held_out))
    source = catalog.source(dataset, held_out[: len(held_out) // size * size])
    encode = jax.jit(method.encode)
    batches = [
        encode(run.frozen, batch) for batch in pipeline.finite_batches(source, size)
    ]
    loss = jax.jit(method.phases[-1].loss_fn)
    num_draws = job.images(8, 1)

    def terms(params: Any) -> dict[str, float]:
        rows = []
        for number, batch in enumerate(batches):
            for draw in range(num_draws):
                key = jax.random.fold_in(jax.random.key(number), draw)
                rows.append(loss(params, run.frozen, batch, key)[1])
        return {
            name: float(np.mean([row[name] for row in rows]))
            for name in ("matching", "background", "gap")
        }

    result = {
        "untrained": terms({"unet": silent}),
        "embedded": terms(embedded),
        "trained": terms(run.params),
    }
    for start in ("untrained", "embedded"):
        result[f"fall_from_{start}"] = {
            name: 1 - result["trained"][name] / result[start][name]
            for name in ("matching", "background")
        }
    return {**result, "num_images": len(source), "draws_per_image": num_draws}


def background_stays(job: runs.Job) -> dict[str, Any]:
    """Background error against S, and that nothing inside the mask reaches outside."""
    run = pill_run(job)
    image, mask, defect_id = runs.held_out_pairs(run, runs.BATCH_SIZE)
    curves = walks.error_curves(run, runs.BATCH_SIZE, NUM_LEVELS)
    replaying = runs.reopened(run, {"generate.background": "replay"})
    drawn = runs.drawer(replaying)(image, mask, defect_id, np.arange(len(image)))
    replay = background_errors(drawn)
    return {
        "recompute": curves,
        "replay": {"50": {"mean": float(replay.mean()), "worst": float(replay.max())}},
        "invariance": _invariance(run, image, mask),
        "num_images": len(image),
    }


def background_errors(drawn: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the relative background error of every drawn image, [N]."""
    return measures.background_error(
        drawn["latents"], drawn["normal"], drawn["latent_mask"]
    )


def _invariance(
    run: jaxanom.Run, image: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """Largest differences between two seeds and between two prompts, in latents."""
    draw = runs.drawer(run)
    first = np.arange(len(image))
    base = draw(image, mask, 1, first)
    outside = base["latent_mask"][..., None] < 0.5
    result = {"error": float(background_errors(base).mean())}
    for name, other in (
        ("seeds", draw(image, mask, 1, first + 100)),
        ("prompts", draw(image, mask, 2, first)),
    ):
        gap = np.abs(other["latents"] - base["latents"])
        result[f"{name}_outside"] = float(np.where(outside, gap, 0.0).max())
        result[f"{name}_inside"] = float(np.where(outside, 0.0, gap).max())
        pixels = np.abs(other["image"] - base["image"]).max(-1)
        result[f"{name}_pixels_outside"] = float(np.where(mask, 0.0, pixels).max())
    return result


def bottle_run(job: runs.Job, name: str = "full", **changes: Any) -> jaxanom.Run:
    """A generator of floating blobs, whose colour is a function of the juice's."""
    seed = runs.DATA_SEED + job.seed
    num_good, num_bad = job.images(48), job.images(NUM_DEFECTS)
    rows = [("train", "good", k, f"{k:03d}") for k in range(num_good)]
    rows += [("test", "floating", k, f"{k:03d}") for k in range(num_bad)]
    folder = runs.write_folder(job.out / "data" / "bottle", "juice_bottle", rows, seed)
    options = {f"defect_generation.{key}": value for key, value in changes.items()}
    settings = runs.folder_config(job, folder, BLOB_PROMPT, options)
    return jaxanom.train(settings, job.out / f"bottle_{name}")


def bottles(job: runs.Job, count: int) -> dict[str, np.ndarray]:
    """Fresh bottles with and without a blob; both share every other pixel."""
    seed = runs.DATA_SEED + job.seed
    indices = range(FRESH, FRESH + count)
    normal, _ = runs.pictures("juice_bottle", "test", indices, seed)
    real, mask = runs.pictures("juice_bottle", "test", indices, seed, "floating")
    return {"normal": normal, "real": real, "mask": mask}


def colour_follows_background(job: runs.Job) -> dict[str, Any]:
    """Does the defect take its colour from the juice around it?

    Blobs are asked for where the renderer would have put one, on fresh bottles; the
    control was trained, and draws, with the background hidden from the defect branch.
    """
    fresh = bottles(job, job.images(32))
    real = measures.colour_correlation(
        fresh["real"], fresh["mask"], fresh["normal"], fresh["mask"]
    )
    result: dict[str, Any] = {"real": real._asdict()}
    for name, hidden in (("full", False), ("hidden", True)):
        run = bottle_run(job, name, hide_background=hidden)
        result[name] = colour_numbers(runs.drawer(run), fresh)
    full, hidden = (result[name]["correlation"] for name in ("full", "hidden"))
    result["gap"] = full["value"] - hidden["value"]
    result["gap_error"] = float(np.hypot(full["error"], hidden["error"]))
    return result


def colour_numbers(
    draw: Callable[..., dict[str, np.ndarray]], fresh: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Draws a blob on every fresh bottle and measures colour, change and background."""
    normal, mask = fresh["normal"], fresh["mask"]
    drawn = draw(normal, mask, 1, np.arange(len(normal)))
    kept = measures.kept_share(drawn["mask"], mask)
    refined, whole = (
        measures.colour_correlation(drawn["image"], area, normal, mask)._asdict()
        for area in (drawn["mask"], mask)
    )
    real_colour = measures.mean_colour(fresh["real"], mask)
    gaps = np.abs(measures.mean_colour(drawn["image"], mask) - real_colour).mean(1)
    return {
        "correlation": refined,
        "correlation_whole_mask": whole,
        "colour_error": float(np.nanmean(gaps)),
        "kept": float(kept.mean()),
        "background_error": float(background_errors(drawn).mean()),
        "num_images": len(normal),
    }


def rust_stays_on_steel(job: runs.Job) -> dict[str, Any]:
    """Rust only ever occurs on steel: what happens when it is asked for on plastic?

    Both materials get the same masks and the same noise. Measured with the paper's
    loss, and with normal images that are asked for the defect as well.
    """
    seed = runs.DATA_SEED + job.seed
    num_good, num_bad = job.images(64), job.images(NUM_DEFECTS)
    rows = [("train", "good", k, f"{k:03d}") for k in range(num_good)]
    steel = [k for k in range(4 * num_bad) if _is(k, seed, "steel")][:num_bad]
    rows += [("test", "rust", k, f"{k:03d}") for k in steel]
    folder = runs.write_folder(job.out / "data" / "panel", "panel", rows, seed)
    count = job.images(32)
    many = range(FRESH, FRESH + 4 * count)
    panels = {
        kind: [k for k in many if _is(k, seed, kind)][:count]
        for kind in ("steel", "plastic")
    }
    _, mask = runs.pictures("panel", "test", panels["steel"], seed, "rust")
    normals = {
        kind: runs.pictures("panel", "test", indices, seed)[0]
        for kind, indices in panels.items()
    }
    result: dict[str, Any] = {"num_images": count}
    for name, share in REFUSAL_SHARES.items():
        changes = {"defect_generation.refusal_share": share} if share else {}
        settings = runs.folder_config(job, folder, RUST_PROMPT, changes)
        run = jaxanom.train(settings, job.out / name)
        result[name] = _kept_by_kind(runs.drawer(run), normals, mask)
    return result


def _kept_by_kind(
    draw: Callable[..., dict[str, np.ndarray]],
    normals: dict[str, np.ndarray],
    mask: np.ndarray,
) -> dict[str, Any]:
    """Asks for rust on every kind of panel and measures what stays of the mask."""
    result: dict[str, Any] = {}
    for kind, normal in normals.items():
        drawn = draw(normal, mask, 1, np.arange(len(normal)))
        kept = measures.kept_share(drawn["mask"], mask)
        change = measures.mean_colour(drawn["change"][..., None], mask)
        result[kind] = {
            "kept": float(kept.mean()),
            "kept_error": float(kept.std(ddof=1) / np.sqrt(len(kept))),
            "empty": float((kept == 0).mean()),
            "change": float(np.nanmean(change)),
        }
    result["ratio"] = result["plastic"]["kept"] / max(result["steel"]["kept"], 1e-9)
    return result


def _is(index: int, seed: int, kind: str) -> bool:
    return render.variant("panel", "test", index, seed) == kind


def generated_set_helps(job: runs.Job) -> dict[str, Any]:
    """What the generated pairs are worth to a segmenter of 10 real defects.

    Four training sets: real; real and generated with the requested mask m; the same
    defects with the refined mask m*; and as the shipped recipe draws them ("recipe":
    guided, all that changed is called a defect, the normal image's own pixels around
    it). The same generator, steps and test images for all.
    """
    run = pill_run(job)
    sets = job.out / "sets"
    _write_sets(run, job.images(60, 8), sets, job.sets)
    result: dict[str, Any] = {}
    for name in ("real", *job.sets):
        share = 0.5 if name in job.sets else 0.0
        scores = []
        for number in range(NUM_DETECTOR_SEEDS):
            base = runs.config(job)
            base.seed = base.train.seed = 100 * job.seed + number
            base.detector.phase.num_steps = job.steps(DETECTOR_STEPS)
            generated_set = str(sets / name) if share else ""
            settings = defects_to_detector.detector_config(base, generated_set, share)
            where = job.out / "detectors" / f"{name}_{number}"
            scores.append(jaxanom.evaluate(jaxanom.train(settings, where))["mean"])
        result[name] = measures.spreads(scores, METRICS)
    real = result["real"]["pixel_ap"]
    for name in job.sets:
        gain = result[name]["pixel_ap"]["mean"] - real["mean"]
        result[f"gain_{name}"] = gain
        result[f"gain_{name}_in_stds"] = gain / max(real["std"], 1e-9)
    return {**result, "num_seeds": NUM_DETECTOR_SEEDS}


def _write_sets(
    run: jaxanom.Run, count: int, directory: Path, names: Sequence[str]
) -> None:
    """Writes generated defects with m, the same with m*, and those of the recipe."""
    missing = {
        name for name in names if not (directory / name / generated.MANIFEST).is_file()
    }
    if {"requested", "refined"} & missing:
        rows = [row for row, _ in generate.drawn(run, count)]
        requested = [row._replace(mask=row.requested_mask) for row in rows]
        generated.write(directory / "requested", requested, overwrite=True)
        generated.write(directory / "refined", rows, overwrite=True)
    if "recipe" in missing:
        shipped = runs.reopened(run, runs.shipped_drawing())
        rows = [row for row, _ in generate.drawn(shipped, count)]
        generated.write(directory / "recipe", rows, overwrite=True)


def ablations(job: runs.Job) -> dict[str, Any]:
    """Single parts of the method switched off or replaced, on bottles with blobs.

    What refining the mask is worth, `correlation_whole_mask` says, and the comparison
    of m with m* in `generated_set_helps`.
    """
    fresh = bottles(job, job.images(24))
    full = bottle_run(job, "full", hide_background=False)
    trainings: dict[str, dict[str, Any]] = {
        "no regularizer": {"background_weight": 0.0},
        "background fed z_t": {"background_input": "full"},
        "no masked cross-attention": {"masked_attention": False},
    }
    drawings: dict[str, dict[str, Any]] = {
        "no inversion": {"generate.start": "noise"},
        "background replayed": {"generate.background": "replay"},
    }
    for steps in (10, 20, 100):
        drawings[f"S={steps}"] = {"generate.num_steps": steps}
    variants = {"full": full}
    for name, change in trainings.items():
        variants[name] = bottle_run(job, name.replace(" ", "_"), **change)
    for name, change in drawings.items():
        variants[name] = runs.reopened(full, change)
    return {
        name: colour_numbers(runs.drawer(run), fresh) for name, run in variants.items()
    }
