"""Draws planned pairs with the personalised model.

A redrawn base is added to a view of the shot as the difference of two decoded images,
and the defect to that as another: the autoencoder's loss cancels, and the image keeps
its own resolution.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jaxanom import trees
from jaxanom.diffusion import walks
from jaxanom.methods.adp import model
from jaxanom.methods.adp.channels import generative
from jaxanom.methods.adp.memory import crops
from jaxanom.methods.adp.tuning import pairs
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Params

DRAW_BATCH = 8
SLOTS = 16
"""Evaluations of the UNet side by side; even, for the pairs of `walks.paired`."""
_WHOLE = np.array([[0, 0, 1, 1]], np.float32)


class Drawn(NamedTuple):
    """Images of N pairs.

    Attributes:
      normal, anomalous: [N, H, W, 3] in [0, 1].
      change: [N, H, W], mean absolute difference of the two.
    """

    normal: np.ndarray
    anomalous: np.ndarray
    change: np.ndarray


def start_levels(towers: model.Towers) -> list[int]:
    """Lists the noise levels that plans use, and the highest of all, last."""
    groups = (*pairs.BASE_LEVELS.values(), *pairs.ANOMALY_LEVELS.values())
    known = {level for group in groups for level in group} - {pairs.PURE_NOISE}
    return [*sorted(known), len(towers.alphas_cumprod) - 1]


class Drawer(NamedTuple):
    """Jitted steps of drawing; each is compiled once, for batches of one shape.

    Attributes:
      encode: (params, images [B, s, s, 3]) -> mean latents [B, h, w, C].
      walk: (params, slots) -> clean latents [SLOTS, h, w, C], see `walks.paired`.
        `slots` is a dict of `latents` and `noise` [SLOTS, h, w, C], `mask`
        [SLOTS, h, w, 1], `level` (a place in `start_levels`), `context` [SLOTS, L, D]
        and `share`.
      decode: (params, latents) -> images [B, s, s, 3] in [0, 1].
    """

    encode: Callable[..., Array]
    walk: Callable[..., Array]
    decode: Callable[..., Array]


def drawer(towers: model.Towers, num_steps: int) -> Drawer:
    """Makes the jitted steps.

    Args:
      towers: modules.
      num_steps: DDIM moves from every level.
    """
    table = walks.tables(towers.alphas_cumprod, start_levels(towers), num_steps)

    def encode(params, images):
        return model.moments(towers, params, images).mean

    def walk(params, slots):
        noise_fn = walks.paired(
            model.noise_fn(towers, params, slots["context"]), slots["share"]
        )
        moves = walks.rows(table, slots["level"])
        return walks.denoise(
            noise_fn, slots["latents"], slots["noise"], moves, slots["mask"]
        )

    def decode(params, latents):
        return model.decode(towers, params, latents)

    return Drawer(*(jax.jit(meshes.bound(step)) for step in (encode, walk, decode)))


def draw(
    steps: Drawer,
    towers: model.Towers,
    params: Params,
    contexts: np.ndarray,
    rows: pairs.Plan,
    seed: int,
) -> Drawn:
    """Draws a plan.

    Args:
      steps: What `drawer` returned.
      towers, params: see `model.load`.
      contexts: [4 + E + wrong words, L, D]; row `generative.EMPTY` has no
        caption.
      rows: see `pairs.plan`.
      seed: Decides the noise; row n's noise is a function of (seed, n).
    """

    def small(images: np.ndarray) -> np.ndarray:
        return np.concatenate([crops.crop(x, _WHOLE, towers.size) for x in images])

    def encode(images: np.ndarray) -> np.ndarray:
        return trees.batched(partial(steps.encode, params), DRAW_BATCH, images)

    def decode(latents: np.ndarray) -> np.ndarray:
        return trees.batched(partial(steps.decode, params), DRAW_BATCH, latents)

    plain = encode(small(rows.view))
    noise = np.stack(
        [
            np.random.default_rng([seed, n]).standard_normal((2, *plain.shape[1:]))
            for n in range(len(plain))
        ]
    ).astype(np.float32)
    walk = partial(_walk, steps, towers, params, contexts)
    # The highest level still shows what it was made of: a free base has nothing.
    start = np.where(rows.is_free[:, None, None, None], 0, plain)
    normal = walk(rows.base, start, noise[:, 0], np.ones_like(plain[..., :1]))
    view = decode(normal)
    region = small(rows.region[..., None]) > 0.25
    mask = _cells(region, plain.shape[1])
    is_pasted = rows.source == 1 + pairs.ANOMALIES.index("pasted")
    begin = normal.copy()
    if is_pasted.any():
        images = np.where(region, small(rows.patch), view)[is_pasted]
        begin[is_pasted] = np.where(mask[is_pasted], encode(images), normal[is_pasted])
    drawn = walk(rows.defect, begin, noise[:, 1], mask.astype(np.float32))
    unchanged = view.copy()  # a kept base is its own view, and a free one has none
    is_redrawn = rows.kind == pairs.BASES.index("redrawn")
    if is_redrawn.any():
        unchanged[is_redrawn] = decode(plain[is_redrawn])
    return _composed(rows, unchanged, view, decode(drawn))


def _walk(
    steps: Drawer,
    towers: model.Towers,
    params: Params,
    contexts: np.ndarray,
    how: pairs.Walk,
    latents: np.ndarray,
    noise: np.ndarray,
    mask: np.ndarray,
) -> np.ndarray:
    """Redraws rows; one at level 0 stays as it is and costs nothing.

    A guided row takes two slots, one with its caption and one with the empty one; they
    go first, so that a pair never parts.
    """
    levels = start_levels(towers)
    places = {level: place for place, level in enumerate(levels)}
    places[pairs.PURE_NOISE] = len(levels) - 1
    moves, guided = how.level != 0, how.guidance != 1
    once = np.flatnonzero(moves & ~guided)
    twice = np.repeat(np.flatnonzero(moves & guided), 2)
    row = np.concatenate([twice, once])
    if not len(row):
        return latents
    is_empty = np.zeros(len(row), bool)
    is_empty[1 : len(twice) : 2] = True
    scale = how.guidance[row]
    context = np.where(is_empty, generative.EMPTY, how.context[row])
    share = np.where(is_empty, 1 - scale, scale)
    level = np.asarray([places[n] for n in how.level[row]], np.int32)

    def call(row, level, context, share):
        slots = {
            "latents": latents[row],
            "noise": noise[row],
            "mask": mask[row],
            "level": level,
            "context": contexts[context],
            "share": share,
        }
        return steps.walk(params, slots)

    walked = latents.copy()
    walked[row] = trees.batched(
        call, SLOTS, row, level, context, share
    )  # both slots of a pair hold the same
    return walked


def _cells(region: np.ndarray, side: int) -> np.ndarray:
    """Brings regions [B, s, s, 1] to the latent grid: any hit counts, [B, h, w, 1]."""
    factor = region.shape[1] // side
    return region.reshape(len(region), side, factor, side, factor, 1).any((2, 4))


def _composed(
    rows: pairs.Plan, plain: np.ndarray, bases: np.ndarray, defects: np.ndarray
) -> Drawn:
    """Puts what was drawn on the views, at their own resolution."""
    side = rows.view.shape[1]
    normal, anomalous = np.empty_like(rows.view), np.empty_like(rows.view)
    for n, is_free in enumerate(rows.is_free):
        base, defect = bases[n], defects[n]
        if is_free:
            normal[n] = crops.crop(base, _WHOLE, side)[0]
        else:
            normal[n] = rows.view[n] + crops.crop(base - plain[n], _WHOLE, side)[0]
        anomalous[n] = normal[n] + crops.crop(defect - base, _WHOLE, side)[0]
    normal, anomalous = np.clip(normal, 0, 1), np.clip(anomalous, 0, 1)
    return Drawn(normal, anomalous, np.abs(anomalous - normal).mean(-1))
