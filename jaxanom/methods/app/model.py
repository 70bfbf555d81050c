"""Particles over prompts, the prior network, and logits: the model of APP.

arXiv 2401.06799. Symbols: theta_i is particle i, [N, d] prompt vectors; phi the prior
network; fh, gh normalised image and text features; s the logit scale.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.models.clip import shared_prefix, towers
from jaxanom.types import Array, Params, PRNGKey

REDUCTION = 16
"""The prior network's hidden layer is so many times narrower than its input."""


class TextTower(NamedTuple):
    """How prompts become features; weights are arguments.

    Attributes:
      config: Sizes of the tower.
      parts: The classes' sentences, see `shared_prefix`.
      dtype: What matrix products are computed in.
      prompt_chunk: Sets of vectors encoded at a time; 0 is all at once. Chunks are
        recomputed in the backward pass, so that any number fits the memory.
      class_chunk: Classes at a time; 0 is all.
    """

    config: towers.TextConfig
    parts: shared_prefix.Cut
    dtype: Any = jnp.float32
    prompt_chunk: int = 0
    class_chunk: int = 0


def init(
    key: PRNGKey,
    num_particles: int,
    num_vectors: int,
    text_width: int,
    feature_width: int,
    std: float = 0.02,
) -> Params:
    """Draws particles from N(0, std^2) and the prior network as released.

    Particle i depends on (key, i) alone, so that more particles leave the first ones as
    they are.

    Returns:
      {"particles": {"context": [P, N, d]}, "prior": {"linear1", "linear2"}}.
    """
    key_particles, key_prior = jax.random.split(key)
    seeds = np.asarray(jax.random.key_data(key_particles)).ravel().tolist()
    context = np.stack(
        [
            np.random.default_rng([*seeds, i]).normal(0, std, (num_vectors, text_width))
            for i in range(num_particles)
        ]
    )
    hidden = max(feature_width // REDUCTION, 1)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_prior)).ravel())
    sizes = {"linear1": (feature_width, hidden), "linear2": (hidden, text_width)}
    prior = {}
    for name, (rows, columns) in sizes.items():
        bound = rows**-0.5
        prior[name] = {
            "kernel": rng.uniform(-bound, bound, (rows, columns)).astype(np.float32),
            "bias": rng.uniform(-bound, bound, (columns,)).astype(np.float32),
        }
    tree = {"particles": {"context": context.astype(np.float32)}, "prior": prior}
    return jax.tree.map(jnp.asarray, tree)


def prior_vectors(prior: Params, image_features: Array) -> Array:
    """phi: image features [B, v], normalised, to prompt-vector means [B, d]."""
    hidden = image_features @ prior["linear1"]["kernel"] + prior["linear1"]["bias"]
    hidden = jax.nn.relu(hidden)
    return hidden @ prior["linear2"]["kernel"] + prior["linear2"]["bias"]


def text_features(tower: TextTower, params: Params, prompt_vectors: Array) -> Array:
    """Encodes every class with every set of vectors.

    Args:
      tower: Sentences and sizes.
      params: The text tower's weights.
      prompt_vectors: [P, N, d].

    Returns:
      [P, K, v], normalised.
    """
    num_classes = tower.parts.suffix.input_ids.shape[0]
    size = tower.class_chunk or num_classes
    chunks = [
        _encode(tower, params, prompt_vectors, _classes(tower.parts, start, size))
        for start in range(0, num_classes, size)
    ]
    return towers.normalise(jnp.concatenate(chunks, axis=1))


def _encode(tower: TextTower, params, prompt_vectors: Array, parts) -> Array:
    """Encodes [P, N, d] with some of the classes, by chunks of P: [P, K', v]."""

    def encode(vectors: Array) -> Array:
        return shared_prefix.text_features(
            params, tower.config, parts, vectors, tower.dtype
        )

    if not tower.prompt_chunk and not tower.class_chunk:
        return encode(prompt_vectors)
    size = tower.prompt_chunk
    if not size or size >= prompt_vectors.shape[0]:
        return jax.checkpoint(encode)(prompt_vectors)
    one_set = jax.checkpoint(lambda one: encode(one[None])[0])
    return jax.lax.map(one_set, prompt_vectors, batch_size=size)


def _classes(parts: shared_prefix.Cut, start: int, size: int) -> shared_prefix.Cut:
    rows = slice(start, start + size)
    suffix = parts.suffix
    return parts._replace(
        suffix=suffix.replace(
            input_ids=suffix.input_ids[rows],
            slots=suffix.slots[rows],
            eos_positions=suffix.eos_positions[rows],
        )
    )


def particle_logits(
    text_features: Array, image_features: Array, logit_scale: Array
) -> Array:
    """Likelihood p(y | x, theta) = softmax of s fh(x) . gh(theta, c).

    Args:
      text_features: [P, K, v] normalised.
      image_features: [B, v] normalised.
      logit_scale: log of s.

    Returns:
      [P, B, K].
    """
    return jnp.exp(logit_scale) * jnp.einsum(
        "bv,pkv->pbk", image_features, text_features
    )


def of_category(logits: Array, columns: Array, category_id: Array) -> Array:
    """Picks each image's own classes: [..., B, K] -> [..., B, T].

    Args:
      logits: Of all classes.
      columns: [num_categories, T] int32.
      category_id: [B] int32.
    """
    own = jnp.asarray(columns)[category_id]  # [B, T]
    own = jnp.broadcast_to(own, (*logits.shape[:-1], own.shape[-1]))
    return jnp.take_along_axis(logits, own, axis=-1)


def repeated(vectors: Array, num_vectors: int) -> Array:
    """Makes prompts of one vector repeated: [B, d] -> [B, N, d]."""
    return jnp.repeat(vectors[:, None], num_vectors, axis=1)


def reshuffled(num_classes: int, num_images: int) -> np.ndarray:
    """Which image's prior vector stands for (class c, slot j) in the released code.

    It reads a [b, C, ...] tensor as [C, b, ...]: entry (c, j) is image
    floor((c b + j) / C), [C, b].
    """
    flat = np.arange(num_classes * num_images) // num_classes
    return flat.reshape(num_classes, num_images)


def prior_context_by_class(vectors: Array, layout: str, num_classes: int) -> Array:
    """Stage 1: the prompt vector of every class, averaged over the batch.

    Args:
      vectors: [B, d], phi of a batch.
      layout: "per_image": the batch mean, the same for all classes;
        "reference_reshuffle": the mean over the images that the released code happens
        to read for the class.
      num_classes: K.

    Returns:
      [1, d], or [K, d] under the reshuffle.
    """
    if layout == "per_image":
        return jnp.mean(vectors, axis=0, keepdims=True)
    return jnp.mean(vectors[reshuffled(num_classes, vectors.shape[0])], axis=1)


def prior_text_features_by_class(
    tower: TextTower, params: Params, contexts: Array, num_vectors: int
) -> Array:
    """Stage 1: features [1, K, v] of the classes' prompts.

    Args:
      tower, params: The text tower.
      contexts: [1, d] or [K, d], from `prior_context_by_class`.
      num_vectors: N.
    """
    prompts = repeated(contexts, num_vectors)
    if contexts.shape[0] == 1:
        return text_features(tower, params, prompts)
    # Every class has its own context: a set of vectors for one sentence each.
    rows = [
        text_features(
            tower._replace(parts=_classes(tower.parts, k, 1), class_chunk=0),
            params,
            prompts[k : k + 1],
        )
        for k in range(contexts.shape[0])
    ]
    return jnp.concatenate(rows, axis=1)


def prior_logits(
    tower: TextTower,
    params: Params,
    vectors: Array,
    image_features: Array,
    logit_scale: Array,
    num_vectors: int,
    layout: str = "per_image",
) -> Array:
    """Logits under image-conditioned prompts, one text pass per image and class.

    Args:
      tower, params: The text tower.
      vectors: [B, d], phi of the images.
      image_features: [B, v] normalised.
      logit_scale: log of s.
      num_vectors: N.
      layout: "per_image", or the released code's "reference_reshuffle", in which image
        j reads other images' vectors.

    Returns:
      [B, K].
    """
    features = text_features(tower, params, repeated(vectors, num_vectors))
    if layout == "reference_reshuffle":
        num_classes = features.shape[1]
        index = reshuffled(num_classes, features.shape[0]).T  # [B, K]
        features = features[index, np.arange(num_classes)[None, :]]
    scale = jnp.exp(logit_scale)
    return scale * jnp.einsum("bv,bkv->bk", image_features, features)
