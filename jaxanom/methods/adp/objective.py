"""Textual inversion with CLIP's zero-shot regularisation: four terms, each a switch.

Reconstructed from the abstract of doi 10.1109/ACCESS.2024.3355021, which says that the
token is regularised "from CLIP's zero-shot transferability" and no more. The form of
every term and its weight are ours; a weight of 0 switches a term off.

Symbols: f_w unit features of parts of the shots; g_n, g_a the averaged unit features of
normal and anomalous sentences around S* (or around the class word, g(o)).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxanom.diffusion import targets
from jaxanom.losses import denoising
from jaxanom.methods.adp import model
from jaxanom.methods.adp.memory import crops
from jaxanom.models.clip import prompts
from jaxanom.types import Array, Metrics, Params, PRNGKey


class Options(NamedTuple):
    """What the objective can do differently.

    Attributes:
      align_weight: parts should be described by the token.
      state_weight: parts should be called normal.
      anchor_weight: state words should do to S* what they do to the class word. Needed
        beside `state`, which alone may turn g_n - g_a into "this object at all".
      prior_weight: vectors should stay near the class word.
      temperature: tau of the state terms.
      templates_per_step: random templates a step.
      batch_size: crops a step.
      low_noise_bias: draw half of the timesteps from the lower half, which carries
        detail.
      split_tokens: whole images are told of the first vector alone, crops of all.
    """

    align_weight: float
    state_weight: float
    anchor_weight: float
    prior_weight: float
    temperature: float
    templates_per_step: int
    batch_size: int
    low_noise_bias: bool
    split_tokens: bool


class Layouts(NamedTuple):
    """Sentences around S*.

    Attributes:
      normal, anomalous: [S, M] for CLIP.
      captions: [2, Y], L columns, for the UNet: of whole images, of crops.
    """

    normal: prompts.Layout
    anomalous: prompts.Layout
    captions: prompts.Layout


class TokenData(NamedTuple):
    """What one token is learnt from; stacked over tokens, the leading axis is T.

    Rows behind the shots that count (`num_shots`) are padding and change nothing.

    Attributes:
      mean, std: [K, N, h, w, C], moments of N crops of every shot.
      num_shots: scalar int32, shots that count.
      features: [W, F] unit features of parts of all shots.
      weights: [W], sums to one; 0 on padding.
      start: [n, D], where the vectors start and what the prior pulls to.
      class_normal, class_anomalous: [S, M, F], sentences around the class word.
      limit: scalar, longest vector allowed.
    """

    mean: Array
    std: Array
    num_shots: Array
    features: Array
    weights: Array
    start: Array
    class_normal: Array
    class_anomalous: Array
    limit: Array


def align(features: Array, weights: Array, normal: Array) -> Array:
    """R_al = sum_w s_w (1 - cos(f_w, g_n)); features [W, F], normal [F]."""
    return jnp.sum(weights * (1 - features @ normal))


def state(
    features: Array, weights: Array, normal: Array, anomalous: Array, temperature: float
) -> Array:
    """R_st = sum_w s_w (-log P(normal | f_w)), P a softmax of cosines over tau."""
    margin = features @ (anomalous - normal) / temperature
    return jnp.sum(weights * jax.nn.softplus(margin))


def anchor(
    normal: Array, anomalous: Array, class_normal: Array, class_anomalous: Array
) -> Array:
    """R_an = 1 - cos(g_a(v) - g_n(v), g_a(o) - g_n(o))."""
    return 1 - cosine(anomalous - normal, class_anomalous - class_normal)


def prior(vectors: Array, start: Array) -> Array:
    """R_pr = |v - v_0|^2, summed over all vectors."""
    return jnp.sum((vectors - start) ** 2)


def cosine(first: Array, second: Array) -> Array:
    """Returns the cosine of two vectors; 0 where one of them vanishes."""
    product = jnp.linalg.norm(first) * jnp.linalg.norm(second)
    return jnp.sum(first * second) / jnp.maximum(product, 1e-12)


def make_loss(
    towers: model.Towers, layouts: Layouts, pyramid: crops.Pyramid, options: Options
) -> Callable[[Array, TokenData, Params, PRNGKey], tuple[Array, Metrics]]:
    """Makes the loss of one token.

    Args:
      towers: modules.
      layouts: sentences.
      pyramid: whose levels the rows of `TokenData.mean` follow.
      options: see `Options`.

    Returns:
      (vectors [n, D], data, weights of the towers, key) -> (scalar, its terms).
    """

    weights = {
        "inversion": 1.0,
        "align": options.align_weight,
        "state": options.state_weight,
        "anchor": options.anchor_weight,
        "prior": options.prior_weight,
    }
    weights = {name: weight for name, weight in weights.items() if weight}

    def inversion(vectors, data, params, key):
        """L_TI: noise regression on random crops under random captions.

        arXiv 2208.01618, eq. 2. A shot, a pyramid level, a crop of it, a caption, a
        timestep and the noises are drawn for each of B rows. A network made to predict
        velocity is held to its velocity, as it was trained.
        """
        rows = options.batch_size
        key_shot, key_caption, key_latent, key_noise, key_timestep = jax.random.split(
            key, 5
        )
        shot, crop, is_part = draw_crops(key_shot, rows, data.num_shots, pyramid)
        spread = jax.random.normal(key_latent, (rows, *data.mean.shape[2:]))
        latents = data.mean[shot, crop] + data.std[shot, crop] * spread
        num_captions = layouts.captions.eos_positions.shape[1]
        caption = jax.random.randint(key_caption, (rows,), 0, num_captions)
        captions = model.rows(layouts.captions, (is_part.astype(jnp.int32), caption))
        context = model.contexts(towers, params, captions, vectors)
        if options.split_tokens and vectors.shape[0] > 1:
            first = jnp.broadcast_to(vectors[:1], vectors.shape)
            whole = model.contexts(towers, params, captions, first)
            context = jnp.where(is_part[:, None, None], context, whole)
        noise = jax.random.normal(key_noise, latents.shape)
        timesteps = draw_timesteps(
            key_timestep, rows, len(towers.alphas_cumprod), options.low_noise_bias
        )
        noised = targets.add_noise(latents, noise, timesteps, towers.alphas_cumprod)
        noise_pred = towers.unet(params["unet"], noised, timesteps, context)
        row_weights = None
        if towers.is_velocity:
            row_weights = targets.velocity_weights(timesteps, towers.alphas_cumprod)
        return denoising.regression(noise, noise_pred, weights=row_weights)

    def zero_shot(vectors, data, params, key):
        """The terms that read CLIP, over a few random templates."""
        num_templates = layouts.normal.eos_positions.shape[1]
        count = min(options.templates_per_step, num_templates)
        templates = jax.random.choice(key, num_templates, (count,), replace=False)
        pick = (slice(None), templates)
        normal, anomalous = (
            model.prototype(
                model.text_features(towers, params, model.rows(layout, pick), vectors)
            )
            for layout in (layouts.normal, layouts.anomalous)
        )
        class_normal = model.prototype(data.class_normal[:, templates])
        class_anomalous = model.prototype(data.class_anomalous[:, templates])
        features, tau = (data.features, data.weights), options.temperature
        return {
            "align": align(*features, normal),
            "state": state(*features, normal, anomalous, tau),
            "anchor": anchor(normal, anomalous, class_normal, class_anomalous),
        }

    def loss(vectors, data, params, key):
        key_noise, key_templates = jax.random.split(key)
        vectors = model.bounded(vectors, data.limit)
        terms = {"inversion": inversion(vectors, data, params, key_noise)}
        if weights.keys() - {"inversion", "prior"}:
            terms |= zero_shot(vectors, data, params, key_templates)
        if "prior" in weights:
            terms["prior"] = prior(vectors, data.start)
        terms = {name: terms[name] for name in weights}
        total = sum(weights[name] * value for name, value in terms.items())
        return total, terms

    return loss


def draw_crops(
    key: PRNGKey, num_rows: int, num_shots: Array, pyramid: crops.Pyramid
) -> tuple[Array, Array, Array]:
    """Draws (shot, crop, is it a part) for each row; every level is as likely.

    Uniform draws are scaled to the number of shots that count, so that padding changes
    no draw.
    """
    uniform = jax.random.uniform(key, (3, num_rows))

    def below(row: Array, limit: Any) -> Array:
        return jnp.minimum((row * limit).astype(jnp.int32), limit - 1)

    level = below(uniform[1], len(pyramid.level_sizes))
    inside = below(uniform[2], jnp.asarray(pyramid.level_sizes)[level])
    crop = jnp.asarray(pyramid.level_starts)[level] + inside
    return below(uniform[0], num_shots), crop, level > 0


def draw_timesteps(
    key: PRNGKey, num_rows: int, num_train_timesteps: int, low_noise_bias: bool
) -> Array:
    """Draws training indices; with the bias half of them from the lower half."""
    key_index, key_side = jax.random.split(key)
    timesteps = targets.draw_timesteps(key_index, num_rows, num_train_timesteps)
    if not low_noise_bias:
        return timesteps
    low = jax.random.bernoulli(key_side, 0.5, (num_rows,))
    return jnp.where(low, timesteps // 2, timesteps)
