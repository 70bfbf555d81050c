"""What a folder of images holds that its owner may not know: every file is decoded."""

import collections
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from jaxanom.data import images
from jaxanom.data.decoding import mask_values
from jaxanom.data.layouts import mvtec
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.errors import UserError

MOST_COVERED = 0.5
"""Defects that cover more of an image are probably the normal part."""
SLIVER = 64
"""Images whose brightest value is below it use a quarter of their range at most."""
LEAST_WIDTH = 2.0
"""Width in pixels below which a defect is lost in the noise of a network's input."""
_MOST_NAMES = 3


class Report(NamedTuple):
    """What decoding every file brought to light.

    Attributes:
      errors: one line for each record that no verb can read.
      warnings: what can be read, and is probably not what its owner thinks.
    """

    errors: list[str]
    warnings: list[str]


class _Seen(NamedTuple):
    """One decoded record; empty texts and None where there is nothing to say."""

    error: str = ""
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    remarks: tuple[str, ...] = ()
    width: float | None = None  # of the widest defect, in pixels of the image


def inspect(
    directory: str | Path,
    records: Sequence[Record],
    image_size: int = 256,
    num_threads: int = 4,
    progress: Callable[[Iterator, int], Iterator] = lambda items, total: items,
) -> Report:
    """Decodes every image and mask and tells what is wrong or strange.

    Args:
      directory: What the records were read from.
      records: From `mvtec.read_folder`.
      image_size: Shorter side that images are resized to in training.
      num_threads: Threads that decode.
      progress: (results, number of them) -> the same results, shown as they come.
    """
    with futures.ThreadPoolExecutor(num_threads) as pool:
        seen = list(progress(pool.map(_look, records), len(records)))
    remarks: dict[str, list[str]] = collections.defaultdict(list)
    for record, result in zip(records, seen, strict=True):
        for remark in result.remarks:
            remarks[remark].append(record.name)
    warnings = [_listed(names, remark) for remark, names in remarks.items()]
    warnings += _repeated(records, seen)
    warnings += _vanishing(records, seen, image_size)
    warnings += _named_like_good(records) + _divided(Path(directory).expanduser())
    warnings += _left_out(Path(directory).expanduser(), records)
    return Report([result.error for result in seen if result.error], warnings)


def _look(record: Record) -> _Seen:
    try:
        image = images.load_image(record.image)
        mask, remarks = _look_at_mask(record, image.shape[:2])
    except UserError as error:
        return _Seen(error=str(error))
    remarks = list(remarks)
    if image.max() < SLIVER:
        remarks.append(
            f"values end below {SLIVER} of 255: dark, or fewer bits than the file has "
            "(such as 12 bits in a colour file of 16, which is read as 8)"
        )
    digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
    width = None if mask is None or not mask.any() else _width(mask)
    return _Seen("", digest, image.shape[:2], tuple(remarks), width)


def _look_at_mask(
    record: Record, shape: tuple[int, int]
) -> tuple[np.ndarray | None, list[str]]:
    if record.mask is None:
        return None, []
    files = mvtec.mask_files(record.mask)
    mask = images.load_mask(files)
    if mask.shape != shape:
        mvtec.check([record])  # says it better where the headers differ as well
        raise UserError(
            f"mask {record.mask} is {mask.shape[1]} x {mask.shape[0]}, its image "
            f"{record.image} is {shape[1]} x {shape[0]}; they must be equal"
        )
    remarks = []
    for file in files:
        colours, alpha = mask_values.channels(images.open_upright(file))
        if mask_values.alpha_decides(colours, alpha):
            remarks.append("the mask is only in the alpha channel, and read from there")
        elif alpha is not None and np.ptp(alpha):
            remarks.append("the mask's alpha channel varies and is not read")
        elif len(np.unique(colours.max(axis=-1))) > 2:
            remarks.append(
                "the mask has more than two values; a defect is where it is at least "
                "half of its maximum"
            )
    turned = images.orientation(record.image) != 1
    if turned and all(images.orientation(file) == 1 for file in files):
        remarks.append("the image is turned by its EXIF orientation, its mask is not")
    covered = mask.mean()
    if covered == 0:
        remarks.append("the mask is empty (0 % defect) and counts as missing")
    elif covered > MOST_COVERED:
        remarks.append("the mask covers over half of the image; inverted?")
    return mask, list(dict.fromkeys(remarks))


def _width(mask: np.ndarray) -> float:
    """Returns the width of the widest region: area over the longer side of its box."""
    regions, _ = scipy.ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(regions.ravel())[1:]
    boxes = scipy.ndimage.find_objects(regions)
    longer = [max(s.stop - s.start for s in box) for box in boxes]
    return float((areas / longer).max())


def _listed(names: Sequence[str], what: str) -> str:
    more = len(names) - _MOST_NAMES
    listed = ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
    return f"{what}: {listed}"


def _repeated(records: Sequence[Record], seen: Sequence[_Seen]) -> list[str]:
    """Returns a line for every test image that is a training image too."""
    trained = {
        result.digest: record.name
        for record, result in zip(records, seen, strict=True)
        if record.split == "train" and result.digest
    }
    return [
        f"equal images in train and test: {trained[result.digest]} is {record.name}"
        for record, result in zip(records, seen, strict=True)
        if record.split == "test" and result.digest in trained
    ]


def _vanishing(
    records: Sequence[Record], seen: Sequence[_Seen], image_size: int
) -> list[str]:
    lost = []
    for record, result in zip(records, seen, strict=True):
        shorter = min(result.size)
        if result.width is not None and image_size < shorter:
            if result.width * image_size / shorter < LEAST_WIDTH:
                lost.append((record.name, shorter, result.width))
    if not lost:
        return []
    side = max(min(s, s * LEAST_WIDTH / width) for _, s, width in lost)
    tiles = int(np.ceil(side / image_size))
    what = (
        f"defects vanish at the training size {image_size} (below {LEAST_WIDTH:g} "
        f"pixels wide); set config.data.tiles={tiles}, or "
        f"config.data.image_size={tiles * image_size}"
    )
    return [_listed([name for name, *_ in lost], what)]


def _named_like_good(records: Sequence[Record]) -> list[str]:
    folders = dict.fromkeys(
        str(Path(record.image).parent)
        for record in records
        if record.defect_type == GOOD and Path(record.image).parent.name != GOOD
    )
    return [f"{folder} is taken as good: normal images" for folder in folders]


def _divided(root: Path) -> list[str]:
    """Returns how categories without train and test are read."""
    return [
        f"{folder} has no train and test; of {good.name}/, every "
        f"{mvtec.TEST_EVERY}th image (of fewer, the last) is tested on if defects "
        "lie beside it, the others are trained on; defects are tested on"
        for folder in mvtec.category_folders(root).values()
        if (good := mvtec.good_folder(folder)) is not None
    ]


def _left_out(root: Path, records: Sequence[Record]) -> list[str]:
    """Counts files that no verb reads, by folder and suffix."""
    read = {Path(record.image).absolute() for record in records}
    for record in records:
        if record.mask is not None:
            read |= {file.absolute() for file in mvtec.mask_files(record.mask)}
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and path.is_file() and path.absolute() not in read:
            counts[str(inside.parent), path.suffix.lower() or "no suffix"] += 1
    return [
        f"left out: {count} x {suffix} in {folder}"
        for (folder, suffix), count in counts.items()
    ]
