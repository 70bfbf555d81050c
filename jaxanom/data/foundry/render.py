"""The procedural dataset: every image a pure function of what names it.

`render` draws one image; `records` plans a dataset; `write_mvtec` puts it on disk in
the folder layout of MVTec AD (category/split/defect, and ground_truth masks).
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxanom import files
from jaxanom.data.foundry import (
    assemblies,
    captions,
    defects,
    logical,
    names,
    objects,
    shapes,
    textures,
)
from jaxanom.data.foundry import noise as fields
from jaxanom.data.foundry.scene import Edit, Scene
from jaxanom.errors import UserError, check_known

SPLITS = ("train", "test")

_ROOMS = (textures, objects, assemblies, logical)
_BUILDERS = {name: build for m in _ROOMS for name, build in m.BUILDERS.items()}
_PART_DEFECTS = {name: kinds for m in _ROOMS for name, kinds in m.PART_DEFECTS.items()}

NOISE_SIGMA = 0.008
SUPPORT_LEVEL = 0.25
CHANGE_LEVEL = 0.035


class Sample(NamedTuple):
    """One rendered image.

    Attributes:
      image: [H, W, 3] uint8.
      mask: [H, W] uint8, 1 on the defect. Where it is 0 the image is bit for bit the
        image without the defect; every connected part of it holds changed pixels.
      caption: names category and state.
      defect_type: "good" or one of `DEFECT_TYPES`.
      params: facts of the scene (`juice`, `juice_color`, `variant`), for experiments.
    """

    image: np.ndarray
    mask: np.ndarray
    caption: str
    defect_type: str
    params: dict[str, Any]


class Row(NamedTuple):
    """What names one image of a planned dataset; `number` is its file number."""

    category: str
    split: str
    index: int
    defect_type: str
    number: int


def render(
    category: str,
    split: str,
    index: int,
    seed: int = 0,
    size: int = 64,
    defect_type: str | None = None,
) -> Sample:
    """Draws one image.

    Args:
      category: one of `CATEGORIES`.
      split: "train" (good images only, unless a defect is asked for) or "test".
      index: number within category and split, >= 0.
      seed: Decides the whole dataset; >= 0.
      size: pixels per side, >= 16. The content is the same at every size.
      defect_type: "good" or a defect of the category. None takes the state the split
        gives the index: see `state`.

    Returns:
      The sample, equal bytes for equal arguments.

    Raises:
      UserError: on unknown names, or a defect that does not occur at this index.
    """
    known = ("good", *names.defect_types(category))
    check_known("split", split, SPLITS)
    if index < 0 or seed < 0 or size < 16:
        raise UserError(
            f"index={index}, seed={seed}, size={size}: index and seed must be >= 0 and "
            "size >= 16"
        )
    if defect_type is None:
        defect_type = state(category, split, index, seed)
    check_known(f"defect type of {category}", defect_type, known)
    surface = fields.canvas(size)
    if not occurs(category, split, index, seed, defect_type):
        raise UserError(
            f"{defect_type} does not occur at index {index} of {category}, which is "
            f"{variant(category, split, index, seed)}; choose an index for which "
            "occurs(...) is True, as records(...) does"
        )
    good = _draw(category, split, index, seed, surface, None)
    finish = _finish(category, split, index, seed, surface)
    image = finish(good.color)
    mask = np.zeros((size, size), np.uint8)
    if defect_type != "good":
        solid = defect_type in _PART_DEFECTS.get(category, ())
        bad, support = _damage(good, category, split, index, seed, surface, defect_type)
        image, mask = _exact(image, finish(bad), support, solid)
    text = captions.caption(category, split, index, seed, defect_type)
    return Sample(image, mask, text, defect_type, dict(good.params))


def state(category: str, split: str, index: int, seed: int = 0) -> str:
    """The state of an index: "good" in train; test cycles through good and defects."""
    if split == "train":
        return "good"
    cycle = ("good", *names.defect_types(category))
    return cycle[index % len(cycle)]


def occurs(category: str, split: str, index: int, seed: int, defect_type: str) -> bool:
    """Whether an image can have a defect: rust never occurs on a plastic panel."""
    if category != "panel" or defect_type != "rust":
        return True
    return variant(category, split, index, seed) == "steel"


def variant(category: str, split: str, index: int, seed: int = 0) -> str:
    """Which variant of a category an index shows; only "panel" has variants.

    Training panels alternate. Test panels are steel wherever the test cycle asks for
    rust, which is at odd indices, and alternate over the others.
    """
    if category != "panel":
        raise UserError(f"category {category!r} has no variants; 'panel' has")
    if split == "test":
        return "plastic" if index % 4 == 0 else "steel"
    return ("steel", "plastic")[index % 2]


def _draw(category, split, index, seed, surface, edit: Edit | None) -> Scene:
    rng = fields.stream(seed, category, split, index, "scene")
    lit = shapes.light(rng)
    if category == "panel":
        category = f"{variant(category, split, index, seed)} panel"
    scene = _BUILDERS[category](rng, surface, lit, edit)
    return scene._replace(color=shapes.planar(scene.color))


def _damage(good: Scene, category, split, index, seed, surface, defect_type):
    """The damaged picture [side, side, 3] and where it may differ [side, side]."""
    rng = fields.stream(seed, category, split, index, defect_type)
    if defect_type in _PART_DEFECTS.get(category, ()):
        bad = _draw(category, split, index, seed, surface, Edit(defect_type, rng))
        change = np.abs(bad.color - good.color).max(-1)
        return bad.color, (change > CHANGE_LEVEL).astype(np.float32)
    lit = shapes.light(fields.stream(seed, category, split, index, "scene"))
    color, support = defects.PAINTERS[defect_type](rng, surface, lit, good)
    support = support * good.surface
    mix = good.color + good.surface[..., None] * (color - good.color)
    return mix, support


def _finish(category, split, index, seed, surface) -> Callable:
    """Camera: downsampling, a light gradient, colour cast, vignette, sensor noise."""
    rng = fields.stream(seed, category, split, index, "camera")
    cast = 1 + rng.uniform(-0.02, 0.02, 3).astype(np.float32)
    slope_x, slope_y = rng.uniform(-0.07, 0.07, 2)
    x, y = fields.downsample(surface.x), fields.downsample(surface.y)
    gain = rng.uniform(0.95, 1.05) + slope_x * x + slope_y * y - 0.03 * (x * x + y * y)
    gain = gain.astype(np.float32)[..., None] * cast
    grain = rng.standard_normal((surface.size, surface.size, 3), dtype=np.float32)
    grain *= np.float32(NOISE_SIGMA)

    def finish(color):
        seen = fields.downsample(color) * gain + grain
        return (np.clip(seen, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)

    return finish


def _exact(good, bad, support, solid: bool):
    """Cuts the damage to its mask, and the mask to parts that hold changed pixels.

    The mask of a damaged part is filled: where the part and what it covers happen to
    have one colour belongs to it too.
    """
    size = good.shape[0]
    mask = fields.downsample(support) > SUPPORT_LEVEL
    reach = max(1, round(size / 64))
    mask = ndimage.binary_closing(np.pad(mask, reach + 1), iterations=reach)
    mask = mask[reach + 1 : -reach - 1, reach + 1 : -reach - 1]
    if solid:
        mask = ndimage.binary_fill_holes(mask)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    changed = np.abs(good.astype(np.int16) - bad).max(-1)
    area = np.bincount(parts.ravel(), minlength=count + 1)
    strong = np.bincount(parts[changed > 12], minlength=count + 1)
    keep = (area >= 5 * (size / 64) ** 2) & (strong > 0.25 * area)
    keep[0] = False
    mask = keep[parts]
    return np.where(mask[..., None], bad, good), mask.astype(np.uint8)


def records(
    categories: Sequence[str] = names.CATEGORIES,
    num_train: int = 100,
    num_test_good: int = 20,
    num_per_defect: int = 10,
    seed: int = 0,
) -> tuple[Row, ...]:
    """Plans a dataset: good training images, good test images, and each defect.

    Test indices never repeat within a category, so no good test image is the
    background of a defective one.
    """
    rows = []
    for category in categories:
        kinds = names.defect_types(category)
        rows += [Row(category, "train", i, "good", i) for i in range(num_train)]
        index = 0
        for kind, count in (
            ("good", num_test_good),
            *((kind, num_per_defect) for kind in kinds),
        ):
            number = 0
            while number < count:
                if occurs(category, "test", index, seed, kind):
                    rows.append(Row(category, "test", index, kind, number))
                    number += 1
                index += 1
    return tuple(rows)


def write_mvtec(
    directory: str | os.PathLike,
    categories: Sequence[str] = names.CATEGORIES,
    size: int = 64,
    seed: int = 0,
    num_train: int = 100,
    num_test_good: int = 20,
    num_per_defect: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the planned dataset as folders in the layout of MVTec AD.

    Each file appears under its name only when it is complete. `captions.json` maps
    image paths, relative to `directory`, to captions.

    Args:
      directory: created if absent; files of the same names are replaced.
      categories: Some of `CATEGORIES`.
      size: pixels per side.
      seed: Decides the whole dataset.
      num_train, num_test_good, num_per_defect: images per category, as in `records`.
      progress: called with (images done, images in all) after each image.

    Returns:
      The directory.
    """
    root = Path(directory)
    rows = records(categories, num_train, num_test_good, num_per_defect, seed)
    said = {}
    for done, row in enumerate(rows, 1):
        sample = render(row.category, row.split, row.index, seed, size, row.defect_type)
        name = f"{row.category}/{row.split}/{row.defect_type}/{row.number:03d}.png"
        _write_png(root / name, sample.image)
        if row.defect_type != "good":
            place = root / row.category / "ground_truth" / row.defect_type
            _write_png(place / f"{row.number:03d}_mask.png", sample.mask * 255)
        said[name] = sample.caption
        if progress is not None:
            progress(done, len(rows))
    with files.replacing(root / "captions.json") as building:
        building.write_text(json.dumps(said, indent=1, sort_keys=True))
    return root


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with files.replacing(path) as building:
        Image.fromarray(pixels).save(building, format="PNG")
