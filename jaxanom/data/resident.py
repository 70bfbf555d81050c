"""Encoded training rows in device memory: a step's batch is gathered there.

The host draws which rows a batch takes, exactly as it does for batches in its own
memory, and sends their numbers alone. Every device holds all rows, so this is for what
fits beside the model: one 518 px image of the published Bayes-PFL setting takes 22 MB.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxanom.data import catalog, pools
from jaxanom.errors import UserError, check_choice
from jaxanom.parallel import memory, rules

PLACES = ("auto", "device", "host")
SHARE = 0.5
"""Of the free device memory that rows may take; the step needs the rest."""

Rows = Mapping[str, np.ndarray]


def is_wanted(place: str, sources: Mapping[str, Rows], mesh: Mesh) -> bool:
    """Decides where encoded rows are kept.

    Args:
      place: "device", "host", or "auto": on the device if it is known to have the room.
      sources: {pool: {field: [N, ...]}}.
      mesh: whose devices are meant.

    Raises:
      UserError: see `check`.
    """
    check(place)
    if place != "auto" or jax.process_count() > 1:
        return place == "device"
    free = memory.free_bytes(mesh)
    return free is not None and num_bytes(sources) <= SHARE * free


def check(place: str) -> None:
    """Raises UserError for an unknown place, or "device" with several processes."""
    check_choice("config.data.feature_memory", place, PLACES)
    if place == "device" and jax.process_count() > 1:
        raise UserError(
            "config.data.feature_memory='device': with several processes each reads "
            "its own rows; set it to 'host'"
        )


def num_bytes(sources: Mapping[str, Rows]) -> int:
    """Returns what the rows of all pools take."""
    return sum(field.nbytes for rows in sources.values() for field in rows.values())


def batch_maker(
    sources: Mapping[str, Rows],
    mixtures: Mapping[str, Mapping[str, float]],
    batch_size: int,
    seed: int,
    mesh: Mesh,
) -> Callable[[str, int], Iterator[Mapping[str, Any]]]:
    """`pools.batch_maker` with rows in device memory; batches are the same.

    Args:
      sources: {pool: {field: [N, ...]}} of equal fields.
      mixtures, batch_size, seed: see `pools.batch_maker`.
      mesh: batches are spread over it, rows kept whole on each device.
    """
    whole = rules.replicated(mesh)
    fields = next(iter(sources.values())).keys()
    tables = {
        name: jax.device_put(
            np.concatenate([rows[name] for rows in sources.values()]), whole
        )
        for name in fields
    }
    counts = [len(next(iter(rows.values()))) for rows in sources.values()]
    starts = np.cumsum([0, *counts[:-1]])
    places = {
        pool: catalog.Rows(count, functools.partial(_place, start))
        for pool, count, start in zip(sources, counts, starts, strict=True)
    }
    make_places = pools.batch_maker(places, mixtures, batch_size, seed)

    def take(tables: Mapping[str, jax.Array], place: jax.Array):
        return {name: table[place] for name, table in tables.items()}

    gather = jax.jit(take, out_shardings=rules.rows(mesh))

    def make(phase: str, start_step: int) -> Iterator[Mapping[str, Any]]:
        for batch in make_places(phase, start_step):
            rest = {key: value for key, value in batch.items() if key != "place"}
            yield {**gather(tables, batch["place"]), **rest}

    return make


def _place(start: int, row: int) -> dict[str, Any]:
    return {"place": np.int32(start + row)}
