"""What a training step carries from one step to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxanom.parallel import rules
from jaxanom.types import Array, Params, PRNGKey


class TrainState(NamedTuple):
    """Carried, donated and saved whole.

    Attributes:
      step: int32, finished steps of this phase, skipped ones included.
      params: what this phase trains; nothing else.
      opt_state: state of the optax chain.
      ema: moving average of `params`, or {} when averaging is off.
      key: the phase's key; step n draws from `fold_in(key, n)`.
      skipped: int32, steps whose loss or gradient was not finite.
      bad_in_a_row: int32, how many of the latest steps were skipped.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    ema: Params
    key: PRNGKey
    skipped: Array
    bad_in_a_row: Array


def init(
    params: Params, tx: optax.GradientTransformation, key: PRNGKey, averaged: bool
) -> TrainState:
    """Returns the state before the first step of a phase.

    Args:
      params: what the phase trains.
      tx: the optax chain.
      key: typed key of the phase.
      averaged: keep a moving average of the parameters.
    """
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=tx.init(params),
        # A copy: two fields must not share a buffer that the step is given to reuse.
        ema=jax.tree.map(jnp.copy, params) if averaged else {},
        key=key,
        skipped=jnp.copy(zero),
        bad_in_a_row=jnp.copy(zero),
    )


def shardings(abstract: TrainState, mesh: Mesh) -> Any:
    """Returns where each leaf of a state lives.

    Args:
      abstract: a state, or its `jax.eval_shape`.
      mesh: from `parallel.mesh.make_mesh`.
    """
    whole = rules.replicated(mesh)
    return TrainState(
        step=whole,
        params=rules.shardings(abstract.params, mesh),
        opt_state=rules.shardings_like(abstract.opt_state, abstract.params, mesh),
        ema=rules.shardings(abstract.ema, mesh),
        key=whole,
        skipped=whole,
        bad_in_a_row=whole,
    )
