"""Data, training runs and drawing for `benchmarks.quality.defects.properties`."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from PIL import Image

import jaxanom
from jaxanom import trees
from jaxanom.data import catalog
from jaxanom.data.foundry import render
from jaxanom.jobs import config_file, load
from jaxanom.methods.defect_generation import drawing, model

# The towers were trained on foundry seed 1; no experiment may see those images again.
DATA_SEED = 100
IMAGE_SIZE = 64
BATCH_SIZE = 8  # of everything drawn: one program a generator
RECIPE = "configs/defect_generation/foundry.py"
SETS = ("recipe", "refined", "requested")


class Job(NamedTuple):
    """What one call of the benchmark is about.

    Attributes:
      model: backbone directory, or "embedded".
      out: everything is written below it.
      seed: 0 while developing, 1 for the reported numbers.
      scale: factor on training steps and numbers of images.
      sets: Generated sets that detectors are trained with.
    """

    model: str
    out: Path
    seed: int
    scale: float
    sets: tuple[str, ...] = SETS

    def steps(self, count: int) -> int:
        """Scales a number of training steps."""
        return max(2, round(self.scale * count))

    def images(self, count: int, least: int = 4) -> int:
        """Scales a number of images."""
        return max(least, round(self.scale * count))


def config(
    job: Job, changes: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
    """Returns the shipped recipe with this job's seeds, model and scale.

    Args:
      job: see `Job`.
      changes: {"section.key": value}, applied last.
    """
    settings = config_file.load(RECIPE)
    settings.seed = settings.train.seed = settings.generate.seed = job.seed
    settings.data.seed = DATA_SEED + job.seed
    settings.data.split_seed = job.seed
    settings.model.directory = job.model
    settings.generate.num_steps, settings.generate.background = 50, "recompute"
    settings.generate.spacing, settings.generate.solver = "checkpoint", "ddim"
    # What the latents alone do, as the paper draws.
    settings.generate.paste, settings.generate.guidance_scale = False, 1.0
    settings.generate.otsu, settings.generate.least_kept = True, 0.0
    settings.phases.finetune.num_steps = 300
    settings.train.log_every = 25
    settings.train.keep = 1
    for phase in settings.phases.values():
        if phase.num_steps:
            phase.num_steps = job.steps(phase.num_steps)
            phase.warmup_steps = min(phase.warmup_steps, phase.num_steps // 2)
    settings.data.num_train = job.images(settings.data.num_train)
    settings.update_from_flattened_dict(dict(changes or {}))
    return settings


def shipped_drawing() -> dict[str, Any]:
    """Returns how the shipped recipe draws: changes for `reopened`."""
    section = config_file.load(RECIPE).generate.to_dict()
    own = ("num_images", "batch_size", "per_image", "seed")
    return {f"generate.{key}": v for key, v in section.items() if key not in own}


def folder_config(
    job: Job, folder: Path, prompt: str, changes: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
    """Returns `config` for a written folder, all of whose defects are trained on."""
    data = {
        "data.name": "folder",
        "data.directory": str(folder),
        "data.categories": (),
        "data.num_train": 0,
        "data.defect_rule": "all",
        "data.shots": 0,
        "defect_generation.defect_prompt": prompt,
    }
    return config(job, {**data, **(changes or {})})


def keep_programs(directory: Path) -> None:
    """Keeps compiled programs there, unless the environment names a place.

    Detectors of all seeds and reopened generators are the same programs.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(directory / ".jax_cache"))


def reopened(run: jaxanom.Run, changes: Mapping[str, Any]) -> jaxanom.Run:
    """Opens a finished run with other options of generation."""
    return load.load(run.directory, lambda c: c.update_from_flattened_dict(changes))


def write_folder(
    directory: Path, category: str, rows: Iterable[tuple[str, str, int, str]], seed: int
) -> Path:
    """Renders (split, defect type, index, file stem) rows into an MVTec-layout folder.

    A folder that is there is complete, and left alone.
    """
    if directory.is_dir():
        return directory
    building = directory.with_name(f".{directory.name}.{os.getpid()}")
    for split, kind, index, stem in rows:
        sample = render.render(
            category, split, index, seed, IMAGE_SIZE, defect_type=kind
        )
        _save(building / category / split / kind / f"{stem}.png", sample.image)
        if kind != "good":
            place = building / category / "ground_truth" / kind
            _save(place / f"{stem}_mask.png", 255 * sample.mask)
    directory.parent.mkdir(parents=True, exist_ok=True)
    os.rename(building, directory)
    return directory


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pictures(
    category: str, split: str, indices: Iterable[int], seed: int, kind: str = "good"
) -> tuple[np.ndarray, np.ndarray]:
    """Renders images [N, 64, 64, 3] float32 in [0, 1] and masks [N, 64, 64] bool."""
    samples = [
        render.render(category, split, index, seed, IMAGE_SIZE, defect_type=kind)
        for index in indices
    ]
    image = np.stack([sample.image for sample in samples]).astype(np.float32) / 255
    return image, np.stack([sample.mask for sample in samples]) > 0


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


def drawer(
    run: jaxanom.Run, batch_size: int = BATCH_SIZE
) -> Callable[..., dict[str, np.ndarray]]:
    """Makes a function that draws defects where it is told, compiled once.

    Returns:
      (image [N, H, W, 3], mask [N, H, W], defect_id, seeds [N]) -> what
      `method.generate` returns as numpy arrays, with `mask` freed of specks and
      `latent_mask` [N, h, w] added. `defect_id` is a number or [N].
    """
    method = run.prepared.method
    apply = jax.jit(method.generate)
    key = jax.random.key(run.prepared.config.generate.seed)
    pooling = run.prepared.config.defect_generation.latent_pooling

    def draw(image, mask, defect_id, seeds):
        count = len(image)
        ids = np.broadcast_to(np.asarray(defect_id, np.int32), (count,))
        rows = {
            "image": np.asarray(image, np.float32),
            "mask": np.asarray(mask, np.float32),
            "defect_id": ids,
            "category_id": np.zeros(count, np.int32),
            "seed": np.asarray(seeds, np.int32),
        }
        parts = []
        for numbers, kept in trees.fixed_batches(count, batch_size):
            batch = {name: value[numbers] for name, value in rows.items()}
            drawn = apply(run.params, run.frozen, batch, key)
            parts.append({k: np.asarray(value)[:kept] for k, value in drawn.items()})
        joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        grid = joined["normal"].shape[1:3]
        pooled = model.pool_mask(jax.numpy.asarray(rows["mask"]), grid, pooling)
        return {
            **joined,
            "mask": drawing.final_masks(joined["mask"]),
            "latent_mask": np.asarray(pooled),
        }

    return draw
