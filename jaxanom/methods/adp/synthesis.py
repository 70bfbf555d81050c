"""Synthetic images of the personalised model: pairs of a normal and an anomaly.

Reconstructed from the abstract; how the paper makes them is not known. Normals and
anomalies are made alike but for the defect, or a detector could tell them apart by the
way they were made: every pair has one base, the normal shows it as it is, and the
anomaly shows it with a region changed.

| part    | source     | how                                                       |
|---------|------------|-----------------------------------------------------------|
| base    | "kept"     | a view of a shot as it is                                 |
| base    | "redrawn"  | such a view noised a little, denoised as a flawless S*    |
| base    | "free"     | drawn from noise as a flawless S*, guided                 |
| anomaly | "redrawn"  | the region noised and denoised as a damaged S*            |
| anomaly | "pasted"   | another place's patch pasted in, redrawn at a low level   |
| anomaly | "misnamed" | the region noised and denoised under a wrong word         |

A pair is scored without its shot in the memory. A kept base asks nothing of the
diffusion model: where its normals are refused, the kept ones are what is tuned on.

What is drawn has the autoencoder's resolution; where the data have more, nothing is
drawn, see `complete.py`. `drawing.py` draws a plan.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxanom.methods.adp import bank, calibration, crops, regions

BASES = ("kept", "redrawn", "free")
ANOMALIES = ("redrawn", "pasted", "misnamed")
WRONG_WORDS = ("carpet", "stone", "paper")
GUIDANCE = 3.0
PURE_NOISE = -1
BASE_LEVELS = {"kept": (0,), "redrawn": (100, 200), "free": (PURE_NOISE,)}
ANOMALY_LEVELS = {
    "redrawn": (400, 550, 700),
    "pasted": (100,),
    "misnamed": (300, 500),
}


class Walk(NamedTuple):
    """One redrawing of N rows.

    Attributes:
      level: [N] int32 noise level; 0 leaves what is there, `PURE_NOISE` nothing of it.
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
      kind: [N] int32, of the base, place in `BASES`.
    """

    view: np.ndarray
    left_out: np.ndarray
    base: Walk
    region: np.ndarray
    patch: np.ndarray
    defect: Walk
    source: np.ndarray
    kind: np.ndarray

    @property
    def is_free(self) -> np.ndarray:
        """[N] bool, the base is "free"."""
        return self.kind == BASES.index("free")


def plan(shots: np.ndarray, num_pairs: int, num_defects: int, seed: int) -> Plan:
    """Draws what to draw; bases take turns, and every kind meets every source.

    Args:
      shots: [K, H, W, 3] float in [0, 1].
      num_pairs: N.
      num_defects: E, kinds of defects that contexts name; their rows come after the
        four of `generative.py`, and wrong words after them.
      seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    salient = [regions.saliency(shot)[..., None].astype(np.float32) for shot in shots]
    side, rows = shots.shape[1], []
    for n in range(num_pairs):
        shot = int(rng.integers(len(shots)))
        box = crops.views(1, calibration.AMOUNT, int(rng.integers(1 << 31)))
        where = crops.crop(salient[shot], box, side)[0, ..., 0] > 0.5
        source = ANOMALIES[n % len(ANOMALIES)]
        kind = BASES[n // len(ANOMALIES) % len(BASES)]
        is_free = kind == "free"
        where = where if where.any() and not is_free else np.ones_like(where)
        rows.append(
            (
                crops.crop(shots[shot], box, side)[0],
                bank.NOBODY if is_free or len(shots) == 1 else shot,
                (rng.choice(BASE_LEVELS[kind]), 0, GUIDANCE if is_free else 1.0),
                regions.draw(where, rng),
                _patch(shots[rng.integers(len(shots))], rng),
                _defect(source, num_defects, rng),
                1 + ANOMALIES.index(source),
                BASES.index(kind),
            )
        )
    view, left_out, base, region, patch, defect, source, kind = zip(*rows, strict=True)
    return Plan(
        view=np.asarray(view, np.float32),
        left_out=np.asarray(left_out, np.int32),
        base=_walk(base),
        region=np.asarray(region, np.uint8),
        patch=np.asarray(patch, np.float32),
        defect=_walk(defect),
        source=np.asarray(source, np.int32),
        kind=np.asarray(kind, np.int32),
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
    level = rng.choice(ANOMALY_LEVELS[source])
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


def context_sentences(wording_defects: Sequence[str]) -> list[str]:
    """Lists the sentences behind the four named ones: defects, then wrong words."""
    defects = [f"a photo of a {defect}" for defect in wording_defects]
    return [*defects, *(f"a photo of a {word}" for word in WRONG_WORDS)]
