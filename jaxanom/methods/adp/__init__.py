"""ADP-style few-shot detection by personalising a text-to-image model.

Reconstructed from the abstract of S. Kwak et al., "Few-Shot Anomaly Detection via
Personalization", doi 10.1109/ACCESS.2024.3355021. The full text could not be read and
no code is public: what the abstract states is followed, everything quantitative is
ours, and no number here reproduces the paper. Every open point is a switch:

| question                                  | default here          | switch          |
|-------------------------------------------|-----------------------|-----------------|
| S* in CLIP prompts, or the image redrawn? | prompts and memory    | channels        |
| form of the CLIP regulariser              | align, state, anchor, | their weights   |
|                                           | pull to class word    |                 |
| number of vectors, what they start from   | 2, the class word     | num_vectors     |
| what is tuned, on which synthetic images  | weights, smoothing,   | tune,           |
|                                           | pooling, variants of  | num_synthetic   |
|                                           | channels; 3 sources   |                 |
| anomaly-aware prompts, read literally     | off                   | stage2_steps    |
| one set of tokens for whole and part      | yes                   | split_tokens    |

With one shot the synthetic images show what the memory has seen, and the tuning leaves
the weights of the channels alone. Where the data are finer than the autoencoder,
nothing is tuned. C5 leaves the cross-attention mass of the state word out. Baselines in
the same evaluator: `options.BASELINES`.

Tokens are the only parameters that are trained, by phase "invert"; see
`inversion.phase_loss` for how hundreds of them train at once. What follows the
training (calibration, self-tuning) is `Method.complete`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.errors import UserError
from jaxanom.methods.adp import (
    channels,
    complete,
    crops,
    drawing,
    feature_tower,
    fusion,
    generative,
    inversion,
    model,
    objective,
    options,
    predict,
    shots,
    stage2,
    texts,
    windows,
    wording,
)
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Frozen, Params, PRNGKey

PHASE = "invert"


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the method from its sections of the config.

    Args:
      config: its `model`, `adp`, `seed` and the length of phase "invert" are read.
      dataset: the training part; only its normal images are looked at.

    Returns:
      A detector with one token, memory and settings per category.

    Raises:
      UserError: towers, options or images that do not fit.
    """
    chosen = options.read(config.adp)
    num_steps = config.phases[PHASE].num_steps
    if chosen.token == "class_word" and num_steps:
        raise UserError(
            f"config.phases.{PHASE}.num_steps={num_steps}, but with config.adp.token="
            "'class_word' (or a baseline) there is no token to train; set it to 0"
        )
    towers, params = model.load(config.model, chosen.diffusion_size)
    side = dataset.image_size[0]
    if chosen.stage2_steps and not complete.can_draw(towers, side):
        raise UserError(
            f"config.adp.stage2_steps={chosen.stage2_steps} needs synthetic defects, "
            f"but config.data.image_size={side} is finer than the autoencoder's "
            f"{towers.size}: set stage2_steps=0 or image_size={towers.size}"
        )
    detector = make_detector(chosen, towers)
    if detector.tower.params is not None:
        params["features"] = detector.tower.params
    images = [shots.load(dataset, name) for name in dataset.categories]
    shop, plain, token_loss = _workshop(
        chosen, detector, dataset.categories, images, config.seed
    )
    pyramid = crops.pyramid(chosen.pyramid, chosen.crop_jitter, config.seed)
    start = _start(chosen, towers, params, dataset.categories, config.seed)
    # A run that is only looked at trains nothing: its crops need not be encoded.
    trains = chosen.token == "learned" and num_steps > 0

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        del key  # tokens start at the class word, and nothing else is drawn
        turned = [shots.turned(one, chosen.turns) for one in images]
        neutral = jnp.stack(
            [
                shop.contexts(params, one.named, first)[generative.NEUTRAL]
                for one, first in zip(plain, start, strict=True)
            ]
        )
        frozen = {
            "towers": params,
            "shots": shots.padded(images),
            "class_contexts": neutral,
            "memory": shots.memory(detector, params, turned, neutral),
        }
        if trains:
            room = stage2.NUM_WINDOWS if chosen.stage2_steps else 1
            frozen["particles"] = shots.token_data(
                shop.encode, params, plain, pyramid, turned, start, towers, room
            )
        settings = fusion.default(
            options.default_weights(chosen), detector.has_language, chosen.sigma
        )
        scoring = predict.placeholder(detector, params, settings, len(images))
        trained = {"tokens": start}
        return {"particles": trained, "scoring": predict.as_tree(scoring)}, frozen

    phase = Phase(PHASE, inversion.phase_loss(token_loss), ("particles/.*",))
    return Method(
        init=init,
        phases=(phase,),
        predict=predict.make_predict(detector),
        complete=complete.make_complete(shop),
    )


def _workshop(
    chosen: options.Options,
    detector: predict.Detector,
    categories: Sequence[str],
    images: Sequence[np.ndarray],
    seed: int,
) -> tuple[complete.Workshop, list[texts.Texts], inversion.TokenLoss]:
    """Returns what completes tokens, sentences around the names, and the token loss."""
    towers, count = detector.towers, chosen.num_vectors
    words = texts.phrases(chosen.prompts, chosen.defect_words)
    around = texts.lay_out(towers, words, count)
    plain = [
        texts.lay_out(towers, words, count, wording.words_of(name))
        for name in categories
    ]
    layouts = texts.training_layouts(towers, words, around, count)
    pyramid = crops.pyramid(chosen.pyramid, chosen.crop_jitter, seed)
    goal = options.of_objective(chosen)
    second = goal._replace(stage2_weight=chosen.stage2_weight)

    def contexts(params, layout, vectors):
        return model.contexts(towers, params, layout, vectors)

    shop = complete.Workshop(
        detector=detector,
        encode=inversion.encoders(towers, chosen.windows),
        contexts=jax.jit(meshes.bound(contexts)),
        look=jax.jit(meshes.bound(predict.every_cell(detector))),
        draw=drawing.drawer(towers, chosen.walk_steps),
        texts=tuple([around] * len(plain) if chosen.token == "learned" else plain),
        names=tuple(categories),
        num_shots=tuple(map(len, images)),
        options=chosen,
        stage2_loss=objective.make_loss(towers, layouts, pyramid, second),
        seed=seed,
    )
    return shop, plain, objective.make_loss(towers, layouts, pyramid, goal)


def _start(
    chosen: options.Options,
    towers: model.Towers,
    params: Params,
    categories: Sequence[str],
    seed: int,
) -> Array:
    """Returns where every category's vectors start, [T, n, D]."""
    rows = [
        model.class_vectors(
            params, towers.tokenizer, wording.words_of(name), chosen.num_vectors, seed
        )
        for name in categories
    ]
    return jnp.stack(rows)


def make_detector(chosen: options.Options, towers: model.Towers) -> predict.Detector:
    """Returns the channels that are on; UserError for windows beyond CLIP's grid."""
    for size in chosen.windows:
        windows.window_indices(towers.grid, size)
    side = chosen.map_size
    rest = tuple(t for t in channels.TEMPERATURES if t != chosen.temperature)
    temperatures = (chosen.temperature, *rest)
    tower = feature_tower.make(
        chosen.feature_tower,
        chosen.feature_layers if "reference" in chosen.channels else (),
        chosen.feature_size,
        chosen.windows,
    )
    looks = generative.Options(
        num_noises=chosen.num_noises,
        walk_steps=chosen.walk_steps,
        gap_steps=chosen.gap_steps,
        layers=tuple(chosen.compare_layers),
    )
    makers = {
        "language": lambda: channels.language(side, temperatures),
        "reference": lambda: channels.reference(tower.groups.mixtures, tower.cells),
        "reconstruct": lambda: generative.reconstruct(towers, looks, side),
        "noise_gap": lambda: generative.noise_gap(towers, looks, side),
        "unet_features": lambda: generative.unet_memory(towers, side),
    }
    return predict.Detector(
        towers=towers,
        tower=tower,
        channels=tuple(makers[name]() for name in chosen.channels),
        sizes=tuple(chosen.windows),
        temperatures=temperatures,
        side=side,
        uses_latents=any(n in options.GENERATIVE for n in chosen.channels),
    )
