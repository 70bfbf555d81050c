"""The safetensors format: 8 bytes of header length, a JSON header, the values.

The header is believed in nothing: the format's own reader checks lengths, types, shapes
and ranges against each other and against the size of the file. Values are read and
written here, one tensor at a time: that reader maps whole files, that writer wants all
values at once.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
import safetensors

from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats.stored import Stored

DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": jnp.bfloat16,
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E5M2": jnp.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"


def tensors(path: Path) -> dict[str, Stored]:
    """Returns what one file holds, by its checked header.

    Raises:
      UserError: the file is missing, cut short, or its header contradicts itself or
        the file's size.
    """
    try:
        with safetensors.safe_open(path, "numpy"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop(_METADATA, None)
        return {
            name: _stored(path, name, entry, 8 + length)
            for name, entry in header.items()
        }
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from (
            error
        )


def _stored(path: Path, name: str, entry: dict[str, Any], begin: int) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{name} has dtype {entry['dtype']!r}; known are {[*DTYPES]}")
    start, stop = entry["data_offsets"]
    piece = (begin + start, stop - start)
    return Stored(path, tuple(entry["shape"]), DTYPES[entry["dtype"]], (piece,))


def write(
    file: BinaryIO, arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Writes arrays one after the other; only one of them is in memory.

    Args:
      file: Where to write, open in binary mode.
      arrays: {name: anything with shape and dtype that `np.asarray` accepts}.
      metadata: Strings for the header.

    Raises:
      UserError: a dtype the format does not have.
    """
    # Wide types first, so that every value is aligned to its own size.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, array = end, arrays[name]
        dtype = np.dtype(array.dtype)
        if dtype not in _NAMES:
            raise UserError(f"{name} has dtype {dtype}; safetensors has {[*DTYPES]}")
        end += math.prod(array.shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
