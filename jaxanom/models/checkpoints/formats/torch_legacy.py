"""Tensors of PyTorch's format before 1.6, read without unpickling.

Four pickles stand in a row: a magic number, the version of the protocol, facts about
the machine that wrote them, and the object. A pickle of the list of storage keys
follows; then for each key the number of values, as eight bytes, and the values.
"""

import io
import struct
from pathlib import Path
from typing import Any

from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats import tensor_pickle
from jaxanom.models.checkpoints.formats.stored import Stored
from jaxanom.models.checkpoints.formats.tensor_pickle import Storage, View

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_NUMBER = MAGIC.to_bytes(10, "little")


def is_legacy(path: Path) -> bool:
    """Says whether a file begins as this format does."""
    with path.open("rb") as file:  # a protocol and a frame may precede the number
        return _NUMBER in file.read(32)


def views(path: Path) -> tuple[Any, dict[str, int]]:
    """Returns the object that a file describes, and where the values of each key begin.

    Raises:
      UserError: The file is cut short, is followed by other data, or its parts
        contradict each other; nothing of it was run.
    """
    with path.open("rb") as file:
        head = io.BytesIO(file.read(tensor_pickle.MOST_BYTES + 1))
        magic, protocol = (tensor_pickle.run(head) for _ in range(2))
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise UserError(f"its protocol is {protocol!r}; only {PROTOCOL} is read")
        machine = tensor_pickle.run(head)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise UserError("it was written by a machine of another byte order")
        content, keys = tensor_pickle.run(head), tensor_pickle.run(head)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise UserError("it has no list of storage keys")
        starts = _starts(file, head.tell(), keys, _storages(content))
    return content, starts


def _storages(content: Any) -> dict[str, Storage]:
    """Collects the storages of all tensors, however they are nested, by key."""
    storages: dict[str, Storage] = {}
    stack, seen = [content], set()
    while stack:
        item = stack.pop()
        if isinstance(item, View):
            same = storages.setdefault(item.storage.key, item.storage)
            if same != item.storage:
                raise UserError(f"storage {same.key} is described in two ways")
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.values() if isinstance(item, dict) else item)
    return storages


def _starts(
    file: Any, position: int, keys: list[str], storages: dict[str, Storage]
) -> dict[str, int]:
    """Walks over the values behind the pickles; every count is checked."""
    end = file.seek(0, io.SEEK_END)
    starts = {}
    for key in keys:
        if key not in storages or key in starts:
            raise UserError(f"no tensor lies in storage {key}, or it comes twice")
        file.seek(position)
        count = file.read(8)
        if len(count) != 8 or struct.unpack("<q", count)[0] != storages[key].count:
            raise UserError(f"storage {key} has not the {storages[key].count} values")
        starts[key] = position + 8
        position += 8 + storages[key].count * storages[key].dtype.itemsize
        if position > end:
            raise UserError(f"it ends at byte {end}, in the middle of storage {key}")
    missing = sorted(storages.keys() - starts.keys())
    if missing or position != end:
        raise UserError(
            f"{end - position} bytes follow the last storage, and of {missing[:5]} "
            "there are no values"
        )
    return starts


def tensors(path: Path) -> dict[str, Stored]:
    """Returns the tensors of one file; see `torch_archive.tensors`."""
    content, starts = views(path)
    return {
        name: tensor_pickle.located(name, path, view, starts[view.storage.key])
        for name, view in tensor_pickle.state(content).items()
    }
