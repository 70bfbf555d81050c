"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a hidden path beside `path` that takes its place when the block ends.

    A reader sees what was there before or what is there now, never a part; after an
    exception it is what was there before, and what was written is removed. The block
    may write a file or make a folder; a folder replaces one that is there already.

    Args:
      path: What is to appear. Its parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial."))
    try:
        building, earlier = room / path.name, room / f"{path.name}.earlier"
        yield building
        if building.is_dir() and path.is_dir():
            os.rename(path, earlier)
        try:
            os.replace(building, path)
        except BaseException:
            if earlier.is_dir():
                os.rename(earlier, path)
            raise
    finally:
        shutil.rmtree(room, ignore_errors=True)
