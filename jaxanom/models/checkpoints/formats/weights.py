"""Weight files on disk: one file, or shards beside an index.

| suffix                        | format              | module             |
|-------------------------------|---------------------|--------------------|
| `.safetensors`                | safetensors         | `safetensors_file` |
| `.msgpack`                    | Flax's checkpoints  | `flax_msgpack`     |
| `.bin`, `.pt`, `.pth`, `.ckpt`| PyTorch's archives  | `torch_archive`    |

An index, `<file>.index.json`, holds {"weight_map": {name: shard file}}; the shards lie
beside it. Values come and go as NumPy arrays under the names in the file; what the
names mean is the business of `pretrained` and `layouts`.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxanom import files, record
from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats import (
    flax_msgpack,
    safetensors_file,
    stored,
    torch_archive,
)
from jaxanom.models.checkpoints.formats.stored import Stored

_INDEX = re.compile(r".*\.index(\.[\w-]+)?\.json")
_READERS = {
    ".safetensors": safetensors_file.tensors,
    ".msgpack": flax_msgpack.tensors,
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), torch_archive.tensors),
}


def tensors(path: Path) -> dict[str, Stored]:
    """Returns what a file, or all shards of an index, hold; no tensor is read.

    Args:
      path: A weight file, or an index of such files.

    Raises:
      UserError: a file is missing, damaged or of an unknown format, or an index and
        its shards disagree.
    """
    path = Path(path)
    if not _INDEX.fullmatch(path.name):
        return _reader(path)(path)
    whole = {}
    for shard, expected in _shards(path).items():
        here = _reader(shard)(shard)
        if set(here) != expected:
            differing = sorted(set(here) ^ expected)[:5]
            raise UserError(f"{shard} and its index disagree on tensors {differing}")
        whole |= here
    return whole


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape} from the headers alone; see `tensors`."""
    return {name: tensor.shape for name, tensor in tensors(path).items()}


def is_whole(path: Path) -> bool:
    """Says whether a weight file is there, and of an index all shards that it names.

    Raises:
      UserError: an index that names none.
    """
    path = Path(path)
    if not path.is_file() or not _INDEX.fullmatch(path.name):
        return path.is_file()
    return all(shard.is_file() for shard in _shards(path))


def read(path: Path, dtype: Any = None) -> dict[str, np.ndarray]:
    """Returns all tensors of a file or an index.

    Args:
      path: A weight file, or an index of such files.
      dtype: Floating tensors are cast to it (float16 and bfloat16 files to float32, as
        a rule); None keeps the file's. Integers and bools stay as they are.

    Raises:
      UserError: as `tensors`; or a value does not fit into `dtype`.
    """
    return {
        name: cast(stored.read(tensor), dtype, f"{tensor.path}: {name}")
        for name, tensor in tensors(path).items()
    }


def write(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes tensors so that a reader sees a whole file or none.

    Args:
      path: The file's name, ending in `.safetensors`.
      tensors: {name: array}, host or device, or `Computed`; one at a time is made.
      metadata: Strings for the header; {"format": "pt"} is what PyTorch readers want.

    Returns:
      `path`.

    Raises:
      UserError: the name does not end right, or a dtype is not the format's.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} does not end in .safetensors; weights are only that")
    with files.replacing(path) as building, building.open("wb") as file:
        safetensors_file.write(file, tensors, metadata or {})
    return path


def cast(array: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """Casts a floating array; refuses to turn a finite value into an infinite one.

    Args:
      array: Any shape; integers and bools are returned as they are.
      dtype: The floating type wanted, or None to keep the array's.
      name: What the error calls the array.

    Raises:
      UserError: a finite value overflows `dtype`.
    """
    dtype = array.dtype if dtype is None else jnp.dtype(dtype)
    if array.dtype == dtype or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if jnp.finfo(dtype).max < jnp.finfo(array.dtype).max and np.any(
        np.isfinite(array) & ~np.isfinite(result)
    ):
        largest = float(np.max(np.abs(array[np.isfinite(array)])))
        raise UserError(
            f"{name} reaches {largest:g}, which {dtype.name} cannot hold; "
            "use bfloat16 or float32"
        )
    return result


def _reader(path: Path) -> Callable[[Path], dict[str, Stored]]:
    if not path.is_file():
        raise UserError(f"{path} is not a file; wanted weights")
    if path.suffix not in _READERS:
        raise UserError(f"{path} is of no known format; known are {[*_READERS]}")
    return _READERS[path.suffix]


def _shards(path: Path) -> dict[Path, set[str]]:
    """Maps each file that an index names to the tensors it promises there."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; wanted a weight index")
    index = record.read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{path} has no "weight_map" of names to shard files')
    grouped: dict[Path, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{path}: shard {shard!r} of {name} is not a file name")
        grouped.setdefault(path.with_name(shard), set()).add(name)
    return dict(sorted(grouped.items()))
