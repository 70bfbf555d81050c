"""Flax checkpoints: a msgpack tree whose arrays are extension values.

The libraries' Flax classes write `flax.serialization.to_bytes(params)`: maps of names,
at the leaves extension type 1 around (shape, dtype name, bytes). An array over 2^30
bytes is a map of chunks. The scanner below notes where each array lies and skips its
values; it knows only the types that such a tree can hold and calls nothing.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats.stored import Stored

_ARRAY, _CHUNKED = 1, "__msgpack_chunked_array__"
_MOST_DEPTH, _MOST_TEXT = 64, 4096
# First byte -> (format of the length or number that follows).
_TEXT = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BINARY = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_MAP = {0xDE: ">H", 0xDF: ">I"}
_LIST = {0xDC: ">H", 0xDD: ">I"}
_EXTENSION = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_FIXED_EXTENSION = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_NUMBER = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}  # of shapes: unsigned
_CONSTANT = {0xC0: None, 0xC2: False, 0xC3: True}


def tensors(path: Path) -> dict[str, Stored]:
    """Returns {"a/b/c": where the leaf lies} of one file.

    Raises:
      UserError: the file is missing, cut short, or no tree of arrays.
    """
    try:
        with path.open("rb") as file:
            scanner = _Scanner(path, file)
            tree = scanner.value()
            if scanner.left():
                raise UserError(f"{scanner.left()} bytes follow the tree")
        if not isinstance(tree, dict):
            raise UserError("the file holds no tree")
        flat = trees.flatten(_joined(tree))
        for name, leaf in flat.items():
            if not isinstance(leaf, Stored):
                raise UserError(f"{name} is {leaf!r}, not an array")
        return flat
    except (ValueError, struct.error, OSError) as error:
        raise UserError(f"{path} is not a readable Flax checkpoint: {error}") from error


class _Scanner:
    """Reads one msgpack value after the other, leaving arrays where they are."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file = path, file
        self._size = path.stat().st_size

    def left(self) -> int:
        return self._size - self._file.tell()

    def value(self, depth: int = 0) -> Any:
        """Returns dict, list, text, number, constant, or Stored for an array."""
        if depth > _MOST_DEPTH:
            raise UserError(f"more than {_MOST_DEPTH} levels")
        first = self._take(1)[0]
        if first <= 0x7F:
            return first
        if first in _CONSTANT:
            return _CONSTANT[first]
        if first in _NUMBER:
            return self._number(_NUMBER[first])
        if 0xA0 <= first <= 0xBF or first in _TEXT:
            size = first & 0x1F if first <= 0xBF else self._number(_TEXT[first])
            if size > _MOST_TEXT:
                raise UserError(f"a name of {size} bytes")
            return self._take(size).decode("utf-8")
        if first <= 0x8F or first in _MAP:
            count = first & 0x0F if first <= 0x8F else self._number(_MAP[first])
            return self._map(count, depth)
        if first <= 0x9F or first in _LIST:
            count = first & 0x0F if first <= 0x9F else self._number(_LIST[first])
            self._expect(count)
            return [self.value(depth + 1) for _ in range(count)]
        if first in _EXTENSION:
            return self._array(self._number(_EXTENSION[first]))
        if first in _FIXED_EXTENSION:
            return self._array(_FIXED_EXTENSION[first])
        raise UserError(f"type {first:#x}, which a tree of arrays does not have")

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        self._expect(2 * count)
        tree = {}
        for _ in range(count):
            name = self.value(depth + 1)
            if not isinstance(name, str) or name in tree:
                raise UserError(f"name {name!r} occurs twice or is no text")
            tree[name] = self.value(depth + 1)
        return tree

    def _array(self, size: int) -> Stored:
        """Reads (shape, dtype name) of an extension value and skips its values."""
        kind = self._take(1)[0]
        if kind != _ARRAY:
            raise UserError(f"extension type {kind}; only arrays (type 1) are read")
        self._expect(size)
        end = self._file.tell() + size
        if self._take(1) != b"\x93":
            raise UserError("an array is no triple of shape, dtype and bytes")
        shape, name = self.value(1), self.value(1)
        first = self._take(1)[0]
        if first not in _BINARY or not isinstance(shape, list):
            raise UserError("an array has no shape or no bytes")
        length = self._number(_BINARY[first])
        start = self._file.tell()
        dtype = _dtype(name)
        size = _count(shape) * dtype.itemsize
        if length != size or start + length != end:
            raise UserError(
                f"an array of shape {shape} and {name} takes {size} bytes, {length} "
                "are announced"
            )
        self._file.seek(end)
        return Stored(self._path, tuple(shape), dtype, ((start, length),))

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _take(self, size: int) -> bytes:
        self._expect(size)
        return self._file.read(size)

    def _expect(self, size: int) -> None:
        if size > self.left():
            raise UserError(
                f"{size} bytes or values are announced, {self.left()} bytes are left"
            )


def _joined(tree: dict[str, Any]) -> Any:
    """Replaces maps of chunks by the tensors they make up."""
    if _CHUNKED not in tree:
        return {
            name: _joined(value) if isinstance(value, dict) else value
            for name, value in tree.items()
        }
    try:
        shape = [tree["shape"][str(axis)] for axis in range(len(tree["shape"]))]
        chunks = [tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]
        pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
        dtype = chunks[0].dtype
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError("a chunked array lacks its shape or a chunk") from error
    if sum(length for _, length in pieces) != _count(shape) * dtype.itemsize:
        raise UserError(f"the chunks of an array of shape {shape} do not fill it")
    return Stored(chunks[0].path, tuple(shape), dtype, pieces)


def _count(shape: list[Any]) -> int:
    if not all(type(size) is int and size >= 0 for size in shape):
        raise UserError(f"{shape} is no shape")
    return math.prod(shape)


def _dtype(name: Any) -> np.dtype:
    known = ("float64", "float32", "float16", "int64", "int32", "int16", "int8")
    if name == "bfloat16":
        return np.dtype(jnp.bfloat16)
    if name not in (*known, "uint64", "uint32", "uint16", "uint8", "bool"):
        raise UserError(f"an array of dtype {name!r}")
    return np.dtype(name)
