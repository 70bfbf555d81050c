"""What a training step takes, asked of its compiled program; nothing is computed.

Parameters and batches may be shapes alone (`jax.ShapeDtypeStruct`), and the devices
those of a topology that is not attached: compiling needs neither values nor devices.
"""

import math
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxanom import flops, trees
from jaxanom.errors import UserError
from jaxanom.parallel import collectives, placement, rules
from jaxanom.training import checkpoint, optimizer, plan, state, step
from jaxanom.types import Batch, Frozen, Params

_LESS_WORKING = (
    "config.phases.<name>.accumulate, a smaller config.data.batch_size or "
    "config.model.remat"
)


class Forecast(NamedTuple):
    """One phase's step. Bytes are those of one device.

    Attributes:
      phase: its name.
      params: what the phase trains, and parameters that it leaves as they are.
      optimizer: moments, counters, moving average, key.
      frozen: towers and tables.
      host: those of them that are kept in the host's memory, not on the device; what a
        step brings of them is part of `working`.
      batch: its share of the rows.
      working: gradients, activations and all else that lives during a step only, as
        the compiler has planned it.
      flops: Operations of a step over all devices, counted before compiling.
      uncounted: what `flops` leaves out.
      received: bytes from other devices in a step; None if a loop of unknown length
        sends.
      compile_s: seconds.
    """

    phase: str
    params: int
    optimizer: int
    frozen: int
    host: int
    batch: int
    working: int
    flops: int
    uncounted: tuple[str, ...]
    received: float | None
    compile_s: float

    @property
    def total(self) -> int:
        """Bytes of one device while a step runs."""
        return self.params + self.optimizer + self.frozen + self.batch + self.working


class Compiled(NamedTuple):
    """A step's program beside the shapes it was compiled for: (state, fixed, ...)."""

    forecast: Forecast
    program: Any
    args: tuple[Any, ...]


def of_step(
    stage: plan.Stage,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    mesh: Mesh,
    ema_decay: float = 0.0,
    offload_frozen: bool = False,
) -> Compiled:
    """Compiles the step of a phase for a mesh, as the loop will, and reads it.

    Args:
      stage: the phase and its settings.
      params, frozen, batch: arrays or shapes; of the batch all global rows.
      mesh: its devices need not be attached.
      ema_decay, offload_frozen: see `plan.TrainConfig`.

    Raises:
      UserError: a leaf or the batch does not split over the mesh, the host's memory
        is asked for where there is none, or the devices' compiler finds no plan that
        fits their memory.
    """
    tx = optimizer.make(stage.config, stage.phase.transport)
    frozen = checkpoint.abstract(
        frozen, placement.frozen_shardings(frozen, mesh, offload_frozen)
    )
    args = _arguments(stage, tx, params, frozen, batch, mesh, ema_decay > 0)
    built = step.of_stage(stage, tx, args[0], frozen, mesh, ema_decay)
    start = time.perf_counter()
    traced = built.apply.trace(*args)
    program = _compile(traced, stage.name, mesh)
    seconds = time.perf_counter() - start
    count = flops.count_jaxpr(traced.jaxpr.jaxpr)
    carried, fixed, _, _ = args
    trained = bytes_held(carried.params)
    return Compiled(
        Forecast(
            phase=stage.name,
            params=trained + bytes_held(fixed),
            optimizer=bytes_held(carried) - trained,
            frozen=0 if offload_frozen else bytes_held(frozen),
            host=bytes_held(frozen) if offload_frozen else 0,
            batch=bytes_held(args[3]),
            working=_working(program),
            flops=count.total,
            uncounted=count.unknown,
            received=_received(program, mesh.size),
            compile_s=seconds,
        ),
        program,
        args,
    )


def check_fits(forecast: Forecast, limit: int | None) -> None:
    """Raises UserError where a step needs more than a device has.

    Args:
      forecast: That of one phase.
      limit: bytes of a device; None if it is not known.
    """
    if limit is None or forecast.total <= limit:
        return
    remedies = {
        "working": _LESS_WORKING,
        "frozen": "config.mesh.fsdp, which splits frozen towers too, or "
        "config.train.offload_frozen",
    }
    largest = max(
        ("params", "optimizer", "frozen", "batch", "working"),
        key=lambda name: getattr(forecast, name),
    )
    gibi = 2**30
    raise UserError(
        f"phase {forecast.phase!r} needs {forecast.total / gibi:.2f} GiB on each "
        f"device of {limit / gibi:.2f} GiB, most of it {largest} "
        f"({getattr(forecast, largest) / gibi:.2f} GiB); try "
        + remedies.get(largest, "config.mesh.fsdp, which splits parameters and moments")
    )


def bytes_held(tree: Any) -> int:
    """Returns the bytes of a tree on one device, by each leaf's own sharding."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def _arguments(
    stage: plan.Stage,
    tx: Any,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    mesh: Mesh,
    averaged: bool,
) -> tuple[Any, ...]:
    """Returns (state, fixed, frozen, batch) as shapes that know where they live.

    `frozen` does so already.
    """
    trained, fixed = trees.split(params, stage.phase.trainable)

    def init(trained):
        return state.init(trained, tx, jax.random.key(0), averaged)

    carried = jax.eval_shape(init, trained)
    carried = checkpoint.abstract(carried, state.shardings(carried, mesh))
    fixed = checkpoint.abstract(fixed, rules.shardings(fixed, mesh))
    rows = rules.rows(mesh)
    batch = checkpoint.abstract(batch, jax.tree.map(lambda leaf: rows, batch))
    return carried, fixed, frozen, batch


def _compile(traced: Any, phase: str, mesh: Mesh) -> Any:
    """Compiles a traced step; says what to do where no plan fits the memory."""
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        said = str(error)
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        kind = mesh.devices.flat[0].device_kind
        raise UserError(
            f"phase {phase!r} does not fit a device of kind {kind}; try "
            f"config.mesh.fsdp, {_LESS_WORKING}. Its compiler says: "
            f"{said.splitlines()[0]}"
        ) from error


def _working(program: Any) -> int:
    """Returns what is neither an argument nor a result that takes one's place."""
    planned = program.memory_analysis()
    fresh = planned.output_size_in_bytes - planned.alias_size_in_bytes
    return planned.temp_size_in_bytes + max(fresh, 0)


def _received(program: Any, num_devices: int) -> float | None:
    try:
        return collectives.received_bytes(program.as_text(), num_devices)
    except ValueError:
        return None
