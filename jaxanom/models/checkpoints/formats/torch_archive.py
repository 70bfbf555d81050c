"""Tensors of a PyTorch file (.bin, .pt, .pth), read without unpickling.

An archive holds `<root>/data.pkl`, which says what the tensors are (`tensor_pickle`
reads it), and one file of plain values per storage, `<root>/data/<key>`.
"""

import io
import struct
import zipfile
from pathlib import Path

from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats import tensor_pickle, torch_legacy
from jaxanom.models.checkpoints.formats.stored import Stored
from jaxanom.models.checkpoints.formats.tensor_pickle import View


def tensors(path: Path) -> dict[str, Stored]:
    """Returns the tensors of one archive.

    Those below "state_dict" if it has that, else below its only name if that is a dict.

    Raises:
      UserError: the file is missing, of an older format, damaged, or asks for anything
        beyond tensors.
    """
    try:
        if torch_legacy.is_legacy(path):
            return torch_legacy.tensors(path)
        if not zipfile.is_zipfile(path):
            raise UserError(
                "it is no zip archive of tensors and not of PyTorch's older format; it "
                "is damaged, or a plain pickle or tar file: save it again with a "
                "PyTorch of 1.6 or newer, or as safetensors"
            )
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            with archive.open(f"{root}/data.pkl") as file:
                program = io.BytesIO(file.read(tensor_pickle.MOST_BYTES + 1))
            views = tensor_pickle.state(tensor_pickle.run(program))
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


def _locate(
    path: Path, archive: zipfile.ZipFile, root: str, name: str, view: View
) -> Stored:
    """Turns a view into byte ranges of the archive, once all of it lies inside."""
    storage, item = view.storage, view.storage.dtype.itemsize
    try:
        member = archive.getinfo(f"{root}/data/{storage.key}")
    except KeyError as error:
        raise UserError(f"{name} lies in {storage.key}, which is missing") from error
    if member.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{member.filename} is compressed, which PyTorch never does")
    if member.file_size != storage.count * item:
        raise UserError(
            f"{name} needs {storage.count} values of {storage.dtype} in "
            f"{member.filename}, which has {member.file_size} bytes"
        )
    return tensor_pickle.located(name, path, view, _values_start(path, member))


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
