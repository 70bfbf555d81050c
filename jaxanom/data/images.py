"""Image and mask files -> uint8 arrays of one size, whatever the file's form."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.ndimage
from PIL import Image, ImageOps

from jaxanom.data.decoding import grey_range, mask_values
from jaxanom.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

# What Pillow's decoders raise on damaged files, depending on format and damage.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_END_MARKERS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_EXIF_ORIENTATION = 0x0112

# Sums of box weights are exact to about 1e-7 per source pixel in float32.
_COVERAGE_TOLERANCE = 1e-5


def load_image(path: str | Path) -> np.ndarray:
    """Decodes an image file to uint8 [H, W, 3] in sRGB order.

    The EXIF orientation is applied. Grey values are repeated over three channels,
    palettes resolved and transparency laid over white. `grey_range` says which value of
    16-bit, 32-bit and float files is white. Of several pages the first is read.

    Raises:
      UserError: the file cannot be decoded; names it.
    """
    image = _open(path)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = grey_range.to_uint8(np.asarray(image), path)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


class Lazy(Sequence):
    """Image files as a sequence of uint8 [H, W, 3], each read when asked for."""

    def __init__(self, files: Sequence[str | Path]):
        self._files = files

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self._files)

    def __getitem__(self, number: int) -> np.ndarray:
        """Reads one file."""
        return load_image(self._files[number])


def load_mask(files: Sequence[str | Path]) -> np.ndarray:
    """Decodes the union of mask files to uint8 {0, 1} [H, W].

    See `mask_values` for which pixels are defects.

    Raises:
      UserError: a file cannot be decoded, or the files differ in size.
    """
    masks = [mask_values.binary(_open(file)) for file in files]
    for file, mask in zip(files, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise UserError(
                f"{file} is {_size(mask.shape)}, {files[0]} is "
                f"{_size(masks[0].shape)}; masks of one image must have one size"
            )
    return np.any(masks, axis=0).astype(np.uint8)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to `size` = (height, width), bicubic with antialiasing.

    The aspect ratio is not kept: the whole image is squeezed into `size`.
    """
    if image.shape[:2] == tuple(size):
        return image
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.array(resized)


def to_batch(
    pictures: Sequence[np.ndarray],
    size: tuple[int, int],
    resize: Callable[[np.ndarray, tuple[int, int]], np.ndarray] | None = None,
) -> np.ndarray:
    """Brings pictures of any sizes to one; values become [0, 1].

    Args:
      pictures: uint8 [H, W, 3] each.
      size: (height, width).
      resize: (picture, size) -> picture; `resize_image` by default.

    Returns:
      float32 [N, height, width, 3].

    Raises:
      UserError: a picture of another type or shape.
    """
    pictures = [np.asarray(picture) for picture in pictures]
    for picture in pictures:
        if picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise UserError(
                f"a picture is {picture.dtype} {list(picture.shape)}; wanted uint8 "
                "[H, W, 3], red, green and blue from 0 to 255"
            )
    resized = [(resize or resize_image)(picture, size) for picture in pictures]
    return (np.stack(resized) / 255.0).astype(np.float32)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 {0, 1} [H, W] to `size` = (height, width) without losing a defect.

    An output pixel is a defect where at least half of its area is. A connected region
    that would leave no pixel by this rule is kept whole: there, any covered area
    counts. So large defects keep their area and a one-pixel defect survives.
    """
    if mask.shape == tuple(size):
        return mask
    plane = Image.fromarray(mask.astype(np.float32))
    coverage = np.asarray(plane.resize(size[::-1], Image.Resampling.BOX))
    kept = coverage >= 0.5 - _COVERAGE_TOLERANCE
    regions, num_regions = scipy.ndimage.label(coverage > 0, np.ones((3, 3)))
    alive = np.zeros(num_regions + 1, bool)
    alive[regions[kept]] = True
    return (kept | ((regions > 0) & ~alive[regions])).astype(np.uint8)


def header_size(path: str | Path) -> tuple[int, int]:
    """Returns (width, height), upright; cheap for a whole PNG or JPEG file.

    A file is decoded only where its last bytes do not show that it is whole.

    Raises:
      UserError: the file is no image or is cut off; names it.
    """
    try:
        with Image.open(path) as image:
            if not _ends_whole(path, _END_MARKERS.get(image.format)):
                # Pillow itself turns some formats, when it decodes them or before.
                image.load()
                return ImageOps.exif_transpose(image).size
            width, height = image.size
            turned = _orientation(image) in (5, 6, 7, 8)
    except _DAMAGE as error:
        raise UserError(f"cannot read image {path}: {error}") from error
    return (height, width) if turned else (width, height)


def _ends_whole(path: Path, marker: bytes | None) -> bool:
    if marker is None:
        return False
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
        return marker in file.read()


def orientation(path: str | Path) -> int:
    """Returns the EXIF orientation, 1 where there is none.

    Raises:
      UserError: the file is no image; names it.
    """
    try:
        with Image.open(path) as image:
            return _orientation(image)
    except _DAMAGE as error:
        raise UserError(f"cannot read image {path}: {error}") from error


def open_upright(path: str | Path) -> Image.Image:
    """Opens and decodes; upright by its EXIF orientation.

    Raises:
      UserError: the file cannot be decoded; names it.
    """
    return _open(path)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole file to look for a late EXIF block.
    return image.getexif().get(_EXIF_ORIENTATION, 1)


def _open(path: str | Path) -> Image.Image:
    """Opens and decodes; upright by its EXIF orientation."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        raise UserError(f"cannot read image {path}: {error}") from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
