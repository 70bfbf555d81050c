"""The safetensors format: 8 bytes of header length, a JSON header, the values.

The header is believed in nothing: lengths, types, shapes and ranges are checked against
each other and against the size of the file before a value is read. Ranges must follow
one another without gap or overlap, as the format's own reader demands.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

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
# Limit of the format's reference reader: no header is near it, a lie may be beyond.
_MOST_HEADER = 100_000_000


def tensors(path: Path) -> dict[str, Stored]:
    """Returns what one file holds, by its checked header.

    Raises:
      UserError: the file is missing, cut short, or its header contradicts itself or
        the file's size.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; wanted safetensors weights")
    try:
        return _checked(path)
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from (
            error
        )


def write(
    file: BinaryIO, arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Writes arrays one after the other; only one of them is in memory.

    Args:
      file: open for writing.
      arrays: {name: anything with shape and dtype that `np.asarray` accepts}.
      metadata: strings for the header.

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


def _checked(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    if size < 8:
        raise UserError(f"{size} bytes; the header's length alone takes 8")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MOST_HEADER):
            raise UserError(
                f"a header of {length} bytes is announced in a file of {size}; it was "
                "cut short or is of another format"
            )
        text = file.read(length)
    header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise UserError("the header is no JSON object")
    header.pop(_METADATA, None)
    begin = 8 + length
    found = {name: _entry(path, name, entry) for name, entry in header.items()}
    end = 0
    for (start, stop), name in sorted(
        (entry["data_offsets"], name) for name, entry in header.items()
    ):
        if start != end:
            kind = "overlaps others" if start < end else "leaves a gap before it"
            raise UserError(f"{name} at bytes {start} to {stop} {kind} at {end}")
        end = stop
    if begin + end != size:
        raise UserError(
            f"the header describes {begin + end} bytes, the file has {size}; it was "
            "cut short or appended to"
        )
    return {
        name: tensor._replace(pieces=((tensor.pieces[0][0] + begin, tensor.nbytes),))
        for name, tensor in found.items()
    }


def _entry(path: Path, name: str, entry: Any) -> Stored:
    """Checks one tensor's entry in itself; its offset counts from the values' start."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(
        entry
    ):
        raise UserError(f"{name} lacks dtype, shape or data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for values in (shape, offsets):
        if not isinstance(values, list) or not all(
            type(value) is int and value >= 0 for value in values
        ):
            raise UserError(f"{name}: {values} is no list of counts")
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{name} has dtype {entry['dtype']!r}; known are {[*DTYPES]}")
    dtype = DTYPES[entry["dtype"]]
    wanted = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != wanted:
        raise UserError(
            f"{name} of shape {shape} and {entry['dtype']} takes {wanted} bytes, its "
            f"data_offsets are {offsets}"
        )
    return Stored(path, tuple(shape), dtype, ((offsets[0], wanted),))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise UserError("a name occurs twice in the header")
    return dict(pairs)
