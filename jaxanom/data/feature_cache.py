"""What a frozen encoder said of an image, on disk, for the next run.

One file a row, named by a hash of everything its content depends on: the encoder's
program, its weights, and the image and mask with their shapes and types. A file is
written whole or not at all, so a run may be interrupted anywhere and several may share
a directory.
"""

import hashlib
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxanom import files

HostBatch = dict[str, Any]
EncodeBatch = Callable[[HostBatch], dict[str, Any]]


def identity(
    encode: Callable[[Any, HostBatch], Any], frozen: Any, batch: HostBatch
) -> str:
    """Hashes an encoder: its traced program and the values of its weights.

    The same program may be traced to another text by another version of JAX; rows are
    then encoded anew.

    Args:
      encode: (frozen, batch) -> fields, traceable.
      frozen: its weights.
      batch: arrays or shapes, of one row or more; only shapes matter.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(str(jax.make_jaxpr(encode)(frozen, batch)).encode())
    for leaf in jax.tree.leaves(frozen):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def remembered(
    encode_batch_fn: EncodeBatch,
    directory: str | Path,
    key: str,
    computed: Collection[str],
    passed: Collection[str] = (),
) -> EncodeBatch:
    """Wraps an encoder: a batch whose rows are all on disk is read, not computed.

    Args:
      encode_batch_fn: batch with `image` -> fields [B, ...].
      directory: Where the files are; made if it is missing.
      key: What `identity` returned.
      computed: Fields that the encoder computes of image and mask alone; kept.
      passed: its other fields, which are those of the batch.
    """
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)

    def encode(batch: HostBatch) -> dict[str, Any]:
        count = len(batch["image"])
        paths = [directory / f"{_row_key(key, batch, n)}.npz" for n in range(count)]
        rows = _read(paths, computed)
        if rows is not None:
            fields = {name: np.stack([row[name] for row in rows]) for name in computed}
            return fields | {name: batch[name] for name in passed}
        fields = {k: np.asarray(v) for k, v in encode_batch_fn(batch).items()}
        for number, path in enumerate(paths):
            if not path.exists():
                with files.replacing(path) as building:
                    np.savez(building, **{k: fields[k][number] for k in computed})
        return fields

    return encode


def _row_key(key: str, batch: HostBatch, row: int) -> str:
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for name in ("image", "mask"):
        if name in batch:
            value = np.ascontiguousarray(batch[name][row])
            digest.update(f" {name} {value.dtype} {value.shape} ".encode())
            digest.update(value.tobytes())
    return digest.hexdigest()


def _read(
    paths: list[Path], computed: Collection[str]
) -> list[dict[str, np.ndarray]] | None:
    """Reads all rows, or returns None if one is missing or damaged."""
    rows = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as file:
                rows.append({name: file[name] for name in computed})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)  # it will be written anew
            return None
    return rows
