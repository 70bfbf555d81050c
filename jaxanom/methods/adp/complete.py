"""What follows the inversion: prototypes, calibration, synthetic images, self-tuning.

One category at a time, from its shots, its token and a key: there is no argument
through which a test image could come in.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.adp import (
    acceptance,
    calibration,
    crops,
    fusion,
    inversion,
    model,
    objective,
    predict,
    synthesis,
    tuning,
    windows,
)
from jaxanom.methods.adp.options import Options
from jaxanom.methods.adp.predict import Detector, Scoring
from jaxanom.methods.adp.texts import Texts
from jaxanom.types import Array, Frozen, Params, PRNGKey

LOOK_BATCH = 8
NUM_ANOMALOUS = 256
"""Most windows of synthetic defects that stage 2 reads."""


class Workshop(NamedTuple):
    """Jitted functions and plain values that all categories share.

    Attributes:
      detector: see `predict.Detector`.
      encode: see `inversion.Encoders`.
      contexts: (params, layout, vectors) -> [..., L, D].
      look: see `predict.every_cell`.
      draw: see `synthesis.drawer`.
      texts: one a category.
      names: of the categories.
      num_shots: K of every category.
      options: of the config.
      stage2_loss: token loss with the term of stage 2.
      seed: of synthetic images.
    """

    detector: Detector
    encode: inversion.Encoders
    contexts: Callable[..., Array]
    look: Callable[..., tuple[Array, Array]]
    draw: Callable[..., Any]
    texts: tuple[Texts, ...]
    names: tuple[str, ...]
    num_shots: tuple[int, ...]
    options: Options
    stage2_loss: inversion.TokenLoss
    seed: int


class Seen(NamedTuple):
    """Raw maps of every cell [M, N, m, m] and a_0 [M, Y] of M images."""

    maps: np.ndarray
    whole: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Seen":
        """Picks images."""
        return Seen(self.maps[chosen], self.whole[chosen])


def make_complete(shop: Workshop) -> Callable[..., tuple[Params, dict[str, Any]]]:
    """Makes `Method.complete`: (params, frozen, key) -> (params, facts)."""

    def complete(params: Params, frozen: Frozen, key: PRNGKey):
        facts = {}
        for number, name in enumerate(shop.names):
            own = jax.random.fold_in(key, number)
            params, found = _category(shop, params, frozen, number, own)
            facts[name] = found
        return params, {"adp": facts}

    return complete


def _category(
    shop: Workshop, params: Params, frozen: Frozen, number: int, key: PRNGKey
) -> tuple[Params, dict[str, Any]]:
    """Completes one category; stage 2 changes its token and does it all once more."""
    params, facts, drawn = _score(shop, params, frozen, number)
    if not shop.options.stage2_steps or drawn is None:
        return params, facts
    tokens = params["particles"]["tokens"]
    vectors = stage2(shop, tokens[number], frozen, number, drawn, key)
    particles = {"tokens": jnp.asarray(tokens).at[number].set(vectors)}
    params, again, _ = _score(shop, {**params, "particles": particles}, frozen, number)
    return params, {**again, "before_stage2": facts}


def _score(shop: Workshop, params: Params, frozen: Frozen, number: int):
    """Returns (params, facts, (accepted images, their masks) or None)."""
    vectors = _vectors(params, frozen["towers"], number)
    scoring = _with_prototypes(shop, params, vectors, frozen, number)
    shots = np.asarray(frozen["shots"][number][: shop.num_shots[number]])
    images, left_out = calibration.material(shots)
    look = functools.partial(_look, shop, frozen=frozen, number=number)
    normal = look(scoring, images, left_out)
    found = _fit(normal)
    settings = jax.tree.map(lambda leaf: leaf[number], scoring.settings)
    facts, drawn = {"tuned": False}, None
    if shop.options.tune:
        plan, made, verdict, seen = _synthetic(
            shop, scoring, vectors, frozen, number, shots, normal, look
        )
        calm = verdict.kept & (plan.source == tuning.NORMAL)
        if len(shots) == 1 and calm.any():
            both = zip(normal, seen.rows(calm), strict=True)
            found = _fit(Seen(*(np.concatenate(pair) for pair in both)))
        tuned, facts = _tune(shop, plan, verdict, seen, found, settings)
        settings = tuned.settings if tuned else settings
        defect = verdict.kept & (plan.source > 0)
        drawn = made.image[defect], verdict.mask[defect]
    scoring = _put(scoring, number, **found._asdict(), settings=settings)
    return {**params, "scoring": predict.as_tree(scoring)}, facts, drawn


def _with_prototypes(
    shop: Workshop, params: Params, vectors: Array, frozen: Frozen, number: int
) -> Scoring:
    """Reads S* (or the name) into prototypes and contexts."""
    towers, texts = frozen["towers"], shop.texts[number]
    prototypes = [
        model.prototype(shop.encode.sentences(towers, layout, vectors))
        for layout in (texts.normal, texts.anomalous)
    ]
    contexts = shop.contexts(towers, texts.named, vectors)
    scoring = predict.from_tree(params["scoring"])
    return _put(scoring, number, prototypes=jnp.stack(prototypes), contexts=contexts)


def _vectors(params: Params, towers: Params, number: int) -> Array:
    vectors = jnp.asarray(params["particles"]["tokens"])[number]
    return model.bounded(vectors, model.largest_norm(model.token_table(towers)))


def _put(scoring: Scoring, number: int, **values: Any) -> Scoring:
    """Writes one category's values."""

    def write(old, new):
        return jnp.asarray(old).at[number].set(jnp.asarray(new))

    fields = {
        name: jax.tree.map(write, getattr(scoring, name), value)
        for name, value in values.items()
    }
    return scoring._replace(**fields)


def _look(
    shop: Workshop,
    scoring: Scoring,
    images: np.ndarray,
    left_out: np.ndarray,
    *,
    frozen: Frozen,
    number: int,
) -> Seen:
    category_id = np.full(len(images), number, np.int32)
    return Seen(
        *model.batched(
            lambda *rows: shop.look(scoring, frozen, *rows),
            LOOK_BATCH,
            np.asarray(images, np.float32),
            category_id,
            np.asarray(left_out, np.int32),
        )
    )


def _fit(seen: Seen) -> calibration.Calibration:
    return calibration.fit(np.moveaxis(seen.maps, 1, 0), seen.whole.T)


def _synthetic(shop, scoring, vectors, frozen, number, shots, normal, look):
    """Draws and judges; returns (plan, drawn, verdict, what the channels see)."""
    half = shop.options.num_synthetic // 2
    towers, texts = frozen["towers"], shop.texts[number]
    num_defects = len(texts.extra.eos_positions) - len(synthesis.WRONG_WORDS)
    seed = shop.seed + number
    plan = synthesis.plan(shots, half, half, num_defects, seed)
    extra = shop.contexts(towers, texts.extra, vectors)
    contexts = np.concatenate([np.asarray(scoring.contexts[number]), extra])
    made = synthesis.draw(shop.draw, shop.detector.towers, towers, contexts, plan, seed)
    seen = look(scoring, made.image, plan.left_out)
    verdict = acceptance.judge(
        plan,
        made,
        _probability(seen),
        _distance(shop.detector, seen),
        float(_probability(normal).max()),
        float(_distance(shop.detector, normal).max()),
    )
    return plan, made, verdict, seen


def _probability(seen: Seen) -> np.ndarray:
    return 1 / (1 + np.exp(-seen.whole[:, 0]))


def _distance(detector: Detector, seen: Seen) -> np.ndarray:
    """Largest C2 distance of each image, zeros without C2."""
    first = 0
    for channel in detector.channels:
        if channel.name == "reference":
            return seen.maps[:, first].max((1, 2))
        first += len(channel.cells)
    return np.zeros(len(seen.maps), np.float32)


def _tune(shop, plan, verdict, seen: Seen, found, settings: fusion.Settings):
    """Returns (Tuned or None, facts); None where too few images were accepted."""
    kept = verdict.kept
    facts: dict[str, Any] = {
        "tuned": False,
        "accepted": verdict.rates,
        "num_accepted": int(kept.sum()),
    }
    if kept.sum() < tuning.LEAST_IMAGES or len(set(plan.source[kept] > 0)) < 2:
        reason = (
            f"{int(kept.sum())} of {len(kept)} synthetic images were accepted; wanted "
            f"{tuning.LEAST_IMAGES}, normal and anomalous: the settings stay the "
            "default; raise config.adp.num_synthetic"
        )
        return None, {**facts, "reason": reason}
    chosen = seen.rows(kept)
    centre, spread = found.image_centre[:, None], found.image_spread[:, None]
    side = shop.detector.side
    synthetic = tuning.Synthetic(
        maps=calibration.apply(np.moveaxis(chosen.maps, 1, 0), found),
        whole=(chosen.whole.T - centre) / spread,
        # A region thinner than a cell keeps the cell it covers most.
        masks=_hit(crops.cell_means(verdict.mask[kept], side)),
        source=plan.source[kept],
    )
    detector = shop.detector
    tuned = tuning.tune(
        synthetic,
        detector.cell_counts,
        settings,
        detector.has_language,
        shop.options.num_settings,
    )
    return tuned, {**facts, **describe(detector, tuned), "tuned": True}


def _hit(coverage: np.ndarray) -> np.ndarray:
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


def stage2(
    shop: Workshop,
    vectors: Array,
    frozen: Frozen,
    number: int,
    drawn: tuple[np.ndarray, np.ndarray],
    key: PRNGKey,
) -> Array:
    """Goes on with S* where windows under synthetic defects must look anomalous.

    The most literal reading of "anomaly-aware prompts" (spec F9).

    Args:
      shop, frozen, number: as in `make_complete`.
      vectors: [n, D].
      drawn: accepted anomalies [M, H, W, 3] and their masks [M, H, W].
      key: of the steps.

    Returns:
      [n, D]; `vectors` where no window lies under a defect.
    """
    images, masks = drawn
    towers = frozen["towers"]
    if "particles" not in frozen:
        raise ValueError(
            f"config.adp.stage2_steps={shop.options.stage2_steps} goes on with a "
            "trained token; set config.phases.invert.num_steps above 0"
        )
    if not len(images):
        return vectors
    features = model.batched(
        lambda rows: shop.encode.parts(towers, rows), LOOK_BATCH, images
    )
    grid, sizes = shop.detector.towers.grid, shop.detector.sizes
    covered = windows.coverage(masks, grid, sizes)
    chosen = features[covered >= 0.5]
    if not len(chosen):
        return vectors
    picked = np.random.default_rng(shop.seed).permutation(len(chosen))[:NUM_ANOMALOUS]
    room = NUM_ANOMALOUS - len(picked)
    weights = np.pad(np.full(len(picked), 1 / len(picked), np.float32), (0, room))
    data = objective.TokenData(
        **jax.tree.map(lambda leaf: leaf[number], frozen["particles"])
    )._replace(
        anomalous=jnp.asarray(np.pad(chosen[picked], ((0, room), (0, 0)))),
        anomalous_weights=jnp.asarray(weights),
    )
    steps = shop.options.stage2_steps
    found, _ = jax.jit(
        lambda start, data, towers, key: inversion.invert(
            shop.stage2_loss, start, data, towers, key, steps
        )
    )(vectors, data, towers, key)
    return found
