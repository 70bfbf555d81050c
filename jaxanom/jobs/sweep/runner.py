"""`config.sweep` -> a table of runs, JSON lines that a killed sweep goes on with."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxanom import files, record
from jaxanom.errors import UserError
from jaxanom.jobs import prepare
from jaxanom.jobs.sweep import grid, measures, program
from jaxanom.jobs.sweep import inputs as sweep_inputs
from jaxanom.jobs.sweep.inputs import Inputs
from jaxanom.methods import by_name
from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import placement
from jaxanom.training import meter

TABLE = "sweep.jsonl"


def run(
    config: ml_collections.ConfigDict,
    directory: str | Path,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Runs the points of a sweep that its table does not hold yet.

    The axes of `config.sweep` may grow from call to call; the rest of the config may
    not change.

    Args:
      config: A config with a section `sweep`, of a method with `Method.posterior`.
      directory: `sweep.jsonl` and the config and record are written there.
      on_row: Called with every new row.

    Returns:
      All rows of the grid's points, in their order. A row holds the point
      (`grid.AXES`), accuracy, nll, ece, mutual_information, ksd, spread, train_ce,
      skipped, seconds (of its program, compiling apart), compile_s, runs_together,
      steps_per_s (of all runs of its program) and, for the first seed, path
      [1 + num_snapshots][P][2] (principal components) with path_share, the share of
      variance they hold. Measures that are not finite are None.

    Raises:
      UserError: A config of something else, or the directory holds another sweep.
    """
    directory = Path(directory)
    if config.method not in by_name.POSTERIORS or "sweep" not in config:
        raise UserError(
            f"config.method={config.method!r}: a sweep takes a config of one of "
            f"{by_name.POSTERIORS} with a section `sweep`, such as "
            "configs/app/sweep_foundry.py"
        )
    points = grid.points(config.sweep)
    steps = config.phases.particles.num_steps
    if steps < 1 or steps % config.sweep.num_snapshots:
        raise UserError(
            f"config.phases.particles.num_steps={steps} is not a positive multiple of "
            f"config.sweep.num_snapshots={config.sweep.num_snapshots}"
        )
    base = prepare.without(config, "sweep")
    path = directory / TABLE
    if (directory / record.CONFIG).is_file():
        record.claim(directory, base)
    done = _read(path)
    missing = [point for point in points if _key(point) not in done]
    if missing:
        inputs = sweep_inputs.make(base, missing)
        # Only now: a config that was refused must not stand in the way of the next.
        record.claim(directory, base)
        record.update_json(
            directory / record.RECORD,
            {"versions": record.versions(), "machine": record.machine()},
        )
        for row in _rows(config.sweep, inputs, missing, points[0].seed):
            record.append_metrics(path, row)
            done[_key(row)] = row
            if on_row is not None:
                on_row(row)
    return [done[_key(point)] for point in points]


def _rows(section, inputs: Inputs, missing, first_seed) -> Iterator[dict[str, Any]]:
    """Runs group after group and yields their rows."""
    shape = inputs.config.mesh
    mesh = meshes.make_mesh(shape.data, shape.fsdp, shape.model, shape.particle)
    num_prompts = inputs.method.posterior.num_prompts
    by_number: dict[int, list[grid.Group]] = {}
    for group in grid.groups(missing, num_prompts, section.prompts_together):
        by_number.setdefault(group.num_particles, []).append(group)
    ready = {}
    # A program compiles on one core: several at a time use the others.
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, groups in by_number.items():
            args = sweep_inputs.arguments(inputs, number)
            placed = [_placed(inputs, group, groups, mesh) for group in groups]
            compiling = pool.submit(
                _compile, section, inputs, groups[0], (placed[0], *args)
            )
            ready[number] = args, placed, compiling
    for number, groups in by_number.items():
        args, placed, compiling = ready.pop(number)
        compiled = compiling.result()
        for group, places in zip(groups, placed, strict=True):
            start = time.perf_counter()
            outcome = placement.to_host(compiled.call(places, *args))
            seconds = time.perf_counter() - start
            steps = inputs.config.phases.particles.num_steps * len(group.points)
            timing = {
                "seconds": round(seconds, 3),
                "compile_s": round(compiled.seconds, 2),
                "runs_together": len(group.points),
                "steps_per_s": round(steps / seconds, 3),
            }
            for place, point in enumerate(group.points):
                one = jax.tree.map(lambda leaf, p=place: leaf[p], outcome)
                row = point._asdict() | measures.of_run(inputs, point, one) | timing
                if point.seed == first_seed:
                    row |= measures.principal_path(one.path)
                yield _finite(row)


def _placed(
    inputs: Inputs, group: grid.Group, groups: Sequence[grid.Group], mesh: Mesh
) -> program.Places:
    """Spreads the runs of a group over the mesh; all groups get one shape."""
    devices = meshes.num_batch_shards(mesh)
    size = max(len(each.points) for each in groups)
    places = sweep_inputs.places(inputs, group, -(-size // devices) * devices)
    return program.Places(**placement.place_batch(places._asdict(), mesh))


def _compile(section, inputs: Inputs, group: grid.Group, args) -> meter.Compiled:
    phase = sweep_inputs.phase(inputs.config, "particles")
    jitted = program.particle_program(
        inputs.method, phase, group.variants, section.num_snapshots
    )
    return meter.compile_ahead(jitted, *args)


def _key(point: grid.Point | Mapping[str, Any]) -> tuple[Any, ...]:
    values = point._asdict() if isinstance(point, grid.Point) else point
    return tuple(values[name] for name in grid.AXES)


def _read(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Reads the table; a last line cut short by a kill is dropped from the file."""
    if not path.is_file():
        return {}
    rows = list(record.read_metrics(path))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if text != path.read_text(encoding="utf-8"):
        with files.replacing(path) as building:
            building.write_text(text, encoding="utf-8")
    return {_key(row): row for row in rows}


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in row.items()
    }
