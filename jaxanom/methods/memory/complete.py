"""Fills the memory from the shots, and scores each shot as if it had not been seen."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom import trees
from jaxanom.methods.memory import bank, gaussian, predict
from jaxanom.methods.memory.options import Options
from jaxanom.methods.memory.views import Views, copies, num_copies
from jaxanom.models.features import patches
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Frozen, Params, PRNGKey

LOOK_BATCH = 4
SMALLEST_LEVEL = 1e-4
"""Of views in which normal patches do not differ at all, such as of blank images."""


class Memory(NamedTuple):
    """What is known before a shot is looked at.

    Attributes:
      options: `config.memory`.
      views: The tower's.
      categories: T names.
      shots: [K, H, W, 3] in [0, 1] of every category.
    """

    options: Options
    views: Views
    categories: tuple[str, ...]
    shots: tuple[np.ndarray, ...]

    @property
    def slots(self) -> int:
        """Shots of the category with the most."""
        return max(map(len, self.shots))


def blank(memory: Memory) -> Params:
    """Parameters of the shapes that `make` fills, without a look at any image."""
    options, count = memory.options, len(memory.categories)
    size = memory.shots[0].shape[1:3]
    times = memory.slots * num_copies(size, options.turns, options.mirrors)
    views = {}
    for number, (height, width, depth) in enumerate(memory.views.shapes):
        if options.kind == "padim":
            depth = min(depth, options.dimensions)
            grid = (count, height, width, depth)
            view = {"mean": jnp.zeros(grid), "whitening": jnp.zeros((*grid, depth))}
        else:
            rows = bank.size(
                times * height * width, options.coreset, options.most_patches
            )
            owners = jnp.full((count, rows), patches.PADDING, jnp.int32)
            view = {"features": jnp.zeros((count, rows, depth)), "owners": owners}
        views[str(number)] = {**view, "level": jnp.ones(count)}
    scores = jnp.full((count, memory.slots), jnp.nan)
    return {"views": views, "cut": jnp.zeros(count), "normal_scores": scores}


def make(
    memory: Memory,
) -> Callable[[Params, Frozen, PRNGKey], tuple[Params, dict[str, Any]]]:
    """Makes `Method.complete`."""
    look = jax.jit(meshes.bound(memory.views.look))
    score = jax.jit(
        meshes.bound(
            lambda *inputs: predict.scores(memory.options, *inputs)[1],
        )
    )

    def complete(params: Params, frozen: Frozen, key: PRNGKey):
        del key  # the shots decide everything
        tower, facts = frozen["tower"], {}
        looks = []
        for number, shots in enumerate(memory.shots):
            turned = _turned(memory, look, tower, shots)
            looks.append(turned[0][0])
            params = filled(memory, params, number, turned)
        for number, name in enumerate(memory.categories):
            scores = _left_out(memory, score, params, number, looks[number])
            row = np.full(memory.slots, np.nan, np.float32)
            row[: len(scores)] = scores
            stored = jnp.asarray(params["normal_scores"]).at[number].set(row)
            params = {**params, "normal_scores": stored}
            facts[name] = _facts(memory, params, number, scores)
        return params, {"memory": facts}

    return complete


def normal_scores(params: Params, number: int) -> np.ndarray:
    """Image scores of a category's shots, each left out of the memory; none of one."""
    row = np.asarray(params["normal_scores"][number])
    return row[np.isfinite(row)]


def _look(look: Callable, tower: Params, images: np.ndarray) -> list[np.ndarray]:
    return list(trees.batched(lambda rows: look(tower, rows), LOOK_BATCH, images))


def _turned(
    memory: Memory, look: Callable, tower: Params, shots: np.ndarray
) -> list[tuple[list[np.ndarray], np.ndarray]]:
    options = memory.options
    return [
        (_look(look, tower, images), owners)
        for images, owners in copies(shots, options.turns, options.mirrors)
    ]


def filled(
    memory: Memory,
    params: Params,
    number: int,
    turned: Sequence[tuple[Sequence[np.ndarray], np.ndarray]],
) -> Params:
    """Writes what is remembered of one category.

    Args:
      memory: Its options are read.
      params: What `blank` returned, or this function of another category.
      number: The category.
      turned: (one [K, h, w, D] a view, owners [K]) of the shots as they are, which come
        first, and of each kind of copy.

    Returns:
      Params with the banks or Gaussians, levels and the cut of this category.
    """
    options, looks = memory.options, turned[0][0]
    views = {}
    for place, array in enumerate(looks):
        old = params["views"][str(place)]
        if options.kind == "padim":
            new, level = _fitted(options, array, np.ones(len(array))), 1.0
        else:
            cells, depth = array.shape[1] * array.shape[2], array.shape[3]
            rows = [one[place].reshape(-1, depth) for one, _ in turned]
            owners = [np.repeat(owner, cells) for _, owner in turned]
            num_entries = old["features"].shape[1]
            new = bank.fill(
                np.concatenate(rows), np.concatenate(owners), num_entries
            )._asdict()
            level = _level(options, array)
        views[str(place)] = _put(old, number, {**new, "level": level})
    cut = 0.0
    if options.foreground:
        cut = otsu(np.asarray(predict.frame_distance(jnp.asarray(looks[0]))))
    cuts = jnp.asarray(params["cut"]).at[number].set(cut)
    return {**params, "views": views, "cut": cuts}


def _level(options: Options, array: np.ndarray) -> float:
    if not options.calibrate:
        return 1.0
    return max(float(jnp.mean(bank.apart(jnp.asarray(array)))), SMALLEST_LEVEL)


def _fitted(options: Options, array: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    kept = gaussian.kept_dimensions(array.shape[-1], options.dimensions)
    return gaussian.fit(
        jnp.asarray(array[..., kept]), jnp.asarray(weight), options.shrinkage
    )._asdict()


def _put(old: Params, number: int, new: Params) -> Params:
    """Writes one category's row of every entry."""
    return {
        name: jnp.asarray(old[name]).at[number].set(jnp.asarray(value))
        for name, value in new.items()
    }


def _left_out(
    memory: Memory,
    score: Callable,
    params: Params,
    number: int,
    looks: Sequence[np.ndarray],
) -> np.ndarray:
    """Image scores of the shots, each as if it had not been seen; none of one shot."""
    count = len(memory.shots[number])
    if count == 1:
        return np.zeros(0, np.float32)
    scores = []
    for shot in range(count):
        seen = params
        if memory.options.kind == "padim":
            views = {}
            for place, array in enumerate(looks):
                old = params["views"][str(place)]
                new = _fitted(memory.options, array, np.arange(count) != shot)
                views[str(place)] = {**old, **_put(old, number, new)}
            seen = {**params, "views": views}
        rows = [jnp.asarray(array[shot : shot + 1]) for array in looks]
        category, owner = jnp.int32([number]), jnp.int32([shot])
        scores.append(float(score(seen, rows, category, owner)[0]))
    return np.float32(scores)


def otsu(values: np.ndarray) -> float:
    """Threshold that parts values into two classes with the least spread inside."""
    ordered = np.sort(values.ravel().astype(np.float64))
    count = np.arange(1, len(ordered))
    below = np.cumsum(ordered)[:-1]
    above = ordered.sum() - below
    rest = len(ordered) - count
    between = count * rest * (below / count - above / rest) ** 2
    return float(ordered[int(np.argmax(between)) + 1])


def _facts(
    memory: Memory, params: Params, number: int, scores: np.ndarray
) -> dict[str, Any]:
    """What the record says of a category."""
    facts: dict[str, Any] = {"normal_images": len(memory.shots[number])}
    for place, name in enumerate(memory.views.names):
        view = params["views"][str(place)]
        kept = {"level": float(view["level"][number])}
        if "owners" in view:
            kept["patches"] = int((view["owners"][number] != patches.PADDING).sum())
        facts[name] = kept
    if len(scores):
        facts["left_out_scores"] = [round(float(x), 6) for x in np.sort(scores)]
        facts["smallest_false_alarm_rate"] = round(1 / (len(scores) + 1), 4)
    else:
        facts["threshold"] = "none: one image cannot be left out and compared"
    return facts
