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
| one set of tokens for whole and part      | yes                   | split_tokens    |

With one shot the synthetic images show what the memory has seen, and the tuning leaves
the weights of the channels alone. Where the data are finer than the autoencoder,
nothing is tuned. C5 leaves the cross-attention mass of the state word out. Baselines in
the same evaluator: `options.BASELINES`.

Tokens are the only parameters that are trained, by phase "invert"; see
`inversion.phase_loss` for how hundreds of them train at once. What follows the
training (calibration, self-tuning) is `Method.complete`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.errors import UserError
from jaxanom.methods.adp import (
    complete,
    model,
    objective,
    options,
    predict,
)
from jaxanom.methods.adp.channels import evidence as channels
from jaxanom.methods.adp.channels import fusion, generative
from jaxanom.methods.adp.memory import bank, crops, windows
from jaxanom.methods.adp.token import inversion, wording
from jaxanom.methods.adp.tuning import choose, draw
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Frozen, Params, PRNGKey

PHASE = "invert"


def make(
    config: Any,
    dataset: catalog.Dataset,
    choose_fn: Callable[..., choose.Tuned] = choose.choose,
) -> Method:
    """Builds the method from its sections of the config.

    Args:
      config: Its `model`, `adp`, `seed` and the length of phase "invert" are read.
      dataset: The training part; only its normal images are looked at.
      choose_fn: The rule by which self-tuning keeps a setting.

    Returns:
      A detector with one token, memory and settings per category.

    Raises:
      UserError: Towers, options or images do not fit.
    """
    switches = options.read(config.adp)
    num_steps = config.phases[PHASE].num_steps
    if switches.token == "class_word" and num_steps:
        raise UserError(
            f"config.phases.{PHASE}.num_steps={num_steps}, but with config.adp.token="
            "'class_word' (or a baseline) there is no token to train; set it to 0"
        )
    towers, params = model.load(config.model, switches.diffusion_size)
    detector = make_detector(switches, towers)
    if detector.tower.params is not None:
        params["features"] = detector.tower.params
    categories, seed = dataset.categories, config.seed
    shots = [crops.load_shots(dataset, name) for name in categories]
    names = [wording.words_of(name) for name in categories]
    count = switches.num_vectors
    words = wording.phrases(switches.prompts, switches.defect_words)
    around = wording.lay_out(towers, words, count)
    plain = [wording.lay_out(towers, words, count, name) for name in names]
    pyramid = crops.pyramid(switches.pyramid, switches.crop_jitter, seed)
    start = jnp.stack(
        [
            model.class_vectors(params, towers.tokenizer, name, count, seed)
            for name in names
        ]
    )
    shop = complete.Workshop(
        detector=detector,
        encode=inversion.encoders(towers, switches.windows),
        contexts=jax.jit(meshes.bound(functools.partial(model.contexts, towers))),
        look=jax.jit(meshes.bound(predict.every_cell(detector))),
        draw=draw.drawer(towers, switches.walk_steps),
        texts=tuple([around] * len(plain) if switches.token == "learned" else plain),
        names=tuple(categories),
        num_shots=tuple(map(len, shots)),
        options=switches,
        choose_fn=functools.partial(
            choose_fn, standard_errors=switches.standard_errors
        ),
        seed=seed,
    )

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        del key  # tokens start at the class word, and nothing else is drawn
        turned = [crops.turned(images, switches.turns) for images in shots]
        neutral = jnp.stack(
            [
                shop.contexts(params, one.named, first)[generative.NEUTRAL]
                for one, first in zip(plain, start, strict=True)
            ]
        )
        frozen = {
            "towers": params,
            "shots": crops.padded(shots),
            "class_contexts": neutral,
            "memory": predict.fill_memory(detector, params, turned, neutral),
        }
        # A run that is only looked at trains nothing: its crops need not be encoded.
        if switches.token == "learned" and num_steps > 0:
            slots = max(len(images) for images, _ in turned)
            data = [
                inversion.prepare(
                    shop.encode,
                    params,
                    (one.normal, one.anomalous),
                    pyramid,
                    images,
                    first,
                    (towers.size, towers.clip_size),
                    slots,
                )
                for one, images, first in zip(plain, turned, start, strict=True)
            ]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
            frozen["particles"] = stacked._asdict()
        settings = fusion.default(
            options.default_weights(switches), detector.has_language, switches.sigma
        )
        scoring = predict.placeholder(detector, params, settings, len(shots))
        trained = {"tokens": start}
        return {"particles": trained, "scoring": predict.as_tree(scoring)}, frozen

    layouts = wording.training_layouts(towers, words, around, count)
    token_loss = objective.make_loss(
        towers, layouts, pyramid, options.of_objective(switches)
    )
    phase = Phase(PHASE, inversion.phase_loss(token_loss), ("particles/.*",))
    return Method(
        init=init,
        phases=(phase,),
        predict=predict.make_predict(detector),
        complete=complete.make_complete(shop),
    )


def make_detector(switches: options.Options, towers: model.Towers) -> predict.Detector:
    """Returns the channels that are on; UserError for windows beyond CLIP's grid."""
    for size in switches.windows:
        windows.window_indices(towers.grid, size)
    side = switches.map_size
    rest = tuple(t for t in channels.TEMPERATURES if t != switches.temperature)
    temperatures = (switches.temperature, *rest)
    tower = bank.feature_tower(
        switches.feature_tower,
        switches.feature_layers if "reference" in switches.channels else (),
        switches.feature_size,
        switches.windows,
    )
    looks = generative.Options(
        num_noises=switches.num_noises,
        walk_steps=switches.walk_steps,
        gap_steps=switches.gap_steps,
        layers=tuple(switches.compare_layers),
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
        channels=tuple(makers[name]() for name in switches.channels),
        sizes=tuple(switches.windows),
        temperatures=temperatures,
        side=side,
    )
