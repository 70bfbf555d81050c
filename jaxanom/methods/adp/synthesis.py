"""Synthetic images of the personalised model: pairs of a normal and an anomaly.

Reconstructed from the abstract; how the paper makes them is not known. Normals and
anomalies are made alike but for the defect, or a detector could tell them apart by the
way they were made: every pair has one base, the normal shows it as it is, and the
anomaly shows it with a region changed.

| part    | source     | how                                                       |
|---------|------------|-----------------------------------------------------------|
| base    | "redrawn"  | a shot noised to a low level, denoised as a flawless S*   |
| base    | "free"     | drawn from noise as a flawless S*, guided                 |
| anomaly | "redrawn"  | the region noised and denoised as a damaged S*            |
| anomaly | "pasted"   | another place's patch pasted in, redrawn at a low level   |
| anomaly | "misnamed" | the region noised and denoised under a wrong word         |

A redrawn base is added to a view of the shot as the difference of two decoded images,
so that the autoencoder's loss cancels and the image keeps its own resolution; it is
scored without its shot in the memory. A free base has the autoencoder's resolution,
and is drawn only where the data have it too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.adp import bank, calibration, crops, model, regions, walks
from jaxanom.types import Array, Params

BASES = ("redrawn", "free")
ANOMALIES = ("redrawn", "pasted", "misnamed")
WRONG_WORDS = ("carpet", "stone", "paper")
GUIDANCE = 3.0
DRAW_BATCH = 8
FREE_EVERY = 4
"""One base in so many is free, where free ones are drawn."""
_LEVELS = {
    "base": (100, 200),
    "redrawn": (400, 550, 700),
    "pasted": (100,),
    "misnamed": (300, 500),
}
_WHOLE = np.array([[0, 0, 1, 1]], np.float32)


class Walk(NamedTuple):
    """One redrawing of N rows.

    Attributes:
      level: [N] int32 noise level; -1 is pure noise.
      context: [N] int32 row of the contexts.
      guidance: [N] float32.
    """

    level: np.ndarray
    context: np.ndarray
    guidance: np.ndarray


class Plan(NamedTuple):
    """What to draw, N pairs on the host.

    Attributes:
      view: [N, H, W, 3] float32, views of shots.
      left_out: [N] int32, the shot a pair was made of, or `bank.NOBODY`.
      base: how the base is drawn.
      region: [N, H, W] uint8, where the anomaly is.
      patch: [N, H, W, 3], what is pasted there; used where `source` says so.
      defect: how the anomaly is drawn.
      source: [N] int32, 1 to 3 as `ANOMALIES`.
      is_free: [N] bool, the base is "free".
    """

    view: np.ndarray
    left_out: np.ndarray
    base: Walk
    region: np.ndarray
    patch: np.ndarray
    defect: Walk
    source: np.ndarray
    is_free: np.ndarray


class Drawn(NamedTuple):
    """Images of N pairs.

    Attributes:
      normal, anomalous: [N, H, W, 3] in [0, 1].
      change: [N, H, W], mean absolute difference of the two.
    """

    normal: np.ndarray
    anomalous: np.ndarray
    change: np.ndarray


def plan(
    shots: np.ndarray, num_pairs: int, num_defects: int, draws_free: bool, seed: int
) -> Plan:
    """Draws what to draw; sources take turns.

    Args:
      shots: [K, H, W, 3] float in [0, 1].
      num_pairs: N.
      num_defects: E, kinds of defects that contexts name; their rows come after the
        four of `generative.py`, and wrong words after them.
      draws_free: whether some bases are free.
      seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    salient = [regions.saliency(shot)[..., None].astype(np.float32) for shot in shots]
    side, rows = shots.shape[1], []
    for n in range(num_pairs):
        shot = int(rng.integers(len(shots)))
        box = crops.views(1, calibration.AMOUNT, int(rng.integers(1 << 31)))
        where = crops.crop(salient[shot], box, side)[0, ..., 0] > 0.5
        is_free = draws_free and n % FREE_EVERY == FREE_EVERY - 1
        where = where if where.any() and not is_free else np.ones_like(where)
        low = -1 if is_free else rng.choice(_LEVELS["base"])
        source = n % len(ANOMALIES)
        rows.append(
            (
                crops.crop(shots[shot], box, side)[0],
                bank.NOBODY if is_free or len(shots) == 1 else shot,
                (low, 0, GUIDANCE if is_free else 1.0),
                regions.draw(where, rng),
                _patch(shots[rng.integers(len(shots))], rng),
                _defect(ANOMALIES[source], num_defects, rng),
                source + 1,
                is_free,
            )
        )
    view, left_out, base, region, patch, defect, source, free = zip(*rows, strict=True)
    return Plan(
        view=np.asarray(view, np.float32),
        left_out=np.asarray(left_out, np.int32),
        base=_walk(base),
        region=np.asarray(region, np.uint8),
        patch=np.asarray(patch, np.float32),
        defect=_walk(defect),
        source=np.asarray(source, np.int32),
        is_free=np.asarray(free, bool),
    )


def _walk(rows: Sequence[tuple[Any, Any, Any]]) -> Walk:
    level, context, guidance = zip(*rows, strict=True)
    return Walk(
        np.asarray(level, np.int32),
        np.asarray(context, np.int32),
        np.asarray(guidance, np.float32),
    )


def _defect(source: str, num_defects: int, rng: Any) -> tuple[int, int, float]:
    """Returns (level, context, guidance) of one anomaly."""
    level = rng.choice(_LEVELS[source])
    if source == "pasted":
        return level, 0, 1.0
    if source == "misnamed":
        return level, 4 + num_defects + rng.integers(len(WRONG_WORDS)), GUIDANCE
    return level, rng.choice([2, *range(4, 4 + num_defects)]), GUIDANCE


def _patch(shot: np.ndarray, rng: Any) -> np.ndarray:
    """Returns a shot turned, shifted and made a little lighter or darker.

    CutPaste (arXiv 2104.04015) takes a patch as it is; the change of light shows it in
    a texture too.
    """
    turned = np.rot90(shot, int(rng.integers(1, 4)))
    shift = [int(rng.integers(n // 4, 3 * n // 4 + 1)) for n in shot.shape[:2]]
    light = 1 + rng.choice([-1, 1]) * rng.uniform(0.1, 0.4)
    return np.clip(np.roll(turned, shift, (0, 1)) * light, 0, 1)


def start_levels(towers: model.Towers) -> list[int]:
    """Lists the noise levels that plans use, and the highest of all, last."""
    known = sorted({level for group in _LEVELS.values() for level in group})
    return [*known, len(towers.alphas_cumprod) - 1]


def drawer(towers: model.Towers, num_steps: int) -> Callable[..., dict[str, Array]]:
    """Makes the jitted function that draws a batch of pairs.

    Args:
      towers: modules.
      num_steps: DDIM moves from every level.

    Returns:
      (params, rows) -> decoded "plain" (the view), "normal" and "anomalous",
      [B, s, s, 3] each. `rows` is a dict of `view`, `region`, `patch`, `is_pasted` [B],
      `null` [B, L, D] and, for both walks, `base` and `defect` dicts of `level` (a
      place in `start_levels`), `context` [B, L, D], `guidance`, `noise` [B, h, w, C].
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
        normal = walk(plain, rows["base"], None)
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

    return jax.jit(draw)


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
    rows: Plan,
    seed: int,
) -> Drawn:
    """Draws a plan, batch by batch.

    Args:
      draw_fn: of `drawer`.
      towers, params: see `model.load`.
      contexts: [4 + E + wrong words, L, D]; row 3 is the empty caption.
      rows: see `plan`.
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

    def walk(how: Walk, which: int) -> dict[str, np.ndarray]:
        level = [levels.index(v) if v >= 0 else len(levels) - 1 for v in how.level]
        return {
            "level": np.asarray(level, np.int32),
            "context": how.context,
            "guidance": how.guidance,
            "noise": noise[:, which],
        }

    table = {
        "view": small(rows.view),
        "patch": small(rows.patch),
        "region": (small(rows.region[..., None])[..., 0] > 0.25).astype(np.float32),
        "is_pasted": (rows.source == 1 + ANOMALIES.index("pasted")).astype(np.float32),
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


def _composed(rows: Plan, found: dict[str, np.ndarray]) -> Drawn:
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


def context_sentences(wording_defects: Sequence[str]) -> list[str]:
    """Lists the sentences behind the four named ones: defects, then wrong words."""
    defects = [f"a photo of a {defect}" for defect in wording_defects]
    return [*defects, *(f"a photo of a {word}" for word in WRONG_WORDS)]
