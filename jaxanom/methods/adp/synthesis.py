"""Synthetic images of the personalised model: normals and masked anomalies.

Reconstructed from the abstract; how the paper makes them is not known. Sources:

| image   | source     | how                                                       |
|---------|------------|-----------------------------------------------------------|
| normal  | "redrawn"  | a shot noised to a low level, denoised as a flawless S*   |
| normal  | "free"     | drawn from noise as a flawless S*, guided                 |
| anomaly | "redrawn"  | a region noised and denoised as a damaged S*              |
| anomaly | "pasted"   | another place's patch pasted in, redrawn at a low level   |
| anomaly | "misnamed" | a region noised and denoised under a wrong word           |

What is drawn from a shot is added to a view of the shot as the difference of two
decoded images, with and without the change: the autoencoder's loss cancels, and the
image keeps its own resolution. Such an image is scored without its shot in the memory.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.adp import bank, calibration, crops, model, regions, walks
from jaxanom.types import Array, Params

NORMAL_SOURCES = ("redrawn", "free")
ANOMALY_SOURCES = ("redrawn", "pasted", "misnamed")
WRONG_WORDS = ("carpet", "stone", "paper")
FREE_GUIDANCE = 3.0
DRAW_BATCH = 8
_LEVELS = {
    "normal": (100, 200),
    "defect": (400, 550, 700),
    "seam": (100,),
    "misnamed": (300, 500),
}


class Plan(NamedTuple):
    """What to draw, N rows on the host.

    Attributes:
      base: [N, H, W, 3] float32 views of shots, pasted patches included.
      view: [N, H, W, 3], the same without patches.
      region: [N, H, W] uint8; all ones redraws the whole image.
      level: [N] int32 noise levels; -1 draws from pure noise.
      context: [N] int32 row of the contexts given to `draw`.
      guidance: [N] float32.
      left_out: [N] int32, the shot a row was made of, or `bank.NOBODY`.
      source: [N] int32; 0 normal, 1 to 3 as `ANOMALY_SOURCES`.
      kind: N names for the record, such as "normal: free".
    """

    base: np.ndarray
    view: np.ndarray
    region: np.ndarray
    level: np.ndarray
    context: np.ndarray
    guidance: np.ndarray
    left_out: np.ndarray
    source: np.ndarray
    kind: list[str]


class Drawn(NamedTuple):
    """Images drawn by a plan.

    Attributes:
      image: [N, H, W, 3] in [0, 1].
      change: [N, H, W], mean absolute difference to the view.
    """

    image: np.ndarray
    change: np.ndarray


def plan(
    shots: np.ndarray,
    num_normal: int,
    num_anomalous: int,
    num_defects: int,
    seed: int,
) -> Plan:
    """Draws what to draw; sources take turns.

    Args:
      shots: [K, H, W, 3] float in [0, 1].
      num_normal, num_anomalous: rows of each kind.
      num_defects: E, kinds of defects that contexts name; their rows come after the
        four of `generative.py`, and wrong words after them.
      seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    salient = [regions.saliency(shot) for shot in shots]
    makers = [
        (0, f"normal: {name}", NORMAL_SOURCES[n % 2])
        for n in range(num_normal)
        for name in (NORMAL_SOURCES[n % 2],)
    ]
    for n in range(num_anomalous):
        which = n % len(ANOMALY_SOURCES)
        name = ANOMALY_SOURCES[which]
        makers.append((which + 1, f"anomaly: {name}", name))
    rows = []
    for source, kind, name in makers:
        number = int(rng.integers(len(shots)))
        box = crops.views(1, calibration.AMOUNT, int(rng.integers(1 << 31)))
        view = crops.crop(shots[number], box, shots.shape[1])[0]
        where = crops.crop(
            salient[number][..., None].astype(np.float32), box, shots.shape[1]
        )
        made = _row(source, name, view, where[0, ..., 0] > 0.5, shots, num_defects, rng)
        alone = len(shots) == 1 or name == "free"
        left_out = bank.NOBODY if alone else number
        rows.append((*made, left_out, source, kind))
    columns = list(zip(*rows, strict=True))
    kinds = ("f4", "f4", "u1", "i4", "i4", "f4", "i4", "i4")
    arrays = [np.asarray(c, k) for c, k in zip(columns[:-1], kinds, strict=True)]
    return Plan(*arrays, list(columns[-1]))


def _row(source, name, view, where, shots, num_defects, rng) -> tuple[Any, ...]:
    """Returns (base, view, region, level, context, guidance) of one row."""
    everything = np.ones(view.shape[:2], np.uint8)
    if source == 0:
        if name == "free":
            return view, view, everything, -1, 0, FREE_GUIDANCE
        level = rng.choice(_LEVELS["normal"])
        return view, view, everything, level, 0, 1.0
    where = where if where.any() else np.ones_like(where)
    region = regions.draw(where, rng)
    if name == "pasted":
        base = _pasted(view, region, shots[rng.integers(len(shots))], rng)
        return base, view, region, _LEVELS["seam"][0], 0, 1.0
    if name == "misnamed":
        context = 4 + num_defects + rng.integers(len(WRONG_WORDS))
        return view, view, region, rng.choice(_LEVELS["misnamed"]), context, 3.0
    context = rng.choice([2, *range(4, 4 + num_defects)])
    return view, view, region, rng.choice(_LEVELS["defect"]), context, 3.0


def _pasted(view, region, other, rng) -> np.ndarray:
    """CutPaste (arXiv 2104.04015): another place's pixels inside the region.

    Turned, and a little lighter or darker, so that a texture too shows the patch.
    """
    size = region.shape
    turned = np.rot90(other, int(rng.integers(1, 4)))
    if turned.shape != other.shape:
        turned = other[::-1, ::-1]
    shift = [int(rng.integers(n // 4, 3 * n // 4 + 1)) for n in size]
    light = 1 + rng.choice([-1, 1]) * rng.uniform(0.1, 0.4)
    patch = np.clip(np.roll(turned, shift, (0, 1)) * light, 0, 1)
    return np.where(region[..., None] > 0, patch, view)


def drawer(towers: model.Towers, num_steps: int) -> Callable[..., tuple[Array, Array]]:
    """Makes the jitted function that draws a batch.

    Args:
      towers: modules.
      num_steps: DDIM moves from every level.

    Returns:
      (params, base [B, s, s, 3], view, region [B, s, s], level [B] (a place in
      `start_levels`), context, null [B, L, D], guidance [B], noise [B, h, w, C]) ->
      decoded (drawn, view), [B, s, s, 3] each.
    """
    table = walks.tables(towers.alphas_cumprod, start_levels(towers), num_steps)

    def draw(params, base, view, region, level, context, null, guidance, noise):
        latents = model.moments(towers, params, base).mean
        plain = model.moments(towers, params, view).mean
        side = latents.shape[1]
        cells = region.reshape(region.shape[0], side, -1, side, region.shape[2] // side)
        mask = cells.max((2, 4))[..., None]
        noise_fn = walks.guided(
            lambda z, t, c: towers.unet(params["unet"], z, t, c),
            context,
            null,
            guidance,
        )
        moves = walks.rows(table, level)
        drawn = walks.denoise(noise_fn, latents, noise, moves, mask)
        return model.decode(towers, params, drawn), model.decode(towers, params, plain)

    return jax.jit(draw)


def start_levels(towers: model.Towers) -> list[int]:
    """Lists the noise levels that plans use, and the highest of all, last."""
    known = sorted({level for group in _LEVELS.values() for level in group})
    return [*known, len(towers.alphas_cumprod) - 1]


def draw(
    draw_fn: Callable[..., tuple[Array, Array]],
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
    size, levels = towers.size, start_levels(towers)
    whole = np.array([0, 0, 1, 1], np.float32)[None]

    def small(images: np.ndarray) -> np.ndarray:
        return np.concatenate([crops.crop(image, whole, size) for image in images])

    base, view = small(rows.base), small(rows.view)
    region = (small(rows.region[..., None].astype(np.float32))[..., 0] > 0.25).astype(
        np.float32
    )
    highest = len(levels) - 1
    level = np.array([levels.index(v) if v >= 0 else highest for v in rows.level])
    shape = jax.eval_shape(
        lambda image: model.moments(towers, params, image).mean, jnp.asarray(view[:1])
    ).shape[1:]
    noise = np.stack(
        [
            np.random.default_rng([seed, n]).standard_normal(shape).astype(np.float32)
            for n in range(len(level))
        ]
    )

    def call(base, view, region, level, context, guidance, noise):
        null = np.broadcast_to(contexts[3], (len(level), *contexts.shape[1:]))
        return draw_fn(
            params,
            base,
            view,
            region,
            level,
            contexts[context],
            null,
            guidance,
            noise,
        )

    drawn, plain = model.batched(
        call, DRAW_BATCH, base, view, region, level, rows.context, rows.guidance, noise
    )
    return _composed(rows, drawn, plain)


def _composed(rows: Plan, drawn: np.ndarray, plain: np.ndarray) -> Drawn:
    """Puts what was drawn on the views, at their own resolution."""
    whole = np.array([0, 0, 1, 1], np.float32)[None]
    side = rows.view.shape[1]
    images = np.empty_like(rows.view)
    for n, (new, old) in enumerate(zip(drawn, plain, strict=True)):
        if rows.level[n] < 0:
            images[n] = crops.crop(new, whole, side)[0]
        else:
            images[n] = rows.view[n] + crops.crop(new - old, whole, side)[0]
    images = np.clip(images, 0, 1)
    return Drawn(images, np.abs(images - rows.view).mean(-1))


def context_sentences(wording_defects: Sequence[str]) -> list[str]:
    """Lists the sentences behind the four named ones: defects, then wrong words."""
    defects = [f"a photo of a {defect}" for defect in wording_defects]
    return [*defects, *(f"a photo of a {word}" for word in WRONG_WORDS)]
