"""What a training will take on each device, phase by phase; nothing is trained."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxanom.data import pipeline, pools
from jaxanom.jobs import prepare
from jaxanom.parallel import memory
from jaxanom.parallel import mesh as meshes
from jaxanom.training import forecast, plan
from jaxanom.types import Batch, Frozen

_GIBI = 2**30


class DryRun(NamedTuple):
    """What would be trained where.

    Attributes:
      mesh: The devices.
      batch_size: global rows of a step.
      forecasts: One of each phase that would be trained, in order.
      limit: bytes of a device; None if it is not known.
    """

    mesh: Mesh
    batch_size: int
    forecasts: tuple[forecast.Forecast, ...]
    limit: int | None


def of_config(
    config: ml_collections.ConfigDict,
    directory: str | Path = "",
    devices: Sequence[jax.Device] | None = None,
    limit: int | None = None,
) -> DryRun:
    """Compiles the step of every phase of a config and reads what it takes.

    Weights are read and parameters initialised as a training does; with the persistent
    compile cache on, that training finds the programs there.

    Args:
      config: A recipe's config.
      directory: The run, which need not exist; `config.kept` alone reads it.
      devices: The devices of the mesh, attached or not; None: all attached ones.
      limit: bytes of a device; None asks the devices.

    Raises:
      UserError: see `prepare.prepare`.
    """
    config = prepare.located(config, directory)
    prepared = prepare.prepare(config, devices=devices)
    settings = plan.read_train(config.train)
    params, frozen = prepared.method.init(jax.random.key(settings.seed))
    forecasts = tuple(
        forecast.of_step(
            stage,
            params,
            frozen,
            batch_shapes(prepared, frozen, stage.name),
            prepared.mesh,
            settings.ema_decay,
            settings.offload_frozen,
        ).forecast
        for stage in plan.stages(prepared.method, config.phases)
    )
    limit = memory.device_bytes(prepared.mesh) if limit is None else limit
    return DryRun(prepared.mesh, config.data.batch_size, forecasts, limit)


def check_fits(found: DryRun) -> None:
    """Raises UserError where a phase needs more than a device has."""
    for one in found.forecasts:
        forecast.check_fits(one, found.limit)


def batch_shapes(prepared: prepare.Prepared, frozen: Frozen, phase: str) -> Batch:
    """Returns the batch of a phase as shapes; reads one image and encodes none.

    Args:
      prepared: a prepared config.
      frozen: Its method's frozen weights.
      phase: its name.
    """
    sources, mixtures = prepare.pools_of(prepared)
    mixtures = {phase: mixtures[phase]}
    row = _one_row(sources, mixtures, phase)
    if prepared.method.encode is not None:
        shapes = jax.eval_shape(prepared.method.encode, frozen, row)
        empty = pipeline.Encoded(
            {
                name: np.zeros(leaf.shape, leaf.dtype)
                for name, leaf in shapes.items()
                if name != "valid"
            }
        )
        row = _one_row(dict.fromkeys(sources, empty), mixtures, phase)
    rows = prepared.config.data.batch_size
    return {
        name: jax.ShapeDtypeStruct(
            (rows, *np.shape(value)[1:]), jax.dtypes.canonicalize_dtype(value.dtype)
        )
        for name, value in row.items()
    }


def _one_row(
    sources: Mapping[str, Any], mixtures: Mapping[str, Any], phase: str
) -> Mapping[str, np.ndarray]:
    with contextlib.closing(pools.batch_maker(sources, mixtures, 1, 0)(phase, 0)) as it:
        return next(iter(it))


def text(found: DryRun) -> str:
    """Returns mesh, global batch, and a block of lines per phase."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in found.mesh.shape.items())
    shards = meshes.num_batch_shards(found.mesh)
    kind = found.mesh.devices.flat[0].device_kind
    limit = "unknown" if found.limit is None else f"{found.limit / _GIBI:.2f} GiB"
    lines = [
        f"mesh          {mesh} ({found.mesh.size} x {kind})",
        f"global batch  {found.batch_size} rows, {found.batch_size // shards} a device",
        f"device memory {limit}",
    ]
    for one in found.forecasts:
        lines += ["", *_block(one, found.mesh.size)]
    return "\n".join(lines)


def _block(one: forecast.Forecast, num_devices: int) -> list[str]:
    held = {
        "parameters": one.params,
        "optimizer": one.optimizer,
        "frozen": one.frozen,
        "batch": one.batch,
        "working": one.working,
        "in all": one.total,
    }
    lines = [f"phase {one.phase}, per device"]
    lines += [
        f"  {name:<12}{size / _GIBI:>10.4f} GiB"
        + ("  gradients, activations" if name == "working" else "")
        for name, size in held.items()
    ]
    if one.host:
        lines.append(f"  {'on the host':<12}{one.host / _GIBI:>10.4f} GiB  frozen")
    count, unit = one.flops / 1e9, "GFLOP"
    lines.append(
        f"  {'arithmetic':<12}{count / num_devices:>10.4g} {unit} a step, "
        f"{count:.4g} on all devices"
        + "".join(f"; without {name}" for name in one.uncounted)
    )
    sent = "unknown" if one.received is None else f"{one.received / 2**20:>10.4g} MiB"
    lines.append(f"  {'received':<12}{sent} a step from other devices")
    lines.append(f"  {'compiled':<12}{one.compile_s:>10.1f} s")
    return lines
