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

C5 leaves the cross-attention mass of the state word out. Baselines in the same
evaluator: `options.BASELINES`.

Tokens are the only parameters that are trained, by phase "invert"; see
`inversion.phase_loss` for how hundreds of them train at once. What follows the
training (calibration, self-tuning) is `Method.complete`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.methods.adp import (
    channels,
    complete,
    crops,
    feature_tower,
    generative,
    inversion,
    model,
    objective,
    options,
    predict,
    shots,
    synthesis,
    texts,
    windows,
    wording,
)
from jaxanom.types import Frozen, Params, PRNGKey

PHASE = "invert"


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the method from its sections of the config.

    Args:
      config: its `model`, `adp`, `seed` and the length of phase "invert" are read.
      dataset: the training part; only its normal images are looked at.

    Returns:
      A detector with one token, memory and settings per category.

    Raises:
      ValueError: towers, options or images that do not fit.
    """
    chosen = options.read(config.adp)
    num_steps = config.phases[PHASE].num_steps
    if chosen.token == "class_word" and num_steps:
        raise ValueError(
            f"config.phases.{PHASE}.num_steps={num_steps}, but with config.adp.token="
            "'class_word' (or a baseline) there is no token to train; set it to 0"
        )
    towers, params = model.load(config.model, chosen.diffusion_size)
    for size in chosen.windows:
        windows.window_indices(towers.grid, size)
    detector = _detector(chosen, towers)
    words = texts.phrases(chosen.prompts, chosen.defect_words)
    around = texts.lay_out(towers, words, chosen.num_vectors)
    plain = [
        texts.lay_out(towers, words, chosen.num_vectors, wording.words_of(name))
        for name in dataset.categories
    ]
    learned = chosen.token == "learned"
    images = [shots.load(dataset, name) for name in dataset.categories]
    layouts = texts.training_layouts(towers, words, around, chosen.num_vectors)
    pyramid = crops.pyramid(chosen.pyramid, chosen.crop_jitter, config.seed)
    goal = options.of_objective(chosen)
    token_loss = objective.make_loss(towers, layouts, pyramid, goal)
    second = goal._replace(stage2_weight=chosen.stage2_weight)
    encode = inversion.encoders(towers, chosen.windows)
    read_contexts = jax.jit(
        lambda weights, layout, vectors: model.contexts(
            towers, weights, layout, vectors
        )
    )
    shop = complete.Workshop(
        detector=detector,
        encode=encode,
        contexts=read_contexts,
        look=jax.jit(predict.every_cell(detector)),
        draw=synthesis.drawer(towers, chosen.walk_steps),
        texts=tuple([around] * len(images) if learned else plain),
        names=tuple(dataset.categories),
        num_shots=tuple(map(len, images)),
        options=chosen,
        stage2_loss=objective.make_loss(towers, layouts, pyramid, second),
        seed=config.seed,
    )
    # A run that is only looked at trains nothing: its crops need not be encoded.
    room = complete.NUM_ANOMALOUS if chosen.stage2_steps else 1
    trains = learned and num_steps > 0
    names = dataset.categories
    seed = config.seed

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        del key  # tokens start at the class word, and nothing else is drawn
        weights = dict(params)
        if detector.tower.params is not None:
            weights["features"] = detector.tower.params
        start = jnp.stack(
            [
                model.class_vectors(
                    weights,
                    towers.tokenizer,
                    wording.words_of(n),
                    chosen.num_vectors,
                    seed,
                )
                for n in names
            ]
        )
        turned = [shots.turned(one, chosen.turns) for one in images]
        neutral = [
            read_contexts(weights, one.named, first)[generative.NEUTRAL]
            for one, first in zip(plain, start, strict=True)
        ]
        frozen = {
            "towers": weights,
            "shots": shots.padded(images),
            "class_contexts": jnp.stack(neutral),
            "memory": shots.memory(detector, weights, turned, jnp.stack(neutral)),
        }
        if trains:
            frozen["particles"] = shots.token_data(
                encode, weights, plain, pyramid, turned, start, towers, room
            )
        scoring = predict.placeholder(
            detector, weights, options.default_weights(chosen), len(names)
        )
        return {
            "particles": {"tokens": start},
            "scoring": predict.as_tree(scoring),
        }, frozen

    phase = Phase(PHASE, inversion.phase_loss(token_loss), ("particles/.*",))
    return Method(
        init=init,
        phases=(phase,),
        predict=predict.make_predict(detector),
        complete=complete.make_complete(shop),
    )


def _detector(chosen: options.Options, towers: model.Towers) -> predict.Detector:
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
