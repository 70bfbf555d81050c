"""The jitted train step: one gradient, one guarded update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxanom import trees
from jaxanom.contracts import LossFn
from jaxanom.errors import UserError
from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import placement
from jaxanom.training.plan import Stage
from jaxanom.training.state import TrainState, shardings
from jaxanom.types import Array, Batch, Frozen, Metrics, Params, PRNGKey

RESERVED = ("loss", "grad_norm", "finite")


class Step(NamedTuple):
    """A compiled step and how often it was traced.

    Attributes:
      apply: jitted (state, fixed, frozen, batch) -> (state, metrics); takes over the
        memory of `state`. `fixed` are parameters that the phase does not train.
      num_traces: () -> int; more than one means that shapes changed between steps.
    """

    apply: Callable[[TrainState, Params, Frozen, Batch], tuple[TrainState, Metrics]]
    num_traces: Callable[[], int]


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    state_shardings: Any = None,
    frozen_shardings: Any = None,
    mesh: Mesh | None = None,
) -> Step:
    """Builds the step of one phase.

    A step whose loss or gradient is not finite keeps parameters, optimiser state and
    average as they were, and is counted; the step number advances, so that the next
    batch and the next key are used.

    Args:
      loss_fn: (params, frozen, batch, key) -> (loss, scalar metrics), a mean over the
        global batch; `params` holds trained and fixed parameters together.
      tx: the optax chain.
      ema_decay: Decay of the moving average of parameters; 0 keeps none. Early on it
        is (1 + step) / (10 + step), or the average would remember the initial values.
      accumulate: microbatches per step. Gradients, loss and metrics are averaged, which
        equals one big batch for a loss that weighs all rows alike.
      state_shardings: where the new state lives; None leaves it to the compiler.
      frozen_shardings: where `frozen` is brought first, from the host's memory; None:
        it is there.
      mesh: The devices that run it; None: one.
    """
    traces = []
    one = pure_step(loss_fn, tx, ema_decay=ema_decay, accumulate=accumulate)

    def step(state, fixed, frozen, batch):
        traces.append(1)  # runs while tracing only
        if frozen_shardings is not None:  # the compiler drops the copies nobody reads
            frozen = jax.device_put(frozen, frozen_shardings)
        return one(state, fixed, frozen, batch)

    # Metrics are read on every process, so every device holds them.
    whole = None if state_shardings is None else state_shardings.step
    apply = jax.jit(
        meshes.bound(step, mesh),
        donate_argnums=0,
        out_shardings=(state_shardings, whole),
    )
    return Step(apply=apply, num_traces=lambda: len(traces))


def of_stage(
    stage: Stage,
    tx: optax.GradientTransformation,
    carried: TrainState,
    frozen: Frozen,
    mesh: Mesh,
    ema_decay: float,
) -> Step:
    """Builds the step of a phase for a mesh.

    Args:
      stage: The phase and its settings.
      tx: The optax chain.
      carried, frozen: Placed arrays, or shapes with their shardings.
      mesh: The devices that run it.
      ema_decay: See `make_step`.
    """
    return make_step(
        stage.phase.loss_fn,
        tx,
        ema_decay=ema_decay,
        accumulate=stage.config.accumulate,
        state_shardings=shardings(carried, mesh),
        frozen_shardings=placement.fetched_shardings(frozen, mesh),
        mesh=mesh,
    )


def pure_epoch(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    accumulate: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns many steps as one scan, to be compiled as part of more.

    Where a step takes less time than its launch (cached features, small heads), this is
    what it costs. The result is the same as that of `make_step`, step by step.

    Args:
      loss_fn, tx, ema_decay, accumulate: As in `make_step`.

    Returns:
      (state, fixed, frozen, rows, order) -> (state, metrics [S]). rows: all examples,
      [N, ...] each; order: [S, B] int32, the rows of every step's batch.
    """
    one = pure_step(loss_fn, tx, ema_decay=ema_decay, accumulate=accumulate)

    def epoch(state, fixed, frozen, rows, order):
        def step(state, places):
            batch = jax.tree.map(lambda leaf: jnp.take(leaf, places, axis=0), rows)
            return one(state, fixed, frozen, batch)

        return jax.lax.scan(step, state, order)

    return epoch


def pure_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    accumulate: int = 1,
) -> Callable[[TrainState, Params, Frozen, Batch], tuple[TrainState, Metrics]]:
    """Returns the step itself, to be compiled or scanned; see `make_step`."""

    def step(state, fixed, frozen, batch):
        key = jax.random.fold_in(state.key, state.step)

        def loss_of(params, rows, key):
            loss, metrics = loss_fn(trees.merge(params, fixed), frozen, rows, key)
            return jnp.asarray(loss, jnp.float32), _scalars(metrics)

        grads, metrics = _gradients(loss_of, state.params, batch, key, accumulate)
        # The norm is finite only if every gradient is. A test of every leaf says the
        # same and, fused into every leaf's update, takes XLA ten times as long to
        # compile on a CPU.
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        metrics = metrics | {
            "grad_norm": grad_norm,
            "finite": finite.astype(jnp.float32),
        }
        new_state = _guarded_update(state, grads, finite, tx, ema_decay, frozen)
        return new_state, metrics

    return step


def microbatches(batch: Batch, count: int) -> Batch:
    """Splits rows [B, ...] into [count, B / count, ...].

    Microbatch j takes rows j, j + count, ...: each device then splits the rows that it
    already holds, and nothing is sent.
    """
    num_rows = jax.tree.leaves(batch)[0].shape[0]
    if num_rows % count:
        raise UserError(
            f"batch_size={num_rows} is not a multiple of accumulate={count}; set "
            "config.phases.<name>.accumulate"
        )
    return jax.tree.map(
        lambda leaf: jnp.moveaxis(
            leaf.reshape(num_rows // count, count, *leaf.shape[1:]), 1, 0
        ),
        batch,
    )


def _gradients(
    loss_of: Callable[..., tuple[Array, Metrics]],
    params: Params,
    batch: Batch,
    key: PRNGKey,
    accumulate: int,
) -> tuple[Params, Metrics]:
    """Returns float32 gradients and metrics, "loss" included."""
    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def one(rows, key):
        (loss, metrics), grads = value_and_grad(params, rows, key)
        grads = jax.tree.map(lambda grad: grad.astype(jnp.float32), grads)
        return grads, {"loss": loss} | metrics

    if accumulate == 1:
        return one(batch, key)

    def add(total, item):
        rows, index = item
        values = one(rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, values), None

    rows = microbatches(batch, accumulate)
    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], rows), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (rows, jnp.arange(accumulate)))
    return jax.tree.map(lambda leaf: leaf / accumulate, total)


def _guarded_update(
    state: TrainState,
    grads: Params,
    finite: Array,
    tx: optax.GradientTransformation,
    ema_decay: float,
    frozen: Frozen,
) -> TrainState:
    """Applies the update where `finite`, else only counts."""
    # A transport may compare particles by what a frozen tower makes of them.
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads, state.opt_state, state.params, frozen=frozen
    )
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay > 0:
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
    # One operation a leaf, where jnp.where makes three: there are thousands of leaves.
    params, opt_state, ema = jax.tree.map(
        lambda new, old: jax.lax.select(finite, new, old),
        (params, opt_state, ema),
        (state.params, state.opt_state, state.ema),
    )
    bad = jnp.where(finite, 0, 1).astype(jnp.int32)
    return TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=ema,
        key=state.key,
        skipped=state.skipped + bad,
        bad_in_a_row=(state.bad_in_a_row + 1) * bad,
    )


def _scalars(metrics: Metrics) -> Metrics:
    """Returns a method's metrics as float32 scalars.

    Raises:
      UserError: a metric is no scalar, or takes a name the step uses.
    """
    for name, value in metrics.items():
        if name in RESERVED or jnp.ndim(value) != 0:
            raise UserError(
                f"metric {name!r} of shape {jnp.shape(value)}: loss_fn returns scalars "
                f"under names other than {list(RESERVED)}"
            )
    return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
