"""Config -> clipping, particle transport, optimiser and schedule in one optax chain."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxanom import sections
from jaxanom.errors import UserError, check_choice
from jaxanom.types import Array

OPTIMIZERS = ("adamw", "adam", "sgd", "lion")
SCHEDULES = ("constant", "cosine", "linear", "step", "epoch_cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of `config.phases.<name>`; `configs/common.py` has their defaults.

    Attributes:
      num_steps: Optimiser steps of the phase; 0 skips the phase.
      optimizer: "adamw", "adam", "sgd" or "lion".
      learning_rate: The peak, reached when warm-up ends.
      warmup_steps: Linear warm-up; step n (from 0) runs at (n + 1) / warmup_steps.
      warmup_from_zero: It runs at n / warmup_steps instead: the first step moves
        nothing, as in some released code.
      schedule: After warm-up "constant"; "cosine" or "linear" down to `final_fraction`
        of the peak; "step" multiplies by `step_factor` at each of `step_at`.
        "epoch_cosine", without warm-up, is constant within an epoch: the first one runs
        at `first_rate`, epoch e at half of (1 + cos(pi (e - 1) / num_epochs)).
      final_fraction: Share of the peak at the last step of "cosine" and "linear".
      step_at: Fractions of `num_steps`, in [0, 1].
      step_factor: See `schedule`.
      steps_per_epoch, num_epochs, first_rate: Settings of "epoch_cosine"; 0 epochs are
        `num_steps` over `steps_per_epoch`.
      rate_factors: (path pattern, factor) pairs; a parameter's learning rate is
        multiplied by the factor of the first pattern that matches its whole path.
      weight_decay: Decoupled for adamw and lion, added to the gradient for adam and
        sgd; 0 is off.
      decay_all: Whether biases and norm scales decay too.
      b1, b2, eps: Moments of adamw, adam, lion.
      momentum, nesterov: Settings of sgd.
      clip_norm: Largest global gradient norm; 0 is off.
      accumulate: Microbatches that one optimiser step averages over.
    """

    num_steps: int
    optimizer: str
    learning_rate: float
    warmup_steps: int
    warmup_from_zero: bool
    schedule: str
    final_fraction: float
    step_at: tuple[float, ...]
    step_factor: float
    steps_per_epoch: int
    num_epochs: int
    first_rate: float
    rate_factors: tuple[tuple[str, float], ...]
    weight_decay: float
    decay_all: bool
    b1: float
    b2: float
    eps: float
    momentum: float
    nesterov: bool
    clip_norm: float
    accumulate: int


def read(section: Mapping[str, Any], where: str) -> OptimizerConfig:
    """Reads the settings of one phase.

    Args:
      section: `config.phases.<name>`.
      where: What it is called in messages.

    Raises:
      UserError: See `sections.read`; or a value is out of range.
    """
    settings = sections.read(section, OptimizerConfig, where)
    check_choice(f"{where}.optimizer", settings.optimizer, OPTIMIZERS)
    check_choice(f"{where}.schedule", settings.schedule, SCHEDULES)
    lowest = {"num_steps": 0, "warmup_steps": 0, "accumulate": 1, "steps_per_epoch": 1}
    check_lowest(settings, lowest, where)
    return settings


def check_lowest(settings: Any, lowest: Mapping[str, int], where: str) -> None:
    """Raises UserError where a setting is below its least value."""
    for name, low in lowest.items():
        if getattr(settings, name) < low:
            value = getattr(settings, name)
            raise UserError(f"{where}.{name}={value}; want {low} or more")


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Returns optimiser step -> learning rate, float32."""
    span = max(config.num_steps - config.warmup_steps, 1)
    first = 0 if config.warmup_from_zero else 1

    def learning_rate(count: Array) -> Array:
        count = jnp.asarray(count, float)  # float64 where that is on
        if config.schedule == "epoch_cosine":
            return _epoch_cosine(config, count)
        warm = 1.0
        if config.warmup_steps:
            warm = jnp.minimum((count + first) / config.warmup_steps, 1.0)
        done = jnp.clip((count - config.warmup_steps) / span, 0.0, 1.0)
        low = config.final_fraction
        if config.schedule == "cosine":
            decay = low + (1 - low) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif config.schedule == "linear":
            decay = 1 - (1 - low) * done
        elif config.schedule == "step":
            edges = jnp.asarray([round(a * config.num_steps) for a in config.step_at])
            decay = config.step_factor ** jnp.sum(count >= edges)
        else:
            decay = 1.0
        return config.learning_rate * warm * decay

    return learning_rate


def _epoch_cosine(config: OptimizerConfig, count: Array) -> Array:
    """One warm-up epoch, then a cosine that starts in it, as Dassl has it."""
    epoch = jnp.floor(count / config.steps_per_epoch)
    num_epochs = config.num_epochs or config.num_steps / config.steps_per_epoch
    rate = config.learning_rate / 2 * (1 + jnp.cos(jnp.pi * (epoch - 1) / num_epochs))
    return jnp.where(epoch == 0, config.first_rate, rate)


def make(
    config: OptimizerConfig,
    transport: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Builds the chain: clip, transport, weight decay, optimiser, schedule.

    Args:
      config: Settings of the phase.
      transport: Couples particles; it sees clipped gradients and hands the optimiser
        descent directions. Identity when None.
    """
    transport = optax.identity() if transport is None else transport
    clip = (
        optax.clip_by_global_norm(config.clip_norm)
        if config.clip_norm > 0
        else optax.identity()
    )
    decay = optax.identity()
    if config.weight_decay > 0:
        mask = None if config.decay_all else decayed
        decay = optax.add_decayed_weights(config.weight_decay, mask=mask)
    if config.optimizer == "sgd":
        scale = optax.trace(config.momentum, config.nesterov)
    elif config.optimizer == "lion":
        scale = optax.scale_by_lion(config.b1, config.b2)
    else:
        scale = optax.scale_by_adam(config.b1, config.b2, config.eps)
    decoupled = config.optimizer in ("adamw", "lion")
    inner = (scale, decay) if decoupled else (decay, scale)
    if config.rate_factors:
        inner = (*inner, scale_by_path(config.rate_factors))
    return optax.chain(
        clip, transport, *inner, optax.scale_by_learning_rate(schedule(config))
    )


def scale_by_path(
    factors: Sequence[tuple[str, float]],
) -> optax.GradientTransformation:
    """Multiplies updates by the factor of the first pattern that matches their path.

    Args:
      factors: (regular expression for a whole path "a/b/c", factor) pairs; paths that
        none matches keep their updates.

    Raises:
      UserError: when it is initialised, a pattern that is the first match of no path.
    """

    def place(keys: Any) -> int | None:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        matches = (re.fullmatch(pattern, path) for pattern, _ in factors)
        return next((i for i, match in enumerate(matches) if match), None)

    def init(params: Any) -> optax.EmptyState:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        used = {place(keys) for keys, _ in leaves}
        unused = [factors[i][0] for i in range(len(factors)) if i not in used]
        if unused:
            raise UserError(
                f"config.phases.<name>.rate_factors: {unused} match no parameter that "
                "the phase trains and an earlier pattern does not"
            )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scaled(keys: Any, leaf: Array) -> Array:
            number = place(keys)
            return leaf if number is None else leaf * factors[number][1]

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(init, update)


def decayed(params: Any) -> Any:
    """Returns True for weights, False for biases, norm scales and vectors.

    By name as well as by rank: a particle's bias is a matrix once it is stacked.
    """

    def is_weight(keys, leaf):
        name = jax.tree_util.keystr(keys[-1:], simple=True) if keys else ""
        return name not in ("bias", "scale") and leaf.ndim > 1

    return jax.tree_util.tree_map_with_path(is_weight, params)
