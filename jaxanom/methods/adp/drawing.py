"""Draws planned pairs with the personalised model.

A redrawn base is added to a view of the shot as the difference of two decoded images,
and the defect to that as another: the autoencoder's loss cancels, and the image keeps
its own resolution.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.adp import crops, model, synthesis, walks
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Params

DRAW_BATCH = 8
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
    groups = (*synthesis.BASE_LEVELS.values(), *synthesis.ANOMALY_LEVELS.values())
    known = {level for group in groups for level in group} - {synthesis.PURE_NOISE}
    return [*sorted(known), len(towers.alphas_cumprod) - 1]


def drawer(towers: model.Towers, num_steps: int) -> Callable[..., dict[str, Array]]:
    """Makes the jitted function that draws a batch of pairs.

    Args:
      towers: modules.
      num_steps: DDIM moves from every level.

    Returns:
      (params, rows) -> decoded "plain" (the view), "normal" and "anomalous",
      [B, s, s, 3] each. `rows` is a dict of `view`, `region`, `patch`, `is_pasted` and
      `is_free` [B], `null` [B, L, D] and, for both walks, `base` and `defect` dicts of
      `level` (a place in `start_levels`), `context` [B, L, D], `guidance` and `noise`
      [B, h, w, C].
    """
    table = walks.tables(towers.alphas_cumprod, start_levels(towers), num_steps)

    def draw(params, rows):
        def walk(latents, how, mask):
            noise_fn = walks.guided(
                lambda z, t, c: towers.unet(params["unet"], z, t, c),
                how["context"],
                rows["null"],
                how["guidance"],
            )
            moves = walks.rows(table, how["level"])
            return walks.denoise(noise_fn, latents, how["noise"], moves, mask)

        plain = model.moments(towers, params, rows["view"]).mean
        # The highest level still shows what it was made of: a free base has nothing.
        is_free = rows["is_free"][:, None, None, None] > 0.5
        normal = walk(jnp.where(is_free, 0.0, plain), rows["base"], None)
        shown = model.decode(towers, params, normal)
        mask = _cells(rows["region"], plain.shape[1])
        inside = (rows["region"] > 0.5)[..., None]
        pasted = jnp.where(inside, rows["patch"], shown)
        pasted = model.moments(towers, params, pasted).mean
        is_pasted = rows["is_pasted"][:, None, None, None] > 0.5
        begin = jnp.where(is_pasted & (mask > 0.5), pasted, normal)
        drawn = walk(begin, rows["defect"], mask)
        return {
            "plain": model.decode(towers, params, plain),
            "normal": shown,
            "anomalous": model.decode(towers, params, drawn),
        }

    return jax.jit(meshes.bound(draw))


def _cells(region: Array, side: int) -> Array:
    """Brings regions [B, s, s] to the latent grid: any hit counts, [B, h, w, 1]."""
    factor = region.shape[1] // side
    cells = region.reshape(region.shape[0], side, factor, side, factor)
    return cells.max((2, 4))[..., None]


def draw(
    draw_fn: Callable[..., dict[str, Array]],
    towers: model.Towers,
    params: Params,
    contexts: np.ndarray,
    rows: synthesis.Plan,
    seed: int,
) -> Drawn:
    """Draws a plan, batch by batch.

    Args:
      draw_fn: of `drawer`.
      towers, params: see `model.load`.
      contexts: [4 + E + wrong words, L, D]; row 3 is the empty caption.
      rows: see `synthesis.plan`.
      seed: of the noise; row n's noise is a function of (seed, n).
    """
    levels = start_levels(towers)

    def small(images: np.ndarray) -> np.ndarray:
        return np.concatenate([crops.crop(x, _WHOLE, towers.size) for x in images])

    shape = jax.eval_shape(
        lambda image: model.moments(towers, params, image).mean,
        jnp.zeros((1, towers.size, towers.size, 3)),
    ).shape[1:]
    noise = np.stack(
        [
            np.random.default_rng([seed, n]).standard_normal((2, *shape))
            for n in range(len(rows.source))
        ]
    ).astype(np.float32)

    def walk(how: synthesis.Walk, which: int) -> dict[str, np.ndarray]:
        places = {level: place for place, level in enumerate(levels)}
        last = len(levels) - 1
        level = [last if v == synthesis.PURE_NOISE else places[v] for v in how.level]
        return {
            "level": np.asarray(level, np.int32),
            "context": how.context,
            "guidance": how.guidance,
            "noise": noise[:, which],
        }

    pasted = 1 + synthesis.ANOMALIES.index("pasted")
    table = {
        "view": small(rows.view),
        "patch": small(rows.patch),
        "region": (small(rows.region[..., None])[..., 0] > 0.25).astype(np.float32),
        "is_pasted": (rows.source == pasted).astype(np.float32),
        "is_free": rows.is_free.astype(np.float32),
        "base": walk(rows.base, 0),
        "defect": walk(rows.defect, 1),
    }

    def call(numbers: np.ndarray) -> dict[str, Array]:
        batch = jax.tree.map(lambda leaf: leaf[numbers], table)
        for name in ("base", "defect"):
            batch[name]["context"] = contexts[batch[name]["context"]]
        null = np.broadcast_to(contexts[3], (len(numbers), *contexts.shape[1:]))
        return draw_fn(params, {**batch, "null": null})

    found = model.batched(call, DRAW_BATCH, np.arange(len(rows.source)))
    return _composed(rows, found)


def _composed(rows: synthesis.Plan, found: dict[str, np.ndarray]) -> Drawn:
    """Puts what was drawn on the views, at their own resolution."""
    side = rows.view.shape[1]
    normal, anomalous = np.empty_like(rows.view), np.empty_like(rows.view)
    for n, is_free in enumerate(rows.is_free):
        plain, base, defect = (
            found[name][n] for name in ("plain", "normal", "anomalous")
        )
        if is_free:
            normal[n] = crops.crop(base, _WHOLE, side)[0]
        else:
            normal[n] = rows.view[n] + crops.crop(base - plain, _WHOLE, side)[0]
        anomalous[n] = normal[n] + crops.crop(defect - base, _WHOLE, side)[0]
    normal, anomalous = np.clip(normal, 0, 1), np.clip(anomalous, 0, 1)
    return Drawn(normal, anomalous, np.abs(anomalous - normal).mean(-1))
