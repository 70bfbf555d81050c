"""Predictive distribution of the particles, its uncertainty, and anomaly maps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxanom.methods.app import model, objective
from jaxanom.methods.app.options import Predict
from jaxanom.types import Array, ClassPredictions, Predictions


class Logits(NamedTuple):
    """What is averaged.

    Attributes:
      particles: [P, B, T].
      pooled: [1, B, T] under the mean text features, or None.
      prior: [B, T] under image-conditioned prompts, or None where alpha is 1.
    """

    particles: Array
    pooled: Array | None
    prior: Array | None


def mixed_logits(logits: Logits, options: Predict) -> Array:
    """Log-probabilities up to a constant, of particles and prior together, [B, T].

    alpha mean_i l_i + (1 - alpha) l_0 where logits are averaged and mixed.
    """
    if options.average == "probs":
        averaged = _log_mean(jax.nn.log_softmax(logits.particles))
    else:
        rows = logits.particles if logits.pooled is None else logits.pooled
        averaged = jnp.mean(rows, axis=0)
    if logits.prior is None:
        return averaged
    alpha = options.alpha
    if options.mix == "logits":
        return alpha * averaged + (1 - alpha) * logits.prior
    both = jax.nn.log_softmax(averaged), jax.nn.log_softmax(logits.prior)
    return jnp.logaddexp(jnp.log(alpha) + both[0], jnp.log1p(-alpha) + both[1])


def _log_mean(logs: Array) -> Array:
    return jax.nn.logsumexp(logs, axis=0) - jnp.log(logs.shape[0])


def uncertainty(particles: Array) -> dict[str, Array]:
    """What the particles say of their disagreement.

    Args:
      particles: [P, B, T] logits.

    Returns:
      entropy [B] of the mean probabilities; mutual_information [B], that entropy less
      the mean of the particles' own (>= 0 up to rounding, 0 where they agree);
      logit_variance [B, T] over particles.
    """
    logs = jax.nn.log_softmax(particles)
    mean = _log_mean(logs)
    total = -jnp.sum(jnp.exp(mean) * mean, axis=-1)
    own = -jnp.sum(jnp.exp(logs) * logs, axis=-1)  # [P, B]
    return {
        "entropy": total,
        "mutual_information": total - jnp.mean(own, axis=0),
        "logit_variance": jnp.var(particles, axis=0),
    }


def posterior_logits(
    network: objective.Network,
    params,
    frozen,
    features: Array,
    category_id: Array,
    options: Predict,
) -> Logits:
    """Compares images [B, v] with every class of every particle and of the prior."""
    scale, columns = frozen["logit_scale"], frozen["columns"]

    def compare(text: Array) -> Array:
        logits = model.particle_logits(text, features, scale)
        return model.of_category(logits, columns, category_id)

    text = model.text_features(
        network.tower, frozen["text"], params["particles"]["context"]
    )
    pooled = prior = None
    if options.average == "features":
        mean = jnp.mean(text, axis=0, keepdims=True)
        pooled = compare(mean / jnp.linalg.norm(mean, axis=-1, keepdims=True))
    if options.alpha != 1.0:
        prior = model.prior_logits(
            network.tower,
            frozen["text"],
            model.prior_vectors(params["prior"], features),
            features,
            scale,
            network.num_vectors,
            "reference_reshuffle" if options.reshuffled else "per_image",
        )
        prior = model.of_category(prior, columns, category_id)
    return Logits(compare(text), pooled, prior)


def make_predict(network: objective.Network, encode_image, options: Predict):
    """Returns predict: class probabilities, uncertainty, score and anomaly map.

    Normal images are class 0 of "state" and "defect": the image score is the
    probability of the others, and the map that of every patch. "category" knows no
    anomalies: the score is the predictive entropy, and the map is zero.

    Args:
      network: Text tower and task.
      encode_image: (frozen, image) -> (features [B, v], patch features [B, h, w, v]),
        all normalised.
      options: How to average.
    """

    def predict(params, frozen, batch, key):
        del key
        features, patches = encode_image(frozen, batch["image"])
        categories = batch["category_id"]
        logits = posterior_logits(
            network, params, frozen, features, categories, options
        )
        probability = jax.nn.softmax(mixed_logits(logits, options))
        classes = ClassPredictions(probability, **uncertainty(logits.particles))
        shape = batch["image"].shape[:3]
        if network.target == "category_id":
            empty = jnp.zeros(shape, jnp.float32)
            return Predictions(empty, classes.entropy, classes=classes)
        coarse = _patch_map(network, params, frozen, patches, categories)
        anomaly_map = jax.image.resize(coarse, shape, "bilinear")
        return Predictions(anomaly_map, 1 - probability[:, 0], classes=classes)

    return predict


def _patch_map(network, params, frozen, patches: Array, category_id: Array) -> Array:
    """Probability, averaged over particles, that a patch is not normal: [B, h, w]."""
    text = model.text_features(
        network.tower, frozen["text"], params["particles"]["context"]
    )
    batch, height, width, _ = patches.shape
    flat = patches.reshape(batch * height * width, -1)
    logits = model.particle_logits(text, flat, frozen["logit_scale"])
    of_image = jnp.repeat(category_id, height * width)
    logits = model.of_category(logits, frozen["columns"], of_image)
    normal = jax.nn.softmax(logits)[..., 0].mean(0)
    return 1 - normal.reshape(batch, height, width)
