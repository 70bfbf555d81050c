"""What stands beside ADP in `comparison`: other settings of a run, plain neighbours."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxanom import trees
from jaxanom.contracts import PredictFn
from jaxanom.jobs import evaluate
from jaxanom.jobs.load import Trained
from jaxanom.methods import adp
from jaxanom.methods.adp import model, options, predict
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.memory import bank, crops, windows
from jaxanom.methods.adp.tuning import choose, grid
from jaxanom.models.features import patches
from jaxanom.types import Predictions


def of_one_error(
    grids: Mapping[str, tuple[fusion.Settings, np.ndarray]],
) -> dict[str, fusion.Settings]:
    """Returns what the one-standard-error rule chooses, by category."""
    return {
        name: choose.choose(settings, per_fold, 0, 1.0).settings
        for name, (settings, per_fold) in grids.items()
    }


def keeping(grids: list[tuple[fusion.Settings, np.ndarray]]) -> choose.ChooseFn:
    """Returns the method's own rule, which puts every grid and its J into a list."""

    def choose_fn(settings, per_fold, num_images, **options):
        grids.append((settings, per_fold))
        return choose.choose(settings, per_fold, num_images, **options)

    return choose_fn


def agreement(
    run: Trained, number: int, settings: fusion.Settings, per_fold: np.ndarray
) -> float:
    """Spearman correlation over the grid: J on synthetic and on the test images.

    Args:
      run: of these categories.
      number: of one of them.
      settings: leaves [H, ...].
      per_fold: [H, F], J on synthetic images.
    """
    prepared = run.prepared
    dataset = prepared.dataset
    records = [dataset.records[place] for place in prepared.division.test]
    known = dataset.categories[number]
    pairs = [dataset.load(item) for item in records if item.category == known]
    switches = options.read(prepared.config.adp)
    towers, _ = model.load(prepared.config.model, switches.diffusion_size)
    detector = adp.make_detector(switches, towers)
    look = jax.jit(predict.every_cell(detector))
    scoring = predict.from_tree(run.params["scoring"])
    images = np.stack([image for image, _ in pairs]).astype(np.float32) / 255
    nobody = np.full(len(images), patches.NOBODY, np.int32)
    maps, whole = trees.batched(
        lambda *rows: look(scoring, run.frozen, *rows),
        8,
        images,
        np.full(len(images), number, np.int32),
        nobody,
    )
    calibration = fusion.Calibration(
        centre=np.asarray(scoring.centre[number]),
        spread=np.asarray(scoring.spread[number]),
        image_centre=np.asarray(scoring.image_centre[number]),
        image_spread=np.asarray(scoring.image_spread[number]),
    )
    centre, spread = calibration.image_centre, calibration.image_spread
    masks = np.stack([mask for _, mask in pairs]) > 0
    covered = crops.cell_means(masks, detector.side)
    synthetic = grid.Synthetic(
        maps=fusion.standardised(np.moveaxis(maps, 1, 0), calibration),
        whole=(whole.T - centre[:, None]) / spread[:, None],
        masks=(covered >= 0.5).astype(np.float32),
        source=masks.any((1, 2)).astype(np.int32),
    )
    real = grid.objectives(synthetic, detector.cell_counts, settings)
    ranked = stats.spearmanr(per_fold.mean(1), np.asarray(real).mean(1))
    return float(ranked.statistic)


def scores(
    run: Trained, predict_fn: PredictFn | None = None
) -> dict[str, dict[str, float]]:
    """Evaluates a run, or another detector on its test images, by category."""
    results = evaluate.evaluate(run, num_examples=0, predict=predict_fn)
    return dict(results["per_category"])


def with_settings(run: Trained, settings_of: Mapping[str, fusion.Settings]) -> Trained:
    """Returns the run with other settings; categories not named get the default."""
    scoring = predict.from_tree(run.params["scoring"])
    adp_options = options.read(run.prepared.config.adp)
    weights = options.default_weights(adp_options)
    default = fusion.default(weights, True, adp_options.sigma)
    rows = [settings_of.get(name, default) for name in run.prepared.dataset.categories]
    settings = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    tree = predict.as_tree(scoring._replace(settings=settings))
    return run._replace(params={**run.params, "scoring": tree})


def plain_predict(run: Trained) -> PredictFn:
    """Nearest neighbour in the features of C2: no calibration, text or smoothing."""
    config = run.prepared.config.adp
    tower = bank.feature_tower(
        config.feature_tower, tuple(config.feature_layers), config.feature_size, (2, 3)
    )
    if not config.feature_tower:
        return clip_plain_predict(run)
    name = tower.groups.names[0]

    def call(params, frozen, batch, key):
        del params, key
        kinds = tower.features(frozen["towers"]["features"], batch["image"], None)
        memory = frozen["memory"][name]
        nobody = jnp.full_like(batch["category_id"], patches.NOBODY)
        distance = patches.distances(
            kinds[name],
            memory["features"],
            memory["owners"],
            batch["category_id"],
            nobody,
        )
        size = batch["image"].shape[1:3]
        return Predictions(fusion.to_image(distance, size), jnp.max(distance, (1, 2)))

    return call


def clip_plain_predict(run: Trained) -> PredictFn:
    """The same with the last of CLIP's layers, where no other tower is used."""
    config = run.prepared.config
    towers, _ = model.load(config.model, config.adp.diffusion_size)
    layer = int(config.adp.feature_layers[-1])

    def call(params, frozen, batch, key):
        del params, key
        seen = windows.features(towers, frozen["towers"], batch["image"], (), (layer,))
        memory = frozen["memory"][f"layer{layer}"]
        nobody = jnp.full_like(batch["category_id"], patches.NOBODY)
        distance = patches.distances(
            patches.unit(seen.layers[layer]),
            memory["features"],
            memory["owners"],
            batch["category_id"],
            nobody,
        )
        size = batch["image"].shape[1:3]
        return Predictions(fusion.to_image(distance, size), jnp.max(distance, (1, 2)))

    return call
