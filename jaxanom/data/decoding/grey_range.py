"""Which value of 16-bit, 32-bit and float grey images is white.

Cameras of 10, 12 and 14 bits write files of 16, and their images would be nearly black
if 65535 were white. No file says so, and one dark image must not be brightened beside a
bright one of the same camera. So a whole folder decides: white is the smallest of the
standard ranges that holds the values of all such images in it. The folder is that of
the category where the image lies in one (a folder with `train` or `test` inside), its
masks aside, and else the image's own.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from jaxanom.errors import UserError

RANGES = (255, 1023, 4095, 16383, 65535)
_UNIT = 1.0  # what else the values of float files may fill
_MASKS = "ground_truth"
_DEPTH = 4  # folders above an image that may be its category


def is_wide(mode: str) -> bool:
    """Whether images of a Pillow mode hold more than 8 bits of grey."""
    return mode in ("I", "F") or mode.startswith("I;16")


def to_uint8(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Maps grey values [H, W] of more than 8 bits to uint8.

    Raises:
      UserError: values below 0, above 65535 or not finite; names the file.
    """
    largest = float(values.max())
    if not (values.min() >= 0 and largest <= RANGES[-1]):
        raise UserError(
            f"{path} has values {values.min()} to {values.max()}; wanted 0 to "
            f"{RANGES[-1]} for {values.dtype}"
        )
    is_float = bool(np.issubdtype(values.dtype, np.floating))
    largest = max(largest, _largest(_scope(Path(path)), is_float))
    white = _white(largest, is_float)
    return np.rint(values.astype(np.float64) * (255.0 / white)).astype(np.uint8)


def _white(largest: float, is_float: bool) -> float:
    ranges = (_UNIT, *RANGES) if is_float else RANGES
    return next(white for white in ranges if largest <= white)


def _scope(path: Path) -> Path:
    for folder in list(path.absolute().parents)[:_DEPTH]:
        if folder.name in ("train", "test"):
            continue
        if (folder / "train").is_dir() or (folder / "test").is_dir():
            return folder
    return path.absolute().parent


@functools.lru_cache(maxsize=256)
def _largest(folder: Path, is_float: bool) -> float:
    """Returns the largest value of such images; the last range needs no more."""
    largest = 0.0
    for values in _wide_images(folder):
        if bool(np.issubdtype(values.dtype, np.floating)) == is_float:
            own = float(values.max())
            if values.min() >= 0 and own <= RANGES[-1]:  # others are refused
                largest = max(largest, own)
        if largest > RANGES[-2]:
            break
    return largest


def _wide_images(folder: Path) -> Iterator[np.ndarray]:
    inside = (folder / "train").is_dir() or (folder / "test").is_dir()
    for path in sorted(folder.rglob("*") if inside else folder.iterdir()):
        if path.suffix.lower() not in (".png", ".tif", ".tiff"):
            continue
        if _MASKS in path.relative_to(folder).parts:
            continue
        try:
            with Image.open(path) as image:
                if is_wide(image.mode):
                    yield np.asarray(image)
        except (OSError, SyntaxError, ValueError, EOFError):
            continue  # refused by name when it is its turn
