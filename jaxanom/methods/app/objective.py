"""The two losses of APP, per datum, and what their weights mean as a posterior.

Stage 2 minimises sum_i L_i with L_i = CE_i + lambda |m(theta_i) - mu|^2, so that
exp(-n L_i) is the posterior of n data: a Gaussian prior of variance sigma^2 around mu
has lambda = 1 / (2 sigma^2 n).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxanom.contracts import LossFn
from jaxanom.errors import UserError
from jaxanom.losses import classification
from jaxanom.methods.app import model
from jaxanom.methods.app.options import Prior
from jaxanom.posterior import bandwidths
from jaxanom.posterior import pairs as pairing
from jaxanom.types import Array


class Network(NamedTuple):
    """What both losses and the prediction share."""

    tower: model.TextTower
    num_vectors: int
    target: str


def trainable(prior: Prior) -> tuple[str, ...]:
    """Returns the path patterns that stage 2 trains."""
    fitted = {"prior/.*": prior.train == "joint", "center/.*": prior.center == "ema"}
    return ("particles/.*", *(path for path, moves in fitted.items() if moves))


def prior_weight(prior: Prior, shots: float, num_data: float) -> float:
    """Returns lambda by the rule of the data set.

    Args:
      prior: Its `lambda_rule` is read: "shots" is reg / S, "shots_squared" reg / S^2,
        "sigma2" 1 / (2 sigma2 n).
      shots: S, training images per class.
      num_data: n.
    """
    if prior.lambda_rule == "sigma2":
        return 1 / (2 * prior.sigma2 * num_data)
    return prior.reg / (shots if prior.lambda_rule == "shots" else shots**2)


def check_classes(columns: Array) -> None:
    """Refuses to train on one class; answering with one is no harm.

    Args:
      columns: [num_categories, T] int32.

    Raises:
      UserError: T is 1, where the cross-entropy is 0 whatever the prompts.
    """
    if columns.shape[1] < 2:
        raise UserError(
            "config.app.task has a single class, from which nothing is learnt; add "
            "config.data.categories or defect types, or set config.app.task='state'"
        )


def prior_loss(network: Network, prior: Prior) -> LossFn:
    """Stage 1: cross-entropy of the prior network's prompts."""

    def loss_fn(params, frozen, batch, key):
        del key
        check_classes(frozen["columns"])
        features = batch["image_features"]
        num_classes = network.tower.parts.suffix.input_ids.shape[0]
        vectors = model.prior_vectors(params["prior"], features)
        contexts = model.prior_context_by_class(vectors, prior.layout, num_classes)
        text = model.prior_text_features_by_class(
            network.tower, frozen["text"], contexts, network.num_vectors
        )
        logits = model.particle_logits(text, features, frozen["logit_scale"])[0]
        logits = model.of_category(logits, frozen["columns"], batch["category_id"])
        target, valid = batch[network.target], batch.get("valid")
        loss = classification.cross_entropy(logits, target, valid)
        accuracy = classification.accuracy(logits, target, valid)
        return loss, {"ce": loss, "accuracy": accuracy}

    return loss_fn


def energy(context: Array, center: Array, support: str) -> Array:
    """Returns |m(theta_i) - mu|^2, or its sum over tokens, [P].

    Args:
      context: [P, N, d].
      center: mu, [d].
      support: "token_mean", or "per_token" for the sum.
    """
    if support == "token_mean":
        return jnp.sum((context.mean(1) - center) ** 2, axis=-1)
    return jnp.sum((context - center) ** 2, axis=(1, 2))


def batch_center(params, features: Array, valid: Array | None) -> Array:
    """mu_B: phi averaged over the valid rows of a batch, [d]."""
    vectors = model.prior_vectors(params["prior"], features)
    if valid is None:
        return jnp.mean(vectors, axis=0)
    weights = valid.astype(vectors.dtype)[:, None]
    return jnp.sum(vectors * weights, axis=0) / jnp.sum(weights)


def particle_loss(network: Network, prior: Prior, weight: float) -> LossFn:
    """Stage 2: sum_i [CE_i + lambda |m(theta_i) - mu|^2].

    The gradient of the sum is the stack of per-particle gradients, which the phase's
    transport couples.

    Args:
      network: Text tower and task.
      prior: Where mu comes from and what it pulls.
      weight: lambda, from `prior_weight`.
    """

    def loss_fn(params, frozen, batch, key):
        del key
        check_classes(frozen["columns"])
        context = params["particles"]["context"]
        features, valid = batch["image_features"], batch.get("valid")
        text = model.text_features(network.tower, frozen["text"], context)
        logits = model.particle_logits(text, features, frozen["logit_scale"])
        logits = model.of_category(logits, frozen["columns"], batch["category_id"])
        target = batch[network.target]
        ce = classification.cross_entropy(logits, target, valid)  # [P]
        center, fitting = _center(prior, params, frozen, features, valid)
        quadratic = energy(context, center, prior.support)  # [P]
        loss = jnp.sum(ce) + weight * jnp.sum(quadratic)
        if prior.weight_decay:
            loss = loss + prior.weight_decay / 2 * jnp.sum(context**2)
        metrics = {
            "ce": jnp.mean(ce),
            "prior_energy": jnp.sum(quadratic),
            "accuracy": classification.accuracy(logits.mean(0), target, valid),
            **spread(context),
        }
        return loss + fitting, metrics

    return loss_fn


def _center(prior: Prior, params, frozen, features: Array, valid: Array | None):
    """Returns (mu [d], the loss of the moving average)."""
    if prior.center == "dataset":
        features, valid = frozen["train_features"], None
    center = batch_center(params, features, valid)
    if prior.train != "joint":
        center = jax.lax.stop_gradient(center)
    if prior.center != "ema":
        return center, 0.0
    average = params["center"]["average"]
    gap = average - jax.lax.stop_gradient(center)
    return jax.lax.stop_gradient(average), jnp.sum(gap**2) / 2


def spread(context: Array) -> dict[str, Array]:
    """Returns how far particles are apart; never a measure of calibration.

    Args:
      context: [P, N, d].

    Returns:
      "spread", their mean distance, and "bandwidth", the median rule's h.
    """
    flat = jax.lax.stop_gradient(context.reshape(context.shape[0], -1))
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    r2 = pairing.squared_distances(flat)
    bandwidth = bandwidths.scaled(bandwidths.median_of(r2), flat.shape[0])
    return {"spread": pairing.mean_distance(flat), "bandwidth": bandwidth}
