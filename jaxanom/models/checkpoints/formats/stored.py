"""One tensor in a file: what the header says of it, and where its bytes lie.

The readers of the formats return {name: Stored} without touching a value. `read` then
fetches the bytes of one tensor, or of some of its rows, into memory of its own. Files
are not mapped: mapped pages of a checkpoint of some gigabytes would stay in memory
beside the parameters made of them.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxanom.errors import UserError


class Stored(NamedTuple):
    """Where one tensor is.

    Attributes:
      path: The file.
      shape, dtype: The tensor's.
      pieces: (offset, number of bytes) of its parts in the file, in order.
      strides: Steps between values along each axis, counted in values; None where the
        values lie in C order.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor once read."""
        return math.prod(self.shape) * self.dtype.itemsize


class Computed:
    """An array that is made when it is asked for, such as a transposed leaf.

    Writers look at `shape` and `dtype` first and take one array at a time, so that no
    second copy of all parameters exists.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, make: Callable[[], Any]):
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._make = make

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Makes the array."""
        return np.asarray(self._make(), dtype)


def read(tensor: Stored, part: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Reads a tensor, or one of several equal runs of its rows.

    Args:
      tensor: What one of the readers returned.
      part: (i, n), the i-th of n runs of the leading axis; (0, 1) is the whole.

    Returns:
      A writable array that nothing else refers to.

    Raises:
      UserError: the file ends early (it changed since its header was read), or the
        rows do not divide.
    """
    index, count = part
    if count == 1:
        return _strided(tensor, _bytes(tensor, 0, _span(tensor)))
    rows = tensor.shape[0] if tensor.shape else 1
    if rows % count:
        raise UserError(f"{tensor.path}: {rows} rows do not split into {count} parts")
    if tensor.strides is not None:
        step = rows // count
        return read(tensor)[index * step : (index + 1) * step].copy()
    size = tensor.nbytes // count
    array = _bytes(tensor, index * size, size).view(tensor.dtype)
    return array.reshape(rows // count, *tensor.shape[1:])


def _span(tensor: Stored) -> int:
    """Bytes from the first value to the last, which strides may spread."""
    if tensor.strides is None or 0 in tensor.shape:
        return tensor.nbytes
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return (last + 1) * tensor.dtype.itemsize


def _strided(tensor: Stored, raw: np.ndarray) -> np.ndarray:
    values = raw.view(tensor.dtype)
    if tensor.strides is None or 0 in tensor.shape:
        return values.reshape(tensor.shape)
    strides = [step * tensor.dtype.itemsize for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(values, tensor.shape, strides)
    return view.copy(order="C")


def _bytes(tensor: Stored, start: int, size: int) -> np.ndarray:
    """Reads `size` bytes that begin `start` bytes into the pieces laid end to end."""
    parts = []
    for offset, length in tensor.pieces:
        skipped = min(start, length)
        start -= skipped
        count = min(length - skipped, size)
        part = np.fromfile(tensor.path, np.uint8, count, offset=offset + skipped)
        if len(part) < count:
            end = tensor.path.stat().st_size
            raise UserError(
                f"{tensor.path} ends at {end} bytes, in the middle of a tensor; copy "
                "it again"
            )
        size -= count
        parts.append(part)
    if size:
        raise UserError(f"{tensor.path} lacks {size} bytes of a tensor")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
