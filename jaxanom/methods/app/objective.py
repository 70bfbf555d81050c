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
from jaxanom.posterior import bandwidths
from jaxanom.posterior import pairs as pairing
from jaxanom.types import Array

SUPPORTS = ("token_mean", "per_token")
CENTERS = ("batch", "dataset", "ema")
TRAINING = ("separate", "joint", "frozen_random")
RULES = ("shots", "shots_squared", "sigma2")


class Prior(NamedTuple):
    """Options of the prior, keys of `config.app.prior`.

    Attributes:
      support: "token_mean" pulls the mean of a particle's N vectors to mu, as released,
        and leaves the other directions flat; "per_token" pulls every vector.
      center: mu is phi averaged over the "batch", as released, which moves from step to
        step; over the clean training images ("dataset": a fixed target, for samplers);
        or a moving average ("ema"), fitted by the optimiser with `center_rate`.
      center_rate: gradient of the moving average per distance to the batch's mean: its
        step is so many learning rates long, and a sampler's learning rate is 1.
      layout: see `model.LAYOUTS`.
      train: "separate": stage 1 fits phi, stage 2 leaves it; "joint": stage 2 moves phi
        too; "frozen_random": phi as drawn.
      weight: lambda.
      weight_decay: adds wd/2 |theta|^2 to L_i; for samplers, whose target must hold it.
    """

    support: str = "token_mean"
    center: str = "batch"
    center_rate: float = 1.0
    layout: str = "per_image"
    train: str = "separate"
    weight: float = 0.0
    weight_decay: float = 0.0


class Network(NamedTuple):
    """What both losses and the prediction share."""

    tower: model.TextTower
    num_vectors: int
    target: str


def check(prior: Prior) -> None:
    """Refuses unknown options of the prior; UserError names the key."""
    for key, known in (
        ("support", SUPPORTS),
        ("center", CENTERS),
        ("layout", model.LAYOUTS),
        ("train", TRAINING),
    ):
        if getattr(prior, key) not in known:
            raise UserError(
                f"config.app.prior.{key}={getattr(prior, key)!r}; choose one of {known}"
            )


def trainable(prior: Prior) -> tuple[str, ...]:
    """Returns the path patterns that stage 2 trains."""
    found = ["particles/.*"]
    if prior.train == "joint":
        found.append("prior/.*")
    if prior.center == "ema":
        found.append("center/.*")
    return tuple(found)


def prior_weight(rule: str, shots: float, reg: float, sigma2: float, num_data: float):
    """Returns lambda by the rule of the data set.

    Args:
      rule: "shots" reg / S; "shots_squared" reg / S^2; "sigma2" 1 / (2 sigma2 n).
      shots: S, training images per class, n / K.
      reg: 1 in the released scripts.
      sigma2: variance of the prior.
      num_data: n.

    Raises:
      UserError: unknown rule, or a variance that is not positive.
    """
    if rule not in RULES or (rule == "sigma2" and sigma2 <= 0):
        raise UserError(
            f"config.app.prior.lambda_rule={rule!r}, sigma2={sigma2}; choose one of "
            f"{RULES} and a positive variance"
        )
    if rule == "sigma2":
        return 1 / (2 * sigma2 * num_data)
    return reg / (shots if rule == "shots" else shots**2)


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
        found = classification.accuracy(logits, target, valid)
        return loss, {"ce": loss, "accuracy": found}

    return loss_fn


def energy(context: Array, center: Array, support: str) -> Array:
    """Returns |m(theta_i) - mu|^2, or its sum over tokens, [P].

    Args:
      context: [P, N, d].
      center: mu, [d].
      support: one of `SUPPORTS`.
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


def particle_loss(network: Network, prior: Prior) -> LossFn:
    """Stage 2: sum_i [CE_i + lambda |m(theta_i) - mu|^2].

    The gradient of the sum is the stack of per-particle gradients, which the phase's
    transport couples.
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
        loss = jnp.sum(ce) + prior.weight * jnp.sum(quadratic)
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
    return jax.lax.stop_gradient(average), prior.center_rate / 2 * jnp.sum(gap**2)


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
