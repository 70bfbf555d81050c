"""What follows the inversion: prototypes, calibration, synthetic images, self-tuning.

One category at a time, from its shots, its token and a key: there is no argument
through which a test image could come in.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom import trees
from jaxanom.methods.adp import model, predict
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.options import Options
from jaxanom.methods.adp.predict import Detector, Scoring
from jaxanom.methods.adp.token import inversion
from jaxanom.methods.adp.token.wording import WRONG_WORDS, Texts
from jaxanom.methods.adp.tuning import choose, draw, pairs
from jaxanom.methods.adp.tuning.choose import Seen
from jaxanom.types import Array, Frozen, Params, PRNGKey

LOOK_BATCH = 8


class Workshop(NamedTuple):
    """Jitted functions and plain values that all categories share.

    Attributes:
      detector: See `predict.Detector`.
      encode: See `inversion.Encoders`.
      contexts: (params, layout, vectors) -> [..., L, D].
      look: See `predict.every_cell`.
      draw: See `draw.drawer`.
      texts: Sentences, one entry a category.
      names: Names of the categories.
      num_shots: K of every category.
      options: See `options.Options`.
      choose_fn: See `choose.ChooseFn`.
      seed: Decides the synthetic images.
    """

    detector: Detector
    encode: inversion.Encoders
    contexts: Callable[..., Array]
    look: Callable[..., tuple[Array, Array]]
    draw: draw.Drawer
    texts: tuple[Texts, ...]
    names: tuple[str, ...]
    num_shots: tuple[int, ...]
    options: Options
    choose_fn: choose.ChooseFn
    seed: int


class Category(NamedTuple):
    """What is known of one category while it is completed.

    Attributes:
      number: Its place among the categories.
      vectors: [n, D], its token.
      shots: [K, H, W, 3].
      scoring: Of all categories; this one's prototypes and contexts are there.
      normal: Its calibration images as the channels see them.
    """

    number: int
    vectors: Array
    shots: np.ndarray
    scoring: Scoring
    normal: Seen


def make_complete(shop: Workshop) -> Callable[..., tuple[Params, dict[str, Any]]]:
    """Makes `Method.complete`: (params, frozen, key) -> (params, facts)."""

    def complete(params: Params, frozen: Frozen, key: PRNGKey):
        del key  # every draw is decided by the seed of the workshop
        facts = {}
        for number, name in enumerate(shop.names):
            scoring, facts[name] = _category(shop, params, frozen, number)
            params = {**params, "scoring": predict.as_tree(scoring)}
        return params, {"adp": facts}

    return complete


def can_draw(towers: model.Towers, side: int) -> bool:
    """Whether synthetic images are fit to tune on: the autoencoder resolves the data.

    Else what it draws would show a detector blur. Patches pasted at full resolution
    were tried in its place: tuned on these alone, some detectors got worse
    (benchmarks/QUALITY.md).

    Args:
      towers: See `model.Towers`.
      side: Side of the images.
    """
    return side <= towers.size


def _category(
    shop: Workshop, params: Params, frozen: Frozen, number: int
) -> tuple[Scoring, dict[str, Any]]:
    """Calibrates the channels on the shots, and tunes on synthetic pairs if it may."""
    one = _calibrated_on(shop, params, frozen, number)
    calibration = _fit(one.normal)
    settings = jax.tree.map(lambda leaf: leaf[number], one.scoring.settings)
    facts: dict[str, Any] = {"tuned": False}
    side, towers = one.shots.shape[1], shop.detector.towers
    if shop.options.tune and not can_draw(towers, side):
        facts["reason"] = (
            f"images of {side} px are finer than the autoencoder's {towers.size}: the "
            "settings stay the default"
        )
    elif shop.options.tune:
        judged = _synthetic(shop, frozen, one)
        if len(one.shots) == 1:
            both = zip(one.normal, judged.normal, strict=True)
            calibration = _fit(Seen(*(np.concatenate(pair) for pair in both)))
        tuned, facts = choose.tune_accepted(
            shop.detector,
            (shop.options.num_settings, shop.choose_fn),
            judged,
            calibration,
            settings,
            fits_memory=len(one.shots) > 1,
        )
        settings = tuned.settings if tuned else settings
    values = {**calibration._asdict(), "settings": settings}
    return _put(one.scoring, number, **values), facts


def _calibrated_on(
    shop: Workshop, params: Params, frozen: Frozen, number: int
) -> Category:
    """Reads S* (or the name) into prototypes and contexts, and looks at the shots."""
    towers, texts = frozen["towers"], shop.texts[number]
    vectors = jnp.asarray(params["particles"]["tokens"])[number]
    vectors = model.bounded(vectors, model.largest_norm(model.token_table(towers)))
    prototypes = [
        model.prototype(shop.encode.sentences(towers, layout, vectors))
        for layout in (texts.normal, texts.anomalous)
    ]
    scoring = _put(
        predict.from_tree(params["scoring"]),
        number,
        prototypes=jnp.stack(prototypes),
        contexts=shop.contexts(towers, texts.named, vectors),
    )
    shots = np.asarray(frozen["shots"][number][: shop.num_shots[number]])
    images, left_out = fusion.calibration_images(shots)
    normal = _look(shop, scoring, frozen, number, images, left_out)
    return Category(number, vectors, shots, scoring, normal)


def _synthetic(shop: Workshop, frozen: Frozen, one: Category) -> choose.Judged:
    """Draws and judges pairs, and looks at those that are accepted."""
    towers, texts = frozen["towers"], shop.texts[one.number]
    num_defects = len(texts.extra.eos_positions) - len(WRONG_WORDS)
    seed = shop.seed + one.number
    plan = pairs.plan(one.shots, shop.options.num_synthetic // 2, num_defects, seed)
    extra = shop.contexts(towers, texts.extra, one.vectors)
    contexts = np.concatenate([np.asarray(one.scoring.contexts[one.number]), extra])
    drawn = draw.draw(shop.draw, shop.detector.towers, towers, contexts, plan, seed)

    def look(images, left_out):
        return _look(shop, one.scoring, frozen, one.number, images, left_out)

    bases = look(drawn.normal, plan.left_out)
    verdict = pairs.judge(
        plan,
        drawn.change,
        _probability(bases),
        _distance(shop.detector, bases),
        float(_probability(one.normal).max()),
        float(_distance(shop.detector, one.normal).max()),
    )
    accepted = verdict.anomalous
    return choose.Judged(
        plan,
        verdict,
        normal=Seen(*(array[verdict.normal] for array in bases)),
        anomalous=look(drawn.anomalous[accepted], plan.left_out[accepted]),
    )


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
    frozen: Frozen,
    number: int,
    images: np.ndarray,
    left_out: np.ndarray,
) -> Seen:
    """Every cell of every channel on images of one category."""
    if not len(images):
        side, detector = shop.detector.side, shop.detector
        num_cells = sum(detector.cell_counts)
        whole = np.zeros((0, len(detector.temperatures)), np.float32)
        return Seen(np.zeros((0, num_cells, side, side), np.float32), whole)
    return Seen(
        *trees.batched(
            lambda *rows: shop.look(scoring, frozen, *rows),
            LOOK_BATCH,
            np.asarray(images, np.float32),
            np.full(len(images), number, np.int32),
            np.asarray(left_out, np.int32),
        )
    )


def _fit(seen: Seen) -> fusion.Calibration:
    return fusion.calibrate(np.moveaxis(seen.maps, 1, 0), seen.whole.T)


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
