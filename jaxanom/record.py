"""The run record: what was asked, with which versions, and what came out.

A run directory holds `config.json` (as resolved), `record.json` (versions, machine,
splits, results) and `metrics.jsonl` (one JSON object a line, in order of writing).
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from jaxanom import files
from jaxanom.errors import UserError

CONFIG, RECORD, METRICS = "config.json", "record.json", "metrics.jsonl"
PACKAGES = ("jaxanom", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


# Keys that say where and how fast a run computes, not what: it may go on with others.
WHERE = (
    *("config.mesh.", "config.data.num_workers"),
    "config.train.offload_frozen",
)


def versions() -> dict[str, str]:
    """Returns installed versions of the packages that decide a result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def machine() -> dict[str, Any]:
    """Returns processor, core count and accelerator kind of this process."""
    import jax

    devices = jax.devices()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
    }


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    with files.replacing(path) as building:
        text = json.dumps(value, indent=2, sort_keys=True)
        building.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file is not JSON; names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error


def update_json(path: Path, values: Mapping[str, Any]) -> None:
    """Merges top-level keys into a JSON object on disk."""
    path = Path(path)
    current = read_json(path) if path.exists() else {}
    write_json(path, {**current, **values})


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one JSON line and hands it to the operating system at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(row)) + "\n")
        file.flush()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a metrics file; a last line cut short by a kill is dropped."""
    path = Path(path)
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise UserError(f"{path}:{number} is not a JSON line: {error}") from error


def claim(
    directory: Path, config: ml_collections.ConfigDict, write: bool = True
) -> None:
    """Makes a run directory this config's.

    Args:
      directory: The run.
      config: as resolved.
      write: False only compares, for processes that do not write.

    Raises:
      UserError: another config's run is there; it is left alone.
    """
    resolved = plain(config)
    path = Path(directory) / CONFIG
    if not path.is_file():
        if write:
            write_json(path, resolved)
        return
    differing = sorted(_differences(read_json(path), resolved))
    changed = [key for key in differing if not key.startswith(WHERE)]
    if differing and write and not changed:
        write_json(path, resolved)
    if changed:
        raise UserError(
            f"{directory} holds a run with another config ({', '.join(changed[:5])} "
            "differ); choose another --run or delete that directory"
        )


def plain(value: Any) -> Any:
    """Returns config values as JSON types; tuples become lists."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def config_from_plain(value: Any) -> Any:
    """Inverse of `plain`."""
    if isinstance(value, dict):
        return ml_collections.ConfigDict(
            {key: config_from_plain(item) for key, item in value.items()}
        )
    return tuple(map(config_from_plain, value)) if isinstance(value, list) else value


def _differences(first: Any, second: Any, prefix: str = "config") -> Iterable[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first.keys() | second.keys():
            here = f"{prefix}.{key}"
            yield from _differences(first.get(key), second.get(key), here)
    elif first != second:
        yield prefix
