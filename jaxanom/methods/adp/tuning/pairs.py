"""Synthetic pairs of a normal and an anomaly: planned, and judged once drawn.

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
drawn, see `complete.py`. `draw.py` draws a plan; what came of it is then judged.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxanom.data import regions
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.memory import crops
from jaxanom.methods.adp.token.wording import WRONG_WORDS
from jaxanom.models.features import patches

BASES = ("kept", "redrawn", "free")
ANOMALIES = ("redrawn", "pasted", "misnamed")
GUIDANCE = 3.0
PURE_NOISE = -1
BASE_LEVELS = {"kept": (0,), "redrawn": (100, 200), "free": (PURE_NOISE,)}
ANOMALY_LEVELS = {
    "redrawn": (400, 550, 700),
    "pasted": (100,),
    "misnamed": (300, 500),
}

DISTANCE_FACTOR = 1.5
CHANGE_FACTOR = 2.0
CHANGE_FLOOR = 0.04
"""Least mean absolute change of a pixel that counts as drawn, of [0, 1]."""
WHOLE_PROBABILITY = 0.5


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
      left_out: [N] int32, the shot a pair was made of, or `patches.NOBODY`.
      base: how the base is drawn.
      region: [N, H, W] uint8, where the anomaly is.
      patch: [N, H, W, 3], what is pasted there; used where `source` says so.
      defect: how the anomaly is drawn.
      source: [N] int32, 1 to 3 as `ANOMALIES`.
      kind: [N] int32, place of the base in `BASES`.
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
      seed: Decides all draws.
    """
    rng = np.random.default_rng(seed)
    salient = [regions.saliency(shot)[..., None].astype(np.float32) for shot in shots]
    side, rows = shots.shape[1], []
    for n in range(num_pairs):
        shot = int(rng.integers(len(shots)))
        box = crops.views(1, fusion.AMOUNT, int(rng.integers(1 << 31)))
        where = crops.crop(salient[shot], box, side)[0, ..., 0] > 0.5
        source = ANOMALIES[n % len(ANOMALIES)]
        kind = BASES[n // len(ANOMALIES) % len(BASES)]
        is_free = kind == "free"
        where = where if where.any() and not is_free else np.ones_like(where)
        rows.append(
            (
                crops.crop(shots[shot], box, side)[0],
                patches.NOBODY if is_free or len(shots) == 1 else shot,
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


class Accepted(NamedTuple):
    """Verdicts on N pairs.

    Attributes:
      normal, anomalous: [N] bool.
      mask: [N, H, W] uint8, effective masks of the anomalies.
      rates: {kind: share kept}, for the record; an anomaly is judged by its change.
    """

    normal: np.ndarray
    anomalous: np.ndarray
    mask: np.ndarray
    rates: dict[str, float]


def judge(
    rows: Plan,
    change: np.ndarray,
    probability: np.ndarray,
    distance: np.ndarray,
    probability_limit: float,
    distance_limit: float,
) -> Accepted:
    """Tells which pairs are fit to tune on.

    A base is accepted if CLIP's state test calls its normal as normal as it calls real
    ones and the normal's distance to the memory is at most 1.5 times the largest
    between shots. An anomaly is accepted if its base is, and if its region changed at
    least twice as much as the rest of the image; its effective mask is the region where
    something changed.

    Args:
      rows: The plan.
      change: [N, H, W], mean absolute difference of normal and anomaly.
      probability: [N], CLIP's P(anomalous) of the normals.
      distance: [N], largest C2 distance in the normals.
      probability_limit: largest probability among real normals; at least one half.
      distance_limit: largest distance among real normals left out of the memory.
    """
    inside = rows.region > 0
    mask = (inside & (change > CHANGE_FLOOR)).astype(np.uint8)
    within, outside = _mean(change, inside), _mean(change, ~inside)
    changed = (within >= CHANGE_FACTOR * outside) & (mask.sum((1, 2)) > 0)
    calm = probability <= max(WHOLE_PROBABILITY, probability_limit)
    normal = calm & (distance <= DISTANCE_FACTOR * distance_limit)
    rates = {}
    for number, name in enumerate(BASES):
        own = rows.kind == number
        if own.any():
            rates[f"normal: {name}"] = round(float(normal[own].mean()), 4)
    for number, name in enumerate(ANOMALIES, start=1):
        own = rows.source == number
        if own.any():
            rates[f"anomaly: {name}"] = round(float(changed[own].mean()), 4)
    return Accepted(normal, normal & changed, mask, rates)


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return (values * where).sum((1, 2)) / np.maximum(where.sum((1, 2)), 1)
