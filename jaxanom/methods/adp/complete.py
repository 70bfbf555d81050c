"""What follows the inversion: prototypes, calibration, synthetic images, self-tuning.

One category at a time, from its shots, its token and a key: there is no argument
through which a test image could come in.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.adp import (
    acceptance,
    calibration,
    drawing,
    inversion,
    model,
    predict,
    self_tuning,
    stage2,
    synthesis,
)
from jaxanom.methods.adp.options import Options
from jaxanom.methods.adp.predict import Detector, Scoring
from jaxanom.methods.adp.texts import Texts
from jaxanom.types import Array, Frozen, Params, PRNGKey

LOOK_BATCH = 8


class Workshop(NamedTuple):
    """Jitted functions and plain values that all categories share.

    Attributes:
      detector: see `predict.Detector`.
      encode: see `inversion.Encoders`.
      contexts: (params, layout, vectors) -> [..., L, D].
      look: see `predict.every_cell`.
      draw: see `drawing.drawer`.
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
    draw: drawing.Drawer
    texts: tuple[Texts, ...]
    names: tuple[str, ...]
    num_shots: tuple[int, ...]
    options: Options
    stage2_loss: inversion.TokenLoss
    seed: int


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


def can_draw(towers: model.Towers, side: int) -> bool:
    """Whether synthetic images are fit to tune on: the autoencoder resolves the data.

    Else what it draws would show a detector blur. Patches pasted at full resolution
    were tried in its place: tuned on these alone, some detectors got worse (README).

    Args:
      towers: see `model.Towers`.
      side: of the images.
    """
    return side <= towers.size


def _category(
    shop: Workshop, params: Params, frozen: Frozen, number: int, key: PRNGKey
) -> tuple[Params, dict[str, Any]]:
    """Completes one category; stage 2 changes its token and does it all once more."""
    params, facts, drawn = _score(shop, params, frozen, number)
    if not shop.options.stage2_steps or drawn is None:
        return params, facts
    tokens = params["particles"]["tokens"]
    vectors = stage2.go_on(
        shop.stage2_loss,
        shop.encode,
        tokens[number],
        frozen,
        number,
        drawn,
        (shop.detector.towers.grid, shop.detector.sizes),
        shop.options.stage2_steps,
        key,
    )
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
    drawable = can_draw(shop.detector.towers, shots.shape[1])
    if shop.options.tune and not drawable:
        facts["reason"] = (
            f"images of {shots.shape[1]} px are finer than the autoencoder's "
            f"{shop.detector.towers.size}: the settings stay the default"
        )
    if shop.options.tune and drawable:
        plan, made, verdict, bases = _synthetic(
            shop, scoring, vectors, frozen, number, shots, normal, look
        )
        calm = self_tuning.Seen(*(array[verdict.normal] for array in bases))
        odd = look(
            scoring, made.anomalous[verdict.anomalous], plan.left_out[verdict.anomalous]
        )
        if len(shots) == 1:
            both = zip(normal, calm, strict=True)
            found = _fit(self_tuning.Seen(*(np.concatenate(pair) for pair in both)))
        tuned, facts = self_tuning.run(
            shop.detector,
            shop.options.num_settings,
            shop.options.standard_errors,
            plan,
            verdict,
            (calm, odd),
            found,
            settings,
            fits_memory=len(shots) > 1,
        )
        settings = tuned.settings if tuned else settings
        drawn = made.anomalous[verdict.anomalous], verdict.mask[verdict.anomalous]
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
) -> self_tuning.Seen:
    if not len(images):
        side, detector = shop.detector.side, shop.detector
        num_cells = sum(detector.cell_counts)
        whole = np.zeros((0, len(detector.temperatures)), np.float32)
        return self_tuning.Seen(np.zeros((0, num_cells, side, side), np.float32), whole)
    category_id = np.full(len(images), number, np.int32)
    return self_tuning.Seen(
        *model.batched(
            lambda *rows: shop.look(scoring, frozen, *rows),
            LOOK_BATCH,
            np.asarray(images, np.float32),
            category_id,
            np.asarray(left_out, np.int32),
        )
    )


def _fit(seen: self_tuning.Seen) -> calibration.Calibration:
    return calibration.fit(np.moveaxis(seen.maps, 1, 0), seen.whole.T)


def _synthetic(shop, scoring, vectors, frozen, number, shots, normal, look):
    """Draws and judges pairs; returns (plan, drawn, verdict, the normals as seen)."""
    num_pairs = shop.options.num_synthetic // 2
    towers, texts = frozen["towers"], shop.texts[number]
    modules = shop.detector.towers
    num_defects = len(texts.extra.eos_positions) - len(synthesis.WRONG_WORDS)
    seed = shop.seed + number
    plan = synthesis.plan(shots, num_pairs, num_defects, seed)
    extra = shop.contexts(towers, texts.extra, vectors)
    contexts = np.concatenate([np.asarray(scoring.contexts[number]), extra])
    made = drawing.draw(shop.draw, modules, towers, contexts, plan, seed)
    seen = look(scoring, made.normal, plan.left_out)
    verdict = acceptance.judge(
        plan,
        made,
        _probability(seen),
        _distance(shop.detector, seen),
        float(_probability(normal).max()),
        float(_distance(shop.detector, normal).max()),
    )
    return plan, made, verdict, seen


def _probability(seen: self_tuning.Seen) -> np.ndarray:
    return 1 / (1 + np.exp(-seen.whole[:, 0]))


def _distance(detector: Detector, seen: self_tuning.Seen) -> np.ndarray:
    """Largest C2 distance of each image, zeros without C2."""
    first = 0
    for channel in detector.channels:
        if channel.name == "reference":
            return seen.maps[:, first].max((1, 2))
        first += len(channel.cells)
    return np.zeros(len(seen.maps), np.float32)
