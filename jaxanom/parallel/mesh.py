"""Devices -> mesh. One device is a mesh of one; nobody writes a second code path."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxanom.errors import UserError
from jaxanom.types import Array

AXES = ("data", "fsdp", "model", "particle")
"""`data` and `fsdp` split the batch; `fsdp` also splits weights and optimiser state;
`model` splits matrix products; `particle` splits the leading axis of particles."""

BATCH_AXES = ("data", "fsdp")
PARTICLE_AXIS = "particle"

_TRACED_FOR: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
    "traced_for", default=None
)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    model: int = 1,
    particle: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Lays all devices out on the four named axes.

    Args:
      data, fsdp, model, particle: devices along each axis; one of them may be -1,
        which takes the devices that the others leave.
      devices: the devices to use; all of them when None.

    Returns:
      A mesh with axes `AXES`, partitioned by the compiler (axis type Auto).

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _resolve((data, fsdp, model, particle), len(devices))
    auto = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices)


def fitting(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Returns sizes of axes for `make_mesh`: these, or all devices along `data`.

    Args:
      sizes: Axis sizes of a mesh of other devices.
      num_devices: that are here.
    """
    own = {axis: sizes[axis] for axis in AXES}
    try:
        _resolve(tuple(own.values()), num_devices)
    except ValueError:
        return dict.fromkeys(AXES, 1) | {"data": -1}
    return own


def of_process(mesh: Mesh) -> Mesh:
    """Returns the mesh of programs that every process of a run starts by itself.

    A process alone has the whole mesh. Of several, each would wait for the others, and
    could read its own part of a result only.
    """
    if jax.process_count() == 1:
        return mesh
    return make_mesh(devices=jax.local_devices()[:1])


def num_batch_shards(mesh: Mesh) -> int:
    """Returns into how many parts the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def traced_for() -> Mesh | None:
    """Returns the mesh that a program is being traced for, where `bound` told it."""
    return _TRACED_FOR.get()


def bound(function: Callable[..., Any], mesh: Mesh | None = None) -> Callable[..., Any]:
    """Returns the function as it is to be jitted for a mesh.

    While it is traced, `traced_for()` is the mesh: the compiler splits almost
    everything by itself, but not a hand-written kernel, and what traces one has to know
    for which devices. These need not be this machine's.

    And its float32 products are float32. TPUs multiply in bfloat16 and NVIDIA's GPUs in
    TF32 unless they are told not to, which is no way to compare distances. Products of
    bfloat16 stay what they are, so `config.model.dtype` alone decides how fast networks
    are. JAX_DEFAULT_MATMUL_PRECISION, where it is set, is left as it is.

    Args:
      function: what is traced.
      mesh: None for a program of one device of this machine.
    """

    @functools.wraps(function)
    def traced(*args, **keywords):
        with _tracing_for(mesh), _float32_products(mesh):
            return function(*args, **keywords)

    return traced


def rows_stay(array: Array) -> Array:
    """Says of activations [B, ...] that each device keeps its rows, and all of them.

    Where weights are split, a compiler left alone may leave them where they are and
    send activations around, which are many times as large. Without split weights, or
    outside of `bound`, this does nothing.
    """
    mesh = traced_for()
    if mesh is None or mesh.shape["fsdp"] * mesh.shape["model"] == 1:
        return array
    if array.shape[0] % num_batch_shards(mesh):
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, P(BATCH_AXES)))


def _float32_products(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    is_set = jax.config.jax_default_matmul_precision is not None
    if is_set or device.platform == "cpu":  # which knows nothing else
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


@contextlib.contextmanager
def _tracing_for(mesh: Mesh | None) -> Iterator[None]:
    token = _TRACED_FOR.set(mesh)
    try:
        yield
    finally:
        _TRACED_FOR.reset(token)


def _resolve(sizes: tuple[int, ...], num_devices: int) -> tuple[int, ...]:
    """Replaces a -1 by what is left over and checks the product."""
    axes = ", ".join(
        f"config.mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True)
    )
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(
            f"{axes}: every mesh axis is a positive count, and at most one is -1 "
            "(= the devices that are left)"
        )
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % fixed == 0:
        return tuple(num_devices // fixed if size == -1 else size for size in sizes)
    if fixed != num_devices or -1 in sizes:
        raise UserError(
            f"{axes} does not fit {num_devices} devices: the product must be "
            f"{num_devices} (or divide it, with one axis -1); change config.mesh"
        )
    return sizes
