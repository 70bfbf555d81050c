"""Trains a config into a run directory, and goes on where an earlier start ended."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections

from jaxanom import record, trees
from jaxanom.data import pools
from jaxanom.jobs import prepare
from jaxanom.jobs.load import PARAMS, Trained, load
from jaxanom.methods import by_name
from jaxanom.models.checkpoints.formats import weights
from jaxanom.parallel import distributed, placement
from jaxanom.training import loop


def train(
    config: ml_collections.ConfigDict,
    directory: str | Path,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    make: prepare.MakeFn = by_name.make,
) -> Trained:
    """Trains all phases of a config; called again, it goes on where it stopped.

    A finished run is loaded, and its record stays as it is.

    Args:
      config: A recipe's config.
      directory: The run. One of another config there is refused.
      on_log: Called with every row of metrics.
      make: Makes the method, see `prepare.prepare`.

    Raises:
      UserError: See `prepare.prepare`; or the directory holds another run, or one of
        other images.
    """
    directory = Path(directory)
    # The record keeps folders of the run as they are named: a copied run finds its own.
    prepared = prepare.prepare(prepare.located(config, directory), make=make)
    sources, mixtures = prepare.pools_of(prepared)
    select, selection_facts = prepare.selection_of(prepared, directory)
    # Only now: a config that was refused must not stand in the way of the next one.
    writes, goes_on = distributed.is_writer(), (directory / record.CONFIG).is_file()
    record.claim(directory, config, writes)
    if goes_on:
        pools.check_recorded(prepared.dataset, prepared.division, directory)
        if _is_finished(directory):
            return load(directory)
    begun = {
        "method": config.method,
        "versions": record.versions(),
        "machine": record.machine(),
        "split": pools.describe(prepared.dataset, prepared.division),
        **selection_facts,
    }
    if writes:
        record.update_json(directory / record.RECORD, begun)
    method = prepared.method
    initial = method.init(jax.random.key(config.train.seed))
    if config.train.offload_frozen:  # what init computed is on a device
        initial = initial[0], placement.to_host(initial[1])
    make_batches = prepare.batch_maker(prepared, initial[1], sources, mixtures)
    started = time.perf_counter()
    params, info = loop.run(
        method,
        config.phases,
        config.train,
        make_batches,
        prepared.mesh,
        directory,
        identity=_identity(config, select is not None),
        initial=initial,
        selection=select,
        on_log=on_log,
        notes={"config": record.plain(config), "record": begun},
    )
    params, facts = placement.to_host(info["ema_params"]), {}
    if method.complete is not None:
        key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
        params, facts = method.complete(params, info["frozen"], key)
        params = placement.to_host(params)
    facts |= {
        "num_params": trees.num_params(params),
        "skipped_steps": info["skipped"],
        "train_seconds": round(time.perf_counter() - started, 1),
    }
    if writes:
        weights.write(directory / PARAMS, trees.flatten(params))
        if method.export is not None:
            batch = next(make_batches(method.phases[0].name, 0))
            method.export(params, initial[1], directory / "model", batch)
        record.update_json(directory / record.RECORD, facts)
    distributed.wait_for_all(f"{directory} is written")
    return Trained(directory, prepared, params, info["frozen"])


def _identity(config: ml_collections.ConfigDict, selects: bool) -> dict[str, Any]:
    """What a checkpoint must have been made with, so that training goes on from it."""
    data = {k: v for k, v in record.plain(config.data).items() if k != "num_workers"}
    identity = {"method": config.method, "data": data}
    return identity | ({"selection": record.plain(config.selection)} if selects else {})


def _is_finished(directory: Path) -> bool:
    """Whether all that `train` writes is there; the record's last entry is the last."""
    path = directory / record.RECORD
    written = (directory / PARAMS).is_file() and path.is_file()
    return written and "train_seconds" in record.read_json(path)
