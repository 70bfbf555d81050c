"""Experiments B1 to B5 on foundry: each takes a job and returns plain JSON values.

Each writes its training runs into folders of its own below `job.out` and finds them
there when it is called again. `targets` are what was asked for before any result.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxanom
from benchmarks.quality.defects import background as tier_b_background
from benchmarks.quality.defects import measures, runs
from jaxanom.data import catalog, generated, pipeline
from jaxanom.data.foundry import render
from jaxanom.jobs import defects_to_detector, generate

NUM_LEVELS = (10, 20, 50, 100)
FRESH = 1000  # first test index that no training folder uses
BLOB_PROMPT = "a photo of a {defect} blob"
RUST_PROMPT = "a photo of a {defect} spot"
# Run of B4 -> share of the normal images' masks that are told the defect's prompt.
REFUSAL_SHARES = {"panel": 0.0, "panel_refusing": 0.5}
# Blobs and rust spots to train on: as many, so that both are one program.
NUM_DEFECTS = 24
NUM_DETECTOR_SEEDS = 5
# By development seed 5: after 150 steps of 8 the generated defects gain nothing, after
# 600, when ten real defects alone are learnt by heart, they do.
DETECTOR_STEPS = 600
METRICS = ("pixel_ap", "pixel_auroc", "pixel_aupro", "image_auroc")


def pill_run(job: runs.Job) -> jaxanom.Run:
    """The generator of B1, B2 and B5: a category the towers never saw, 10 defects."""
    return runs.trained(runs.config(job), job.out / "pill")


def b1(job: runs.Job) -> dict[str, Any]:
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
        found = []
        for number, batch in enumerate(batches):
            for draw in range(num_draws):
                key = jax.random.fold_in(jax.random.key(number), draw)
                found.append(loss(params, run.frozen, batch, key)[1])
        return {
            name: float(np.mean([row[name] for row in found]))
            for name in ("matching", "background", "gap")
        }

    found = {
        "untrained": terms({"unet": silent}),
        "embedded": terms(embedded),
        "trained": terms(run.params),
    }
    for start in ("untrained", "embedded"):
        found[f"fall_from_{start}"] = {
            name: 1 - found["trained"][name] / found[start][name]
            for name in ("matching", "background")
        }
    return {**found, "num_images": len(source), "draws_per_image": num_draws}


def b2(job: runs.Job) -> dict[str, Any]:
    """Background error against S, and that nothing inside the mask reaches outside."""
    run = pill_run(job)
    image, mask, defect_id = held_out_pairs(run, runs.BATCH_SIZE)
    curves = tier_b_background.error_curves(run, image, mask, defect_id, NUM_LEVELS)
    replaying = runs.reopened(run, {"generate.background": "replay"})
    draw = runs.drawer(replaying)
    found = draw(image, mask, defect_id, np.arange(len(image)))
    replay = measures.background_error(
        found["latents"], found["normal"], found["latent_mask"]
    )
    return {
        "recompute": curves,
        "replay": {"50": {"mean": float(replay.mean()), "worst": float(replay.max())}},
        "invariance": _invariance(run, image, mask),
        "num_images": len(image),
    }


def held_out_pairs(run: jaxanom.Run, count: int):
    """Normal test images, each with the mask and type of a held-out defect."""
    dataset, division = run.prepared.dataset, run.prepared.division
    records = dataset.records
    good = [n for n in division.test if records[n].defect_type == catalog.GOOD]
    bad = [n for n in division.test if records[n].defect_type != catalog.GOOD]
    # Spread over the defect types, which lie one after the other.
    bad = [bad[round(k)] for k in np.linspace(0, len(bad) - 1, count)]
    image = [dataset.load(records[good[k % len(good)]])[0] for k in range(count)]
    mask = [dataset.load(records[number])[1] for number in bad]
    ids = [dataset.defect_types.index(records[number].defect_type) for number in bad]
    return np.stack(image).astype(np.float32) / 255, np.stack(mask), np.array(ids)


def _invariance(
    run: jaxanom.Run, image: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """Largest differences between two seeds and between two prompts, in latents."""
    draw = runs.drawer(run)
    first = np.arange(len(image))
    base = draw(image, mask, 1, first)
    outside = base["latent_mask"][..., None] < 0.5
    whole = measures.background_error(
        base["latents"], base["normal"], base["latent_mask"]
    )
    found = {"error": float(whole.mean())}
    for name, other in (
        ("seeds", draw(image, mask, 1, first + 100)),
        ("prompts", draw(image, mask, 2, first)),
    ):
        gap = np.abs(other["latents"] - base["latents"])
        found[f"{name}_outside"] = float(np.where(outside, gap, 0.0).max())
        found[f"{name}_inside"] = float(np.where(outside, 0.0, gap).max())
        pixels = np.abs(other["image"] - base["image"]).max(-1)
        found[f"{name}_pixels_outside"] = float(np.where(mask, 0.0, pixels).max())
    return found


def bottle_run(job: runs.Job, name: str = "full", **changes: Any) -> jaxanom.Run:
    """A generator of floating blobs, whose colour is a function of the juice's."""
    seed = runs.DATA_SEED + job.seed
    num_good, num_bad = job.images(48), job.images(NUM_DEFECTS)
    rows = [("train", "good", k, f"{k:03d}") for k in range(num_good)]
    rows += [("test", "floating", k, f"{k:03d}") for k in range(num_bad)]
    folder = runs.write_folder(job.out / "data" / "bottle", "juice_bottle", rows, seed)
    options = {f"defect_generation.{key}": value for key, value in changes.items()}
    settings = runs.folder_config(job, folder, BLOB_PROMPT, options)
    return runs.trained(settings, job.out / f"bottle_{name}")


def bottles(job: runs.Job, count: int) -> dict[str, np.ndarray]:
    """Fresh bottles with and without a blob; both share every other pixel."""
    seed = runs.DATA_SEED + job.seed
    indices = range(FRESH, FRESH + count)
    normal, _ = runs.pictures("juice_bottle", "test", indices, seed)
    real, mask = runs.pictures("juice_bottle", "test", indices, seed, "floating")
    return {"normal": normal, "real": real, "mask": mask}


def b3(job: runs.Job) -> dict[str, Any]:
    """Does the defect take its colour from the juice around it?

    Blobs are asked for where the renderer would have put one, on fresh bottles; the
    control was trained, and draws, with the background hidden from the defect branch.
    """
    fresh = bottles(job, job.images(32))
    real = measures.colour_correlation(
        fresh["real"], fresh["mask"], fresh["normal"], fresh["mask"]
    )
    found: dict[str, Any] = {"real": real._asdict()}
    for name, hidden in (("full", False), ("hidden", True)):
        run = bottle_run(job, name, hide_background=hidden)
        found[name] = colour_numbers(runs.drawer(run), fresh)
    full, hidden = (found[name]["correlation"] for name in ("full", "hidden"))
    found["gap"] = full["value"] - hidden["value"]
    found["gap_error"] = float(np.hypot(full["error"], hidden["error"]))
    return found


def colour_numbers(
    draw: Callable[..., dict[str, np.ndarray]], fresh: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Draws a blob on every fresh bottle and measures colour, change and background."""
    normal, mask = fresh["normal"], fresh["mask"]
    made = draw(normal, mask, 1, np.arange(len(normal)))
    kept = measures.kept_share(made["mask"], mask)
    refined, whole = (
        measures.colour_correlation(made["image"], area, normal, mask)._asdict()
        for area in (made["mask"], mask)
    )
    wanted = measures.mean_colour(fresh["real"], mask)
    missed = np.abs(measures.mean_colour(made["image"], mask) - wanted).mean(1)
    background = measures.background_error(
        made["latents"], made["normal"], made["latent_mask"]
    )
    return {
        "correlation": refined,
        "correlation_whole_mask": whole,
        "colour_error": float(np.nanmean(missed)),
        "kept": float(kept.mean()),
        "background_error": float(background.mean()),
        "num_images": len(normal),
    }


def b4(job: runs.Job) -> dict[str, Any]:
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
    of = {
        kind: [k for k in many if _is(k, seed, kind)][:count]
        for kind in ("steel", "plastic")
    }
    _, mask = runs.pictures("panel", "test", of["steel"], seed, "rust")
    normals = {
        kind: runs.pictures("panel", "test", indices, seed)[0]
        for kind, indices in of.items()
    }
    found: dict[str, Any] = {"num_images": count}
    for name, share in REFUSAL_SHARES.items():
        changes = {"defect_generation.refusal_share": share} if share else {}
        settings = runs.folder_config(job, folder, RUST_PROMPT, changes)
        run = runs.trained(settings, job.out / name)
        found[name] = _kept_by_kind(runs.drawer(run), normals, mask)
    return found


def _kept_by_kind(
    draw: Callable[..., dict[str, np.ndarray]],
    normals: dict[str, np.ndarray],
    mask: np.ndarray,
) -> dict[str, Any]:
    """Asks for rust on every kind of panel and measures what stays of the mask."""
    found: dict[str, Any] = {}
    for kind, normal in normals.items():
        made = draw(normal, mask, 1, np.arange(len(normal)))
        kept = measures.kept_share(made["mask"], mask)
        change = measures.mean_colour(made["change"][..., None], mask)
        found[kind] = {
            "kept": float(kept.mean()),
            "kept_error": float(kept.std(ddof=1) / np.sqrt(len(kept))),
            "empty": float((kept == 0).mean()),
            "change": float(np.nanmean(change)),
        }
    found["ratio"] = found["plastic"]["kept"] / max(found["steel"]["kept"], 1e-9)
    return found


def _is(index: int, seed: int, kind: str) -> bool:
    return render.variant("panel", "test", index, seed) == kind


def b5(job: runs.Job) -> dict[str, Any]:
    """What the generated pairs are worth to a segmenter of 10 real defects.

    Four training sets: real; real and generated with the requested mask m; the same
    defects with the refined mask m*; and as the shipped recipe draws them ("recipe":
    guided, all that changed is called a defect, the normal image's own pixels around
    it). The same generator, steps and test images for all.
    """
    run = pill_run(job)
    sets = job.out / "sets"
    _write_sets(run, job.images(60, 8), sets, job.sets)
    found: dict[str, Any] = {}
    for name in ("real", *job.sets):
        share = 0.5 if name in job.sets else 0.0
        scores = []
        for number in range(NUM_DETECTOR_SEEDS):
            base = runs.config(job)
            base.seed = base.train.seed = 100 * job.seed + number
            base.detector.phase.num_steps = job.steps(DETECTOR_STEPS)
            made = str(sets / name) if share else ""
            settings = defects_to_detector.detector_config(base, made, share)
            where = job.out / "detectors" / f"{name}_{number}"
            scores.append(jaxanom.evaluate(runs.trained(settings, where))["mean"])
        found[name] = {
            metric: measures.spread([score[metric] for score in scores])
            for metric in METRICS
        }
    real = found["real"]["pixel_ap"]
    for name in job.sets:
        gain = found[name]["pixel_ap"]["mean"] - real["mean"]
        found[f"gain_{name}"] = gain
        found[f"gain_{name}_in_stds"] = gain / max(real["std"], 1e-9)
    return {**found, "num_seeds": NUM_DETECTOR_SEEDS}


def _write_sets(
    run: jaxanom.Run, count: int, directory: Path, names: Sequence[str]
) -> None:
    """Writes generated defects with m, the same with m*, and those of the recipe."""
    wanted = [
        name for name in names if not (directory / name / generated.MANIFEST).is_file()
    ]
    if {"requested", "refined"} & set(wanted):
        rows = [row for row, _ in generate.drawn(run, count)]
        as_asked = [row._replace(mask=row.requested_mask) for row in rows]
        generated.write(directory / "requested", as_asked, overwrite=True)
        generated.write(directory / "refined", rows, overwrite=True)
    if "recipe" in wanted:
        shipped = runs.shipped_drawing()
        rows = [row for row, _ in generate.drawn(runs.reopened(run, shipped), count)]
        generated.write(directory / "recipe", rows, overwrite=True)


def ablations(job: runs.Job) -> dict[str, Any]:
    """The switches at the end of the specification's section 8, on the bottles of B3.

    (v), no refinement, is B5's comparison of m with m*, and `correlation_whole_mask`.
    """
    fresh = bottles(job, job.images(24))
    full = bottle_run(job, "full", hide_background=False)
    found = {"full": colour_numbers(runs.drawer(full), fresh)}
    for name, change in (
        ("i no regularizer", {"background_weight": 0.0}),
        ("ii background fed z_t", {"background_input": "full"}),
        ("iii no masked cross-attention", {"masked_attention": False}),
    ):
        run = bottle_run(job, f"ablation_{name.split()[0]}", **change)
        found[name] = colour_numbers(runs.drawer(run), fresh)
    changes: dict[str, dict[str, Any]] = {
        "iv no inversion": {"generate.start": "noise"},
        "vi replay": {"generate.background": "replay"},
    }
    for steps in (10, 20, 100):
        changes[f"vii S={steps}"] = {"generate.num_steps": steps}
    for name, change in changes.items():
        found[name] = colour_numbers(runs.drawer(runs.reopened(full, change)), fresh)
    return found
