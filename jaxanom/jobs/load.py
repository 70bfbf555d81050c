"""A finished run, opened: what was trained, and all that it needs to be used."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxanom import record, trees
from jaxanom.errors import UserError
from jaxanom.jobs import prepare
from jaxanom.models.checkpoints.formats import weights
from jaxanom.parallel import distributed, mesh, placement, rules
from jaxanom.types import Frozen, Params

PARAMS = "params.safetensors"


class Trained(NamedTuple):
    """A trained run.

    Attributes:
      directory: Where it lies.
      prepared: Its config brought to life.
      params: What was trained.
      frozen: The weights that were not.
    """

    directory: Path
    prepared: prepare.Prepared
    params: Params
    frozen: Frozen


def load(
    directory: str | Path,
    overrides: Callable[[Any], None] | None = None,
    category: str = "",
) -> Trained:
    """Opens a finished run, on a mesh of all devices where its own does not fit.

    Args:
      directory: The run.
      overrides: Changes the config before the method is built, for example its
        `generate` section.
      category: A product it was not trained on and shall be asked about.

    Raises:
      UserError: There is no run, or an unfinished one.
    """
    directory = Path(directory)
    if not (directory / record.CONFIG).is_file():
        raise UserError(f"{directory} is no run: {record.CONFIG} is missing")
    if not (directory / PARAMS).is_file():
        raise UserError(f"{directory} is not finished; start its train command again")
    config = record.config_from_plain(record.read_json(directory / record.CONFIG))
    sizes = mesh.fitting(config.mesh, len(jax.devices()))
    if sizes != config.mesh.to_dict() and distributed.is_writer():
        print(f"{directory}: its mesh does not fit here; now {sizes}", file=sys.stderr)
    config.mesh.update(sizes)
    if overrides is not None:
        overrides(config)
    for name in config.phases:
        config.phases[name].num_steps = 0  # so that nothing is made for training
    prepared = prepare.prepare(prepare.located(config, directory), category)
    params = trees.unflatten(weights.read(directory / PARAMS))
    fresh, frozen = prepared.method.init(jax.random.key(config.train.seed))
    trees.check_same_shapes(params, fresh, str(directory / PARAMS))
    params, frozen = (
        placement.place(tree, rules.shardings(tree, prepared.mesh))
        for tree in (params, frozen)
    )
    return Trained(directory, prepared, params, frozen)


def check_detects(run: Trained) -> None:
    """Raises UserError where the method of a run only generates."""
    if run.prepared.method.predict is None:
        raise UserError(
            f"method {run.prepared.config.method!r} of {run.directory} does not detect;"
            " train a detector on its images with config.method='detector'"
        )
