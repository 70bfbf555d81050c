"""Tensors of a PyTorch zip archive (.bin, .pt, .pth), read without unpickling.

An archive holds `<root>/data.pkl`, which says what the tensors are (`tensor_pickle`
reads it), and one file of plain values per storage, `<root>/data/<key>`.
"""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats import tensor_pickle
from jaxanom.models.checkpoints.formats.stored import Stored
from jaxanom.models.checkpoints.formats.tensor_pickle import View


def tensors(path: Path) -> dict[str, Stored]:
    """Returns the tensors of one archive.

    Those below "state_dict" if it has that, else below its only name if that is a dict.

    Raises:
      UserError: the file is missing, of an older format, damaged, or asks for anything
        beyond tensors.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is no zip archive of tensors: it is damaged, or of the older "
            "formats (plain pickle, tar), which cannot be read without running them; "
            "save it again with a PyTorch of 1.6 or newer, or as safetensors"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            with archive.open(f"{root}/data.pkl") as file:
                program = file.read(tensor_pickle.MOST_BYTES + 1)
            views = _state(tensor_pickle.run(program))
            return {
                name: _locate(path, archive, root, name, view)
                for name, view in views.items()
            }
    except (ValueError, zipfile.BadZipFile, OSError, struct.error) as error:
        raise UserError(f"{path} is refused as PyTorch weights: {error}") from error


def _root(archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        raise UserError(f"wanted one <root>/data.pkl in it, found {pickles}")
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/constants.pkl" in names:
        raise UserError(
            "it is a TorchScript program, not weights; load it with torch.jit.load and "
            "save its state_dict()"
        )
    order = archive.read(f"{root}/byteorder") if f"{root}/byteorder" in names else b""
    if order not in (b"", b"little"):
        raise UserError(f"byte order {order!r}; only little is read")
    return root


def _state(content: Any) -> dict[str, View]:
    """Picks the dict of tensors out of what the pickle built."""
    if not isinstance(content, dict):
        raise UserError(f"it holds a {type(content).__name__}, not a dict of tensors")
    inner = content.get("state_dict")
    if len(content) == 1:
        (inner,) = content.values()
    state = inner if isinstance(inner, dict) else content
    wrong = [name for name, value in state.items() if not isinstance(value, View)]
    if wrong or not all(isinstance(name, str) for name in state):
        raise UserError(f"{wrong[:5]} are no tensors; wanted a dict of name -> tensor")
    return state


def _locate(
    path: Path, archive: zipfile.ZipFile, root: str, name: str, view: View
) -> Stored:
    """Turns a view into byte ranges of the archive, once all of it lies inside."""
    storage, item = view.storage, view.storage.dtype.itemsize
    try:
        member = archive.getinfo(f"{root}/data/{storage.key}")
    except KeyError as error:
        raise UserError(f"{name} lies in {storage.key}, which is missing") from error
    span = sum(
        (size - 1) * step for size, step in zip(view.shape, view.strides, strict=True)
    )
    last = 0 if 0 in view.shape else view.offset + span + 1
    if member.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{member.filename} is compressed, which PyTorch never does")
    if member.file_size != storage.count * item or last > storage.count:
        raise UserError(
            f"{name} needs {max(last, storage.count)} values of {storage.dtype} in "
            f"{member.filename}, which has {member.file_size} bytes"
        )
    contiguous = tuple(
        int(np.prod(view.shape[i + 1 :])) for i in range(len(view.shape))
    )
    strides = None if 0 in view.shape or view.strides == contiguous else view.strides
    count = 0 if 0 in view.shape else span + 1
    start = _values_start(path, member) + view.offset * item
    return Stored(path, view.shape, storage.dtype, ((start, count * item),), strides)


def _values_start(path: Path, member: zipfile.ZipInfo) -> int:
    """Reads where a member's bytes begin: behind its own header, whose size varies."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        head = file.read(30)
    if head[:4] != b"PK\x03\x04":
        raise UserError(f"{member.filename} has no header where the archive says")
    name_length, extra_length = struct.unpack("<HH", head[26:30])
    start = member.header_offset + 30 + name_length + extra_length
    if start + member.file_size > path.stat().st_size:
        raise UserError(f"{member.filename} reaches beyond the end of the file")
    return start
