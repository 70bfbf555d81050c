"""Bayes-PFL: zero-shot anomaly maps from distributions over prompts (arXiv 2503.10080).

Trained on labelled images of some categories, it maps anomalies of categories it never
saw, with a mean and a spread over draws of the prompts. Two phases: "stage1" trains
everything but the image head, "stage2" the image head alone. With `num_steps = 0` of
stage2 and `image_head` = "pooled" it is left out, and the pooled feature is compared
with the text directly.

Where the released code (commit 8f155a07) differs from what its names or the paper's
abstract suggest, we follow the code by default:

| the code                                         | ours                            |
|--------------------------------------------------|---------------------------------|
| exact GELU on weights trained with quick GELU    | `clip_act`                      |
| exp(h / 2) is called and used as a variance      | `variance`                      |
| image-agnostic log-determinants divided by N     | `iad_logdet`                    |
| planar flows may fold (no constraint on u)       | `flow_constraint`               |
| attention scaled by the whole width              | same                            |
| reconstruction computed and thrown away          | `reconstruction_weight` = 0     |
| background Dice computed and dropped             | `dice_background`               |
| one random bank entry a step in CE and maps      | `train_pairs`                   |
| scores min-max scaled over a category's images   | `image_minmax`, off by default  |
| model chosen on labelled images of 5 other       | the last step's parameters;     |
|   categories                                     |   `config.selection.rule`       |
| image-specific noise drawn anew per image        | same, seeded by the image       |
| one image at a time when testing                 | any batch                       |
| every training image is augmented                | `config.data.augmentation`      |
| mosaics of four defects, for MVTec AD alone      | `config.data.mosaic`            |
| patch projections start at random                | `projection_init`               |

A released checkpoint is evaluated by a run without steps: `checkpoint` names the file,
both phases have `num_steps = 0` (and `image_head` is "pooled" for a file of stage 1).

`caption_share` (ours) lets plain CLIP's answer to two captions into every map, with the
activation that the method has: what is learnt on one set of images need not carry over
to others.

Two baselines are settings of the same method: `prompts` = "learned" trains the bank
alone, without distributions or draws; "captions" is plain CLIP between two captions.

Exact speed-ups (`shortcuts`): text cut after its last needed token, the context vectors
of a normal and an abnormal prompt encoded once, one map per pair instead of two, in
training only the drawn pair; `cache_features` runs the image tower once over the data.
Pinned by tests/parity/bayes_pfl and tests/methods.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxanom.contracts import Method, Phase
from jaxanom.errors import UserError
from jaxanom.methods.bayes_pfl import (
    captions,
    features,
    heads,
    model,
    objective,
    predict,
    released,
    sentences,
)
from jaxanom.methods.bayes_pfl import options as settings
from jaxanom.models import backbones
from jaxanom.models.checkpoints import sources
from jaxanom.models.clip import layers
from jaxanom.models.clip import towers as clip
from jaxanom.models.clip.tokenizer import Tokenizer
from jaxanom.models.ops import remat
from jaxanom.types import Array, Frozen, Params, PRNGKey


def make(config: Any, dataset: Any) -> Method:
    """Builds the method from `config.bayes_pfl` and `config.model`.

    Args:
      config: Its sections `bayes_pfl`, `model` and `phases` are read.
      dataset: Its `categories` and `image_size` are read; any categories will do, they
        change no parameter.

    Raises:
      UserError: An unknown key, or sizes that do not fit the towers.
    """
    options = settings.read_options(config.bayes_pfl)
    backbone = config.model
    loading = sources.Loading(variant=backbone.variant)
    tower = backbones.load_clip(backbone.directory, loading)
    towers = build_towers(tower.module.config, options, backbone.dtype)
    size = tuple(dataset.image_size)
    width = check(towers, options, size)
    vision_width = towers.image.config.hidden_size
    network = model.Network(options, width, vision_width // 2)
    top_k = [
        options.top_k_small if name in options.small_categories else options.top_k
        for name in dataset.categories
    ]
    tokenizer = backbones.load_tokenizer(backbone.directory)
    check_steps(config.phases, options)

    def caption_pairs() -> Array:
        return captions.pairs(
            towers.text, tower.params, tokenizer, dataset.categories, options
        )

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        names = names_of(tower.params, towers.text, tokenizer, dataset, options)
        frozen = {"clip": tower.params, "names": names._asdict()}
        start = None
        if options.projection_init == "clip":
            start = model.clip_projection(tower.params)
        if options.caption_share:
            frozen["captions"] = caption_pairs()
        params = model.init(network, vision_width, key, start)
        if options.checkpoint:
            params = released.read(Path(options.checkpoint).expanduser(), params)
        return params, frozen

    def phase(number: int, trainable: tuple[str, ...]) -> Phase:
        loss_fn = objective.make_loss(network, towers, number, size)
        return Phase(f"stage{number}", loss_fn, trainable)

    # While a stage is trained, its own image head is measured.
    fewer = network.clone(options=options._replace(draws_test=options.draws_selection))
    measured = {
        f"stage{number}": predict.make_predict(fewer, towers, number, size, top_k)
        for number in (1, 2)
    }
    stage = {"pooled": 1, "fused": 2}[options.image_head]
    encode = features.make_encode(towers.image, options.layers)
    rescale = predict.make_rescale(options.map_weight)
    method = Method(
        learns_pixels=True,
        init=init,
        phases=(phase(1, trainable_1(options)), phase(2, objective.STAGE_2)),
        predict=predict.make_predict(network, towers, stage, size, top_k),
        measured=measured,
        encode=encode if options.cache_features else None,
        rescale=rescale if options.image_minmax == "category" else None,
    )
    if options.prompts != "captions":
        return method
    finish = predict.make_finish(options, size, top_k)
    return method._replace(
        init=lambda key: ({}, {"clip": tower.params, "captions": caption_pairs()}),
        predict=captions.make_predict(towers.image, size, finish),
        encode=None,
    )


def check_steps(phases: Mapping[str, Any], options: settings.Options) -> None:
    """Raises UserError for a head that nobody trains, or a baseline that is trained."""
    first, second = (phases[name].num_steps for name in ("stage1", "stage2"))
    if options.prompts == "captions" and (first or second):
        name, count = ("stage1", first) if first else ("stage2", second)
        raise UserError(
            f"config.phases.{name}.num_steps={count}, but with "
            "config.bayes_pfl.prompts='captions' nothing is trained; set it to 0"
        )
    if options.image_head == "fused" and first and not second:
        raise UserError(
            "config.phases.stage2.num_steps=0 leaves the image head untrained; set "
            "config.bayes_pfl.image_head='pooled'"
        )


def build_towers(
    config: clip.ClipConfig, options: settings.Options, dtype: str
) -> objective.Towers:
    """Returns the modules of both towers, with the activation asked for."""
    parts, activation = [], settings.activation(options)
    for part in (config.vision_config, config.text_config):
        part = layers.with_activation(part, activation)
        parts.append(dataclasses.replace(part, projection_dim=config.projection_dim))
    kind = jnp.dtype(dtype)
    return objective.Towers(
        image=clip.ImageTower(parts[0], dtype=kind, antialias_positions=True),
        text=clip.TextTower(parts[1], dtype=kind, remat=remat.resolve(options.remat)),
    )


def check(
    towers: objective.Towers, options: settings.Options, image_size: tuple[int, int]
) -> int:
    """Returns D, the width of the joint space and of the text tower.

    Raises:
      UserError: The two differ, heads do not divide them, a layer does not exist, or
        the image does not divide into patches.
    """
    text, image = towers.text.config, towers.image.config
    depth, used = image.num_hidden_layers, options.layers
    for wrong, message in (
        (
            text.hidden_size != text.projection_dim,
            f"the text tower is {text.hidden_size} wide and projects to "
            f"{text.projection_dim}; prompts are shifted by draws of the joint space, "
            "so both must be equal: choose another config.model.directory",
        ),
        (
            text.hidden_size % options.num_heads,
            f"config.bayes_pfl.num_heads={options.num_heads} does not divide the width "
            f"{text.hidden_size}",
        ),
        (
            not used or not all(1 <= layer <= depth for layer in used),
            f"config.bayes_pfl.layers={used}; the image tower has layers 1 to {depth}",
        ),
        (
            options.caption_share and used[-1:] != (depth,),
            f"config.bayes_pfl.caption_share={options.caption_share} looks at the last "
            f"layer; let config.bayes_pfl.layers end with {depth} (they are {used})",
        ),
    ):
        if wrong:
            raise UserError(message)
    heads.grid_of(image_size, image.patch_size)
    return text.hidden_size


def names_of(
    params: Params,
    tower: clip.TextTower,
    tokenizer: Tokenizer,
    dataset: Any,
    options: settings.Options,
) -> sentences.Names:
    """Looks up the class names; as long as the tower can with shortcuts off.

    Raises:
      UserError: A name that does not fit beside the prompt vectors.
    """
    longest = tower.config.max_position_embeddings
    table: Array = params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    words = tokenizer.words(
        [sentences.class_name(name, options.names) for name in dataset.categories]
    )
    num_vectors = options.num_context + options.num_states
    needed = max(len(row) for row in words) + num_vectors + 2
    if needed > longest:
        raise UserError(
            f"the longest class name and {num_vectors} prompt vectors take {needed} "
            f"tokens, the text tower has {longest}; lower config.bayes_pfl.num_context "
            "or num_states"
        )
    length = None if options.shortcuts else longest
    return sentences.names(words, tokenizer, table, num_vectors, length)


def trainable_1(options: settings.Options) -> tuple[str, ...]:
    """Path patterns of stage 1: everything its loss reaches."""
    parts = ["prompts", "temperatures", "attention", "class_mapping"]
    if options.prompts == "drawn":
        parts += ["context_encoder", "state_encoder"]
        parts += ["context_flow", "normal_flow", "abnormal_flow"]
    if options.isd_input == "fused":
        parts.append("fuse")
    if options.reconstruction_weight:
        parts += ["context_decoder", "context_flow_out"]
    return tuple(f"{part}/.*" for part in parts)
