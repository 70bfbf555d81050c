"""Losses of both stages.

    L_1 = CE + sum_l (Focal_l + Dice_l) + 0.01 (KL_isd + KL_n + KL_a) + L_ort
    L_2 = CE

with one bank entry j per step in the first two terms and all of them in L_ort.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxanom.contracts import LossFn
from jaxanom.losses import denoising, orthogonality, segmentation
from jaxanom.methods.bayes_pfl import distributions, features, heads, model, sentences
from jaxanom.models.clip import towers as clip
from jaxanom.models.ops import remat
from jaxanom.types import Array, Batch, Frozen, Metrics, Params

STAGE_2 = ("class_mapping/.*", "image_mapping/.*", "fuse/.*")


class Towers(NamedTuple):
    """Modules of the frozen CLIP."""

    image: clip.ImageTower
    text: clip.TextTower


def text_features(
    network: model.Network,
    tower: clip.TextTower,
    params: Params,
    frozen: Frozen,
    draws: distributions.Draws,
    category_id: Array,
    chunk: int | None = None,
) -> Array:
    """Returns text embeddings of length one, [N, 2, R, B, D]: (normal, abnormal).

    Args:
      network, tower: Modules.
      params, frozen: Their weights.
      draws: Draws of N images.
      category_id: [N].
      chunk: Sentences at a time; None takes all at once.
    """
    vectors = network.apply({"params": params}, draws, method="prompt_vectors")
    options, names = network.options, sentences.Names(**frozen["names"])
    # The shared form stores every layer, which is what `remat` is to avoid.
    if options.shortcuts and remat.resolve(options.remat) == "none":
        text = sentences.encode_pairs(
            tower,
            frozen["clip"],
            names,
            vectors,
            options.num_context,
            category_id,
            chunk and -(-chunk // 2),
        )
    else:
        text = sentences.encode(
            tower, frozen["clip"], names, vectors, category_id, chunk
        )
    return clip.normalise(text)


def make_loss(
    network: model.Network, towers: Towers, stage: int, image_size: tuple[int, int]
) -> LossFn:
    """Returns the loss of a stage, which draws its own noise and bank entry."""
    options = network.options

    def loss_fn(params, frozen, batch, key):
        key_noise, key_entry = jax.random.split(key)
        num_rows = batch["label"].shape[0]
        noise = distributions.noise(
            key_noise,
            num_rows,
            options.draws_train,
            network.width,
            options.iad_noise == "run",
        )
        entry = jax.random.randint(key_entry, (), 0, options.num_prompts)
        return loss_of(
            network, towers, stage, image_size, params, frozen, batch, noise, entry
        )

    return loss_fn


def loss_of(
    network: model.Network,
    towers: Towers,
    stage: int,
    image_size: tuple[int, int],
    params: Params,
    frozen: Frozen,
    batch: Batch,
    noise: distributions.Noise,
    entry: Array,
) -> tuple[Array, Metrics]:
    """The loss for given noise and bank entry.

    Args:
      network, towers: Modules; `params` and `frozen` are their weights.
      stage: 1 or 2.
      image_size: Size of the masks.
      params, frozen: Weights.
      batch: Images or features, with `label`, `mask`, `category_id` and `valid`.
      noise: Draws for N rows.
      entry: j, int32 scalar.

    Returns:
      (scalar, {"ce", "focal", "dice", "kl_isd", "kl_normal", "kl_abnormal",
      "orthogonality"}); the KL terms unweighted, focal and Dice summed over layers.
    """
    options, variables = network.options, {"params": params}
    seen = features.of_batch(towers.image, frozen, batch, options.layers)
    draws = network.apply(variables, *seen, noise, method="draw")
    text = text_features(
        network, towers.text, params, frozen, draws, batch["category_id"]
    )
    pairs = text
    if options.train_pairs == "one":
        pairs = jnp.take(text, entry[None], axis=3)  # [N, 2, R, 1, D]
    pairs = pairs.reshape(pairs.shape[0], -1, pairs.shape[-1])  # [N, M, D]
    valid = batch["valid"]
    feature = network.apply(variables, *seen, stage, method="image_feature")
    logits = network.apply(variables, pairs, feature, method="image_logits")
    ce = cross_entropy(logits, batch["label"], valid)
    if stage == 2:
        return ce, {"ce": ce}

    def whole(texts: Array, method: str) -> Array:
        """Margins or logits at image size, [N, S, M / 2 or M, H, W]."""
        small = network.apply(variables, texts, seen.patch_tokens, method=method)
        grid = heads.grid_of(image_size, towers.image.config.patch_size)
        return heads.upsample(heads.square(small, grid), image_size)

    if options.shortcuts:
        margins = whole(pairs, "pixel_margins")
    else:
        every = text.reshape(text.shape[0], -1, text.shape[-1])  # [N, 2RB, D]
        # The barrier keeps the compiler from dropping what is not used.
        maps = jax.lax.optimization_barrier(whole(every, "pixel_logits"))
        margins = released_margins(maps, text.shape[2:4], options.train_pairs, entry)
    focal, dice = segmentation_terms(
        margins, batch["mask"], valid, options.dice_background
    )
    terms = {
        "ce": ce,
        "focal": focal,
        "dice": dice,
        **kl_terms(draws, valid, options.iad_logdet),
        "orthogonality": correlation(text, valid),
    }
    kl = terms["kl_isd"] + terms["kl_normal"] + terms["kl_abnormal"]
    total = ce + focal + dice + options.kl_weight * kl + terms["orthogonality"]
    if options.reconstruction_weight:
        rebuilt = network.apply(variables, draws, method="reconstruct")
        error = jnp.sum((rebuilt - seen.image_features[:, None]) ** 2, -1)  # [N, R]
        terms["reconstruction"] = denoising.row_mean(jnp.mean(error, -1), valid)
        total += options.reconstruction_weight * terms["reconstruction"]
    return total, terms


def cross_entropy(logits: Array, label: Array, valid: Array | None = None) -> Array:
    """Two-way cross-entropy, the mean over pairs and valid rows.

    Args:
      logits: [N, M], the normal halves of M / 2 pairs, then the abnormal ones.
      label: [N], 1 = abnormal.
      valid: [N] bool.
    """
    pairs = jnp.stack(jnp.split(logits, 2, axis=1), axis=-1)  # [N, M / 2, 2]
    label = jnp.broadcast_to(label[:, None], pairs.shape[:2])
    each = optax.softmax_cross_entropy_with_integer_labels(pairs, label)
    return denoising.row_mean(jnp.mean(each, 1), valid)


def released_margins(
    maps: Array, pairs: tuple[int, int], train_pairs: str, entry: Array
) -> Array:
    """Margins as the released code gets them: one pair of all logits at image size.

    Args:
      maps: [N, S, 2 R B, H, W].
      pairs: (R, B).
      train_pairs: "one" takes entry j of the B, "all" takes them all.
      entry: j, int32 scalar.

    Returns:
      [N, S, R or R B, H, W].
    """
    lead, size = maps.shape[:2], maps.shape[3:]
    maps = maps.reshape(*lead, 2, *pairs, *size)
    if train_pairs == "one":
        maps = jnp.take(maps, entry[None], axis=4)  # [N, S, 2, R, 1, H, W]
    return (maps[:, :, 1] - maps[:, :, 0]).reshape(*lead, -1, *size)


def segmentation_terms(
    margins: Array, mask: Array, valid: Array, dice_background: bool = False
) -> tuple[Array, Array]:
    """Focal and Dice, summed over layers and averaged over pairs.

    Args:
      margins: [N, S, M / 2, H, W].
      mask: [N, H, W].
      valid: [N] bool.
      dice_background: adds the Dice loss of the normal class.
    """

    def both(one: Array) -> tuple[Array, Array]:
        focal = segmentation.focal(one, mask, class_balanced=True, valid=valid)
        dice = segmentation.dice(jax.nn.sigmoid(one), mask, valid=valid)
        if dice_background:
            dice += segmentation.dice(jax.nn.sigmoid(-one), 1 - mask, valid=valid)
        return focal, dice

    num_pairs = margins.shape[2]
    rows = jnp.moveaxis(margins, 0, 2)  # [S, M / 2, N, H, W]
    focal, dice = jax.vmap(both)(rows.reshape(-1, *rows.shape[2:]))
    return jnp.sum(focal) / num_pairs, jnp.sum(dice) / num_pairs


def kl_terms(draws: distributions.Draws, valid: Array, logdet: str) -> dict[str, Array]:
    """The three KL estimates, unweighted."""
    count = jnp.maximum(jnp.sum(valid), 1)

    def state(draw: distributions.Draw) -> Array:
        if draw.logdet.shape[0] > 1:  # iad_noise="image"
            return distributions.kl_image_specific(draw, valid)
        return distributions.kl_image_agnostic(draw, count, logdet)

    return {
        "kl_isd": distributions.kl_image_specific(draws.context, valid),
        "kl_normal": state(draws.normal),
        "kl_abnormal": state(draws.abnormal),
    }


def correlation(text: Array, valid: Array) -> Array:
    """L_ort: normal plus abnormal, the mean over draws; text [N, 2, R, B, D]."""
    num_images, _, num_draws, *rest = text.shape

    def per_class(one: Array) -> Array:
        rows = one.reshape(num_images * num_draws, *rest)
        return orthogonality.squared_cosine(rows, jnp.repeat(valid, num_draws))

    return per_class(text[:, 0]) + per_class(text[:, 1])
