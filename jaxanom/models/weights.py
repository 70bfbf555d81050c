"""Weight files on disk: safetensors, in one file or in shards beside an index.

An index, `<stem>.safetensors.index.json`, holds {"weight_map": {name: shard file}}; the
shards lie beside it. Values come and go as NumPy arrays under the names in the file;
what the names mean is `pretrained.py`'s business.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from jaxanom import record

INDEX_SUFFIX = ".index.json"


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape} from the headers alone; no tensor is read.

    Args:
      path: a `.safetensors` file or a `.safetensors.index.json`.

    Raises:
      ValueError: a file is missing or damaged, or an index and its shards disagree.
    """
    found = {}
    for shard, names in _shards(Path(path)).items():
        with _opened(shard) as file:
            for name in _checked_names(shard, file, names):
                found[name] = tuple(file.get_slice(name).get_shape())
    return found


def stream(path: Path, dtype: Any = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) one tensor at a time, so memory holds one beside the result.

    Args:
      path: a `.safetensors` file or a `.safetensors.index.json`.
      dtype: floating tensors are cast to it (float16 and bfloat16 files to float32, as
        a rule); None keeps the file's. Integers and bools stay as they are.

    Raises:
      ValueError: as `shapes`; or a value does not fit into `dtype`.
    """
    for shard, names in _shards(Path(path)).items():
        with _opened(shard) as file:
            for name in _checked_names(shard, file, names):
                try:
                    array = file.get_tensor(name)
                except (safetensors.SafetensorError, OSError, TypeError) as error:
                    raise ValueError(f"{shard}: cannot read {name}: {error}") from error
                yield name, cast(array, dtype, f"{shard}: {name}")


def read(path: Path, dtype: Any = None) -> dict[str, np.ndarray]:
    """Returns all tensors of a file or an index; see `stream`."""
    return dict(stream(path, dtype))


def write(
    path: Path,
    tensors: Mapping[str, Any],
    dtype: Any = None,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int | None = None,
) -> Path:
    """Writes tensors so that a reader sees a whole file or none.

    A single file replaces an older one in one rename. Shards cannot be replaced
    together, so they are never written over an older index; the index comes last.

    Args:
      path: the single file's name, ending in `.safetensors`; shards are named after it.
      tensors: {name: array}, host or device.
      dtype: floating tensors are cast to it, e.g. float16; None keeps theirs.
      metadata: strings for the header; {"format": "pt"} is what PyTorch readers want.
      shard_bytes: the most bytes of one shard; None writes one file.

    Returns:
      The file to read: `path`, or its index if it took more than one shard.

    Raises:
      ValueError: a value does not fit into `dtype`; the name does not end right; or
        the other form (file beside index) is there and would be read instead.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} does not end in .safetensors; weights are only that")
    arrays = {
        name: np.asarray(cast(np.asarray(value), dtype, f"{path}: {name}"), order="C")
        for name, value in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = _group(arrays, shard_bytes)
    index = path.with_name(path.name + INDEX_SUFFIX)
    if index.exists() or (len(groups) > 1 and path.exists()):
        raise ValueError(
            f"{path.parent} already holds {path.stem} in another form or in shards; "
            "remove it, or write to another directory"
        )
    if len(groups) == 1:
        _write_file(path, arrays, metadata)
        return path
    weight_map = {}
    for number, names in enumerate(groups, start=1):
        shard = f"{path.stem}-{number:05d}-of-{len(groups):05d}.safetensors"
        chosen = {name: arrays[name] for name in names}
        _write_file(path.with_name(shard), chosen, metadata)
        weight_map.update(dict.fromkeys(names, shard))
    total = sum(array.nbytes for array in arrays.values())
    record.write_json(
        index, {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
    return index


def cast(array: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """Casts a floating array; refuses to turn a finite value into an infinite one.

    Args:
      array: any shape; integers and bools are returned as they are.
      dtype: the floating type wanted, or None to keep the array's.
      name: what the error calls the array.

    Raises:
      ValueError: a finite value overflows `dtype`.
    """
    if dtype is None or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    dtype = jnp.dtype(dtype)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if jnp.finfo(dtype).max < jnp.finfo(array.dtype).max and np.any(
        np.isfinite(array) & ~np.isfinite(result)
    ):
        largest = float(np.max(np.abs(array[np.isfinite(array)])))
        raise ValueError(
            f"{name} reaches {largest:g}, which {dtype.name} cannot hold; "
            "use bfloat16 or float32"
        )
    return result


def _shards(path: Path) -> dict[Path, set[str] | None]:
    """Maps each file to read to the names an index expects there (None: any)."""
    if not path.name.endswith(INDEX_SUFFIX):
        return {path: None}
    if not path.is_file():
        raise ValueError(f"{path} is not a file; wanted a weight index")
    index = record.read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f'{path} has no "weight_map" of names to shard files')
    grouped: dict[Path, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{path}: shard {shard!r} of {name} is not a file name")
        grouped.setdefault(path.with_name(shard), set()).add(name)
    return dict(sorted(grouped.items()))


def _opened(path: Path) -> Any:
    """Opens one safetensors file as a context, or says which file is at fault."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; wanted safetensors weights")
    try:
        return safetensors.safe_open(path, framework="np")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from (
            error
        )


def _checked_names(path: Path, file: Any, expected: set[str] | None) -> list[str]:
    """Returns the names in a file once they are those its index promised."""
    names = list(file.keys())
    if expected is not None and set(names) != expected:
        differing = sorted(set(names) ^ expected)[:5]
        raise ValueError(f"{path} and its index disagree on tensors {differing}")
    return names


def _group(arrays: Mapping[str, np.ndarray], limit: int | None) -> list[list[str]]:
    """Splits names, in order, into runs of at most `limit` bytes each."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, array in arrays.items():
        if limit is not None and groups[-1] and size + array.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += array.nbytes
    return groups


def _write_file(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None
) -> None:
    """Writes one file under a temporary name beside it, then renames."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(dict(arrays), temporary, metadata=dict(metadata or {}))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
