"""Accepted synthetic pairs as the channels see them -> settings, and what to record."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxanom.methods.adp import (
    acceptance,
    calibration,
    crops,
    fusion,
    grid_objective,
    synthesis,
    tuning,
)
from jaxanom.methods.adp.predict import Detector


class Seen(NamedTuple):
    """Raw maps of every cell [M, N, m, m] and a_0 [M, Y] of M images."""

    maps: np.ndarray
    whole: np.ndarray


def run(
    detector: Detector,
    num_settings: int,
    standard_errors: float,
    plan: synthesis.Plan,
    verdict: acceptance.Accepted,
    pairs: tuple[Seen, Seen],
    found: calibration.Calibration,
    settings: fusion.Settings,
    fits_memory: bool,
) -> tuple[tuning.Tuned | None, dict[str, Any]]:
    """Tunes on what was accepted; too few images leave the settings as they are.

    Args:
      detector: whose channels were looked through.
      num_settings: most settings to try.
      standard_errors: see `tuning.choose`.
      plan, verdict: of the synthetic pairs.
      pairs: the accepted normals and the accepted anomalies.
      found: calibration of the channels.
      settings: the default.
      fits_memory: see `tuning.tune`.

    Returns:
      (what was chosen or None, facts for the record, which say why not).
    """
    calm, odd = pairs
    count = len(calm.maps) + len(odd.maps)
    facts: dict[str, Any] = {
        "tuned": False,
        "accepted": verdict.rates,
        "num_accepted": count,
    }
    if count < tuning.LEAST_IMAGES or not len(odd.maps):
        reason = (
            f"{count} of {2 * len(plan.source)} synthetic images were accepted; wanted "
            f"{tuning.LEAST_IMAGES}, normal and anomalous: the settings stay the "
            "default; raise config.adp.num_synthetic"
        )
        return None, {**facts, "reason": reason}
    seen = Seen(*(np.concatenate(pair) for pair in zip(calm, odd, strict=True)))
    centre, spread = found.image_centre[:, None], found.image_spread[:, None]
    side = detector.side
    masks = _hit(crops.cell_means(verdict.mask[verdict.anomalous], side))
    synthetic = grid_objective.Synthetic(
        maps=calibration.apply(np.moveaxis(seen.maps, 1, 0), found),
        whole=(seen.whole.T - centre) / spread,
        masks=np.concatenate([np.zeros((len(calm.maps), side, side)), masks]),
        source=np.concatenate(
            [
                np.full(len(calm.maps), grid_objective.NORMAL),
                plan.source[verdict.anomalous],
            ]
        ),
    )
    tuned = tuning.tune(
        synthetic,
        detector.cell_counts,
        settings,
        detector.has_language,
        num_settings,
        fits_memory,
        standard_errors,
    )
    return tuned, {**facts, **describe(detector, tuned), "tuned": True}


def _hit(coverage: np.ndarray) -> np.ndarray:
    """Cells at least half covered; a region thinner than a cell keeps its fullest."""
    highest = coverage.max((1, 2), keepdims=True)
    return ((coverage >= 0.5) | ((coverage >= highest) & (highest > 0))).astype(
        np.float32
    )


def describe(detector: Detector, tuned: tuning.Tuned) -> Mapping[str, Any]:
    """Returns the choice as JSON values, its own optimism among them."""
    settings = tuned.settings
    return {
        "objective": round(tuned.objective, 4),
        "default_objective": round(tuned.default_objective, 4),
        "standard_error": round(tuned.standard_error, 4),
        "optimism": round(tuned.optimism, 4),
        "kept_default": tuned.kept_default,
        "num_settings": tuned.num_settings,
        "num_images": tuned.num_images,
        "channels": {
            channel.name: {
                "cell": channel.cells[int(settings.cells[n])],
                "weight": round(float(settings.weights[n]), 4),
            }
            for n, channel in enumerate(detector.channels)
        },
        "sigma": float(settings.sigma),
        "share": round(float(settings.share), 4),
        "image_weight": float(settings.image_weight),
    }
