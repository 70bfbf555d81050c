"""Times the grid of ADP's self-tuning beside a loop that calls scikit-learn.

    python -m benchmarks.speed.tuning_grid [--settings 4096] [--looped 64] [--record]

Ours scores all settings in one program. The loop does one setting after another: it
fuses the maps in numpy and asks scikit-learn for the AUROC of images and the average
precision of pixels of every fold and source. As 4096 turns would take a quarter of an
hour, it is timed on the first 64 settings, and rates are compared. `difference` is the
largest of any J of those settings: ours counts pixels in 1024 bins.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import harness
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.tuning import choose, grid

NAME = "tuning_grid"
SIDE, NUM_IMAGES, NUM_CHANNELS = 32, 256, 6
SETTINGS, LOOPED = 4096, 64


def synthetic(num_images: int = NUM_IMAGES, side: int = SIDE) -> grid.Synthetic:
    """Draws maps that are higher where half of the images have a square defect."""
    rng = np.random.default_rng(1)
    half = num_images // 2
    source = np.where(np.arange(num_images) < half, 0, 1 + np.arange(num_images) % 3)
    masks = np.zeros((num_images, side, side), np.float32)
    masks[half:, side // 4 : side // 2, side // 4 : side // 2] = 1
    shape = (NUM_CHANNELS, num_images, side, side)
    maps = rng.normal(size=shape).astype(np.float32)
    whole = np.zeros((1, num_images), np.float32)
    return grid.Synthetic(maps + masks, whole, masks, source)


def settings_of(count: int) -> fusion.Settings:
    """Lists that many settings, the default among them."""
    default = fusion.default((1.0,) * NUM_CHANNELS, has_language=False)
    return choose.grid((1,) * NUM_CHANNELS, default, False, SIDE, count - 1)


def loop(
    data: grid.Synthetic, settings: fusion.Settings, count: int
) -> Callable[[], np.ndarray]:
    """Returns () -> J [count, F] of the first settings, one after another."""
    from sklearn import metrics

    side = data.maps.shape[-1]
    smoothed = {}
    for sigma in fusion.SIGMAS:  # once per width, as ours does
        matrix = np.asarray(fusion.smoothing(side, np.float32(sigma)))
        smoothed[sigma] = matrix @ data.maps @ matrix.T
    weights, sigmas, shares = (
        np.asarray(leaf) for leaf in (settings.weights, settings.sigma, settings.share)
    )
    truth = data.masks.reshape(len(data.masks), -1)
    fold = grid.folds(data.source)

    def one(number: int) -> list[float]:
        values, plain = (
            np.tensordot(weights[number], maps, 1).reshape(truth.shape)
            for maps in (smoothed[float(sigmas[number])], data.maps)
        )
        kept = max(1, round(float(shares[number]) * side**2))
        ranked = np.sort(plain, axis=1)[:, -kept:].mean(1)
        objectives = []
        for f in range(grid.NUM_FOLDS):
            parts = []
            for s in range(1, int(data.source.max()) + 1):
                rows = (fold == f) & np.isin(data.source, (grid.NORMAL, s))
                label = data.source[rows] == s
                auroc = metrics.roc_auc_score(label, ranked[rows])
                ap = metrics.average_precision_score(
                    truth[rows].ravel(), values[rows].ravel()
                )
                parts.append((auroc + ap) / 2)
            objectives.append(np.mean(parts))
        return objectives

    return lambda: np.array([one(number) for number in range(count)])


def cases_of(
    data: grid.Synthetic, num_settings: int, num_looped: int
) -> list[harness.Case]:
    """Compares J of the looped settings and returns what is to be timed."""
    settings = settings_of(num_settings)
    call = loop(data, settings, num_looped)

    def ours():
        return grid.objectives(data, (1,) * NUM_CHANNELS, settings)

    gap = float(np.abs(np.asarray(ours())[:num_looped] - call()).max())
    print(f"J differs by {gap:.1e}", flush=True)
    facts = {
        "images": len(data.masks),
        "pixels": data.masks[0].size,
        "channels": NUM_CHANNELS,
        "difference": gap,
    }
    return [
        harness.Case(
            "ours",
            ours,
            work=num_settings,
            unit="settings",
            facts=facts | {"settings": num_settings},
        ),
        harness.Case(
            "scikit-learn loop",
            call,
            work=num_looped,
            unit="settings",
            facts=facts | {"settings": num_looped},
            wait=lambda result: result,
        ),
    ]


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = harness.parser(NAME)
    parser.add_argument("--settings", type=int, default=SETTINGS)
    parser.add_argument("--looped", type=int, default=LOOPED)
    arguments = parser.parse_args(argv)
    cases = cases_of(synthetic(), arguments.settings, arguments.looped)
    rows = harness.run(cases, arguments.warmup, arguments.repeats)
    for row in rows:
        row["times_loop"] = row["rate"] / rows[-1]["rate"]
    return harness.report(NAME, rows, arguments.record)


if __name__ == "__main__":
    main()
