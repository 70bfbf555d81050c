"""The plan of a generated set: which normal image gets which defect, and where."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.data import canvas, catalog, images
from jaxanom.errors import UserError
from jaxanom.methods.defect_generation import context, placement
from jaxanom.methods.defect_generation.context import Marked

_OBJECT_SEEN = 0.6  # least share of the usual area at which an object counts as seen
_LOOKED_AT = 32  # normal images that tell whether a product is an object

Pair = tuple[str, str]
"""(category, defect type)."""


class Request(NamedTuple):
    """One pair to generate.

    Attributes:
      number: Place k in the plan, which seeds its noise.
      category, defect_type: What to draw.
      normal: Record number of the normal image to draw it on.
      mask: [H, W] uint8, where.
    """

    number: int
    category: str
    defect_type: str
    normal: int
    mask: np.ndarray


class Rule(NamedTuple):
    """How masks are placed.

    Attributes:
      placement: "context" asks the image where a training mask may lie (`context`);
        "uniform" flips and shifts it without a look at the image, p(m) as the paper
        has it.
      orientation_fixed: Categories whose masks are neither flipped nor turned.
      masks: Folder of masks that are taken as they are, see `read_masks`; "" takes
        those of the training defects.
    """

    placement: str = "context"
    orientation_fixed: tuple[str, ...] = ()
    masks: str = ""


def plan(
    dataset: catalog.Dataset,
    num_images: int,
    seed: int,
    per_image: int = 1,
    rule: Rule | None = None,
) -> list[Request]:
    """Chooses images, defect types and masks; entry k depends on (seed, k) alone.

    Every (category, defect type) with a mask takes its turn. Masks come from that
    pair's own training defects; each normal image is equally likely.

    Args:
      dataset: The training part.
      num_images: Length of the plan.
      seed: Decides all draws.
      per_image: Entries in a row that share all but their number, and so one inversion.
      rule: How masks are placed; by default by context.

    Raises:
      UserError: No training defect has a mask, or a given mask does not fit.
    """
    draws = _draws(dataset, seed, rule or Rule())
    pairs, requests = list(draws), []
    for number in range(num_images):
        place = number // per_image
        turn, which = divmod(place, len(pairs))
        if number % per_image == 0:
            normal, mask = draws[pairs[which]](place, turn)
        requests.append(Request(number, *pairs[which], normal, mask))
    return requests


def _draws(
    dataset: catalog.Dataset, seed: int, rule: Rule
) -> dict[Pair, Callable[[int, int], tuple[int, np.ndarray]]]:
    """Returns {pair: (place in the plan, turn of the pair) -> (normal image, mask)}."""
    normals = {
        category: catalog.select(dataset, None, category, anomalous=False)
        for category in dataset.categories
    }

    def normal_at(category: str, place: int) -> int:
        numbers = normals[category]
        return numbers[np.random.default_rng([seed, place]).integers(len(numbers))]

    if rule.masks:
        given = read_masks(rule.masks, dataset)

        def as_they_are(pair, place, turn):
            return normal_at(pair[0], place), given[pair][turn % len(given[pair])]

        return {pair: functools.partial(as_they_are, pair) for pair in given}

    key = jax.random.key(seed)
    defects = _defects(dataset)
    banks = {
        pair: jnp.asarray(
            placement.mask_bank([dataset.load(dataset.records[n])[1] for n in numbers])
        )
        for pair, numbers in defects.items()
    }

    def anywhere(number, pair, place, turn):
        keys = jax.random.fold_in(jax.random.fold_in(key, number), turn)[None]
        mask = np.asarray(_draw_one_each(banks[pair], keys)[0], np.uint8)
        return normal_at(pair[0], place), mask

    def where_it_belongs(pair, scene, place, turn):
        del turn
        rng = np.random.default_rng([seed, place])
        normal = scene.normals[rng.integers(len(scene.normals))]
        is_fixed = pair[0] in rule.orientation_fixed
        tried = []
        for number in rng.permutation(defects[pair]):
            marked = scene.marked(number)
            tried.append(context.place(marked, scene.objects(normal), rng, is_fixed))
            if tried[-1][1] < context.DISAGREES:
                break
        mask, _ = min(tried, key=lambda one: one[1])
        return normal, mask.astype(np.uint8)

    draws = {}
    for number, pair in enumerate(defects):
        draws[pair] = functools.partial(anywhere, number, pair)
    if rule.placement == "context":
        for category in dict.fromkeys(category for category, _ in defects):
            scene = _scene(dataset, normals[category])
            if scene is not None:
                for pair in defects:
                    if pair[0] == category:
                        draws[pair] = functools.partial(where_it_belongs, pair, scene)
    return draws


class Scene(NamedTuple):
    """A product that is an object on a background.

    Attributes:
      normals: Numbers of the normal images in which the object is seen.
      objects: Record number -> object map [H, W], see `context.object_map`.
      marked: Number of a training defect -> its mask on its object.
    """

    normals: list[int]
    objects: Callable[[int], np.ndarray]
    marked: Callable[[int], Marked]


def _scene(dataset: catalog.Dataset, normals: list[int]) -> Scene | None:
    """Looks at the normal images of a product; None for a texture."""

    @functools.cache
    def objects(number: int) -> np.ndarray:
        return context.object_map(dataset.load(dataset.records[number])[0] / 255)

    def marked(number: int) -> Marked:
        return Marked(dataset.load(dataset.records[number])[1] > 0, objects(number))

    few = normals[:: -(-len(normals) // _LOOKED_AT)]
    if not context.shows_object([objects(number) for number in few]):
        return None
    least = _OBJECT_SEEN * np.median([objects(number).mean() for number in few])
    seen = [number for number in normals if objects(number).mean() > least]
    return Scene(seen, objects, marked)


def read_masks(
    directory: str | Path, dataset: catalog.Dataset
) -> dict[Pair, list[np.ndarray]]:
    """Reads a user's own masks: DIR/<defect type>/*.png, or with categories around.

    Args:
      directory: The folder.
      dataset: Its categories and defect types are known; masks are brought to its size.

    Returns:
      {(category, defect type): masks [H, W] uint8 in the order of their names}.

    Raises:
      UserError: No mask of a known defect type, or an empty one.
    """
    root, masks = Path(directory).expanduser(), {}
    fit = canvas.fit_mask if dataset.keeps_aspect else images.resize_mask
    for category in dataset.categories:
        inner = root / category
        if not inner.is_dir():
            inner = root if len(dataset.categories) == 1 else inner
        for defect_type in dataset.defect_types[1:]:
            files = sorted(
                path
                for path in (inner / defect_type).glob("*")
                if path.suffix.lower() in images.SUFFIXES
            )
            for file in files:
                mask = images.load_mask([file])
                fitted = fit(mask, dataset.image_size)
                if not fitted.any():
                    raise UserError(f"{file} marks nothing; wanted a defect's pixels")
                masks.setdefault((category, defect_type), []).append(fitted)
    if not masks:
        raise UserError(
            f"config.generate.masks={directory} has no mask of a known defect type; "
            f"wanted <defect type>/*.png with defect types "
            f"{', '.join(dataset.defect_types[1:])}, in a folder of the category's "
            "name where there are several"
        )
    return masks


def _defects(dataset: catalog.Dataset) -> dict[Pair, list[int]]:
    """Returns {pair: numbers of its training defects with a mask}; others miss.

    Raises:
      UserError: There is none.
    """
    defects = {}
    for category in dataset.categories:
        for defect_type in dataset.defect_types[1:]:
            numbers = [
                number
                for number in catalog.select(dataset, None, category, defect_type)
                if dataset.load(dataset.records[number])[1].any()
            ]
            if numbers:
                defects[category, defect_type] = numbers
    if not defects:
        placement.mask_bank(())  # raises, and says what is missing
    return defects


@jax.jit
def _draw_one_each(bank: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws one mask [H, W] per key, [N, H, W]."""
    return jax.vmap(lambda key: placement.draw_masks(bank, 1, key)[0])(keys)
