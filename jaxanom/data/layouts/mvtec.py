"""Folder trees in the MVTec AD layout -> records.

    <category>/train/good/*                 normal images, the only training folder
    <category>/test/good/*                  normal images (optional)
    <category>/test/<defect>/*              defective images
    <category>/ground_truth/<defect>/       masks (optional); non-zero = defect:
        <stem>_mask.png or <stem>.png       one file, or
        <stem>/*.png                        several files whose union is the mask

`test/ok`, `test/Good` and the like hold normal images too (`is_good`). Without `train`
and `test`, a folder `good/` beside folders of defects is a category as well:

    <category>/good/*                       normal: every fifth is tested on, the others
                                            are trained on; all, where nothing is beside
    <category>/<defect>/*                   defective images, with masks as above

Folders are read in place. Hidden files, files that are not images and folders outside
`train`, `test` and `ground_truth` (for example `validation`) are left alone, and so is
`ground_truth/good`. Order is natural by name ("2.png" before "10.png"), so it is the
same on every machine.
"""

import collections
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxanom.data import images
from jaxanom.errors import UserError, check_known

GOOD = "good"
TEST_EVERY = 5
_GOOD_NAMES = ("good", "ok", "okay", "normal", "pass", "passed", "no_defect")
_MASK_NAMES = ("ground_truth", "mask", "masks")


class Record(NamedTuple):
    """One image of a dataset.

    Attributes:
      image: path of the image file (or the name a renderer gives it).
      mask: path of a mask file, or of a folder of masks whose union counts; None where
        there is no mask. Normal images have none.
      category: product, for example "hazelnut".
      defect_type: "good" for normal images.
      split: "train" or "test".
      name: "<category>/<split>/<defect_type>/<file>", unique in a dataset.
    """

    image: str
    mask: str | None
    category: str
    defect_type: str
    split: str
    name: str


def read_folder(
    directory: str | Path,
    categories: Sequence[str] | None = None,
    require_train: bool = True,
) -> list[Record]:
    """Lists the images of one category folder or of a root that holds many.

    Args:
      directory: a folder with `train/good` inside, or a folder of such folders.
      categories: which to read, in this order; None or empty reads all by name.
      require_train: whether a category without normal training images is an error.

    Returns:
      Records: by category, then train before test, good before defects, then by name.

    Raises:
      UserError: no such folder, unknown category, no `train/good`, an empty folder, or
        masks for only a part of a defect's images; says what was found.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}; wanted a folder in the MVTec layout")
    folders = category_folders(root)
    records = []
    for category in dict.fromkeys(categories or sorted(folders, key=natural_key)):
        check_known("category", category, folders)
        records += _read_category(folders[category], category, require_train)
    return records


def image_files(paths: Sequence[str | Path], nested: bool = False) -> list[Path]:
    """Lists the images meant by files and folders; each one's header is read.

    Args:
      paths: Image files, or folders of images.
      nested: Whether images in the folders of a folder count too, at any depth; of
        images to learn from they do not, as some may hold defects.

    Raises:
      UserError: nothing there, a folder without images, or a damaged image.
    """
    files: list[Path] = []
    for path in (Path(path).expanduser() for path in paths):
        if not path.exists():
            raise UserError(f"no such image or folder: {path}")
        inside = [path]
        if path.is_dir():
            inside = _images_below(path) if nested else images_in(path)
        if not inside:
            raise UserError(f"{_describe(path)}; wanted images")
        files += inside
    for file in files:
        images.header_size(file)
    return files


def is_good(folder: str) -> bool:
    """Whether a folder of test images is named as normal ones are, in any case."""
    return re.sub(r"[\s-]+", "_", folder.strip().lower()) in _GOOD_NAMES


def natural_key(name: str) -> tuple:
    """Returns a sort key by which "2.png" comes before "10.png"."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdecimal() else part for part in parts], name


def check(records: Sequence[Record]) -> None:
    """Verifies files before any long work: readable, whole, masks of the right size.

    Only headers and the last bytes are read; a file is decoded only where its last
    bytes do not show that it is whole.

    Raises:
      UserError: names every bad file, up to five.
    """
    problems = []
    for record in records:
        try:
            _check_record(record)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        listed = "\n  ".join(problems[:5])
        raise UserError(
            f"{len(problems)} of {len(records)} images are bad:\n  {listed}"
        )


def unmasked(records: Iterable[Record]) -> dict[str, int]:
    """Counts defective images without a mask, by the folder that lacks it.

    Returns:
      {"<category>/ground_truth/<defect_type>": images}.
    """
    return dict(
        collections.Counter(
            f"{record.category}/ground_truth/{record.defect_type}"
            for record in records
            if record.defect_type != GOOD and record.mask is None
        )
    )


def mask_files(path: str | Path) -> list[Path]:
    """Returns the files of a mask: itself, or those in its folder.

    Raises:
      UserError: the folder holds no image.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    files = images_in(path)
    if not files:
        raise UserError(f"{path} holds no mask; {_describe(path)}")
    return files


def category_folders(root: Path) -> dict[str, Path]:
    """Returns {category: folder} of a category folder or a root of many.

    Raises:
      UserError: there is none; says what is there.
    """
    if _looks_like_category(root) or good_folder(root):
        return {Path(os.path.abspath(root)).name: root}
    folders = {
        folder.name: folder
        for folder in folders_in(root)
        if _looks_like_category(folder) or good_folder(folder)
    }
    if not folders:
        raise UserError(
            f"no train/good in {root}, nor in any folder in it; {_describe(root)}; put "
            "normal images into <category>/train/good, or into good/ beside a folder "
            "of each kind of defect"
        )
    return folders


def _looks_like_category(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def good_folder(folder: Path) -> Path | None:
    """Returns the folder of normal images in a category without train and test."""
    if _looks_like_category(folder):
        return None
    good = [sub for sub in folders_in(folder) if is_good(sub.name) and images_in(sub)]
    return good[0] if good else None


def _read_siblings(folder: Path, good: Path, category: str) -> list[Record]:
    """Reads normal images beside defective ones, and divides the normal ones."""
    others = [sub for sub in folders_in(folder) if sub != good]
    masks = [sub.name for sub in others if sub.name.lower() in _MASK_NAMES[1:]]
    if masks:
        raise UserError(
            f"{folder} holds {', '.join(masks)} beside {good.name}; put masks into "
            f"{folder / 'ground_truth'}/<defect>"
        )
    defects = [
        sub
        for sub in others
        if sub.name != _MASK_NAMES[0] and (is_good(sub.name) or images_in(sub))
    ]
    kept = _read_images(good, None, category, "train")
    if defects:
        kept = [
            record._replace(
                split="test", name=record.name.replace("/train/", "/test/", 1)
            )
            if number % TEST_EVERY == TEST_EVERY - 1
            or (number == len(kept) - 1 and 1 < len(kept) < TEST_EVERY)
            else record
            for number, record in enumerate(kept)
        ]
    kept.sort(key=lambda record: record.split != "train")
    for sub in sorted(defects, key=lambda sub: not is_good(sub.name)):
        masks_at = None if is_good(sub.name) else folder / "ground_truth" / sub.name
        kept += _read_images(sub, masks_at, category, "test")
    return kept


def _read_category(folder: Path, category: str, require_train: bool) -> list[Record]:
    good = good_folder(folder)
    if good is not None:
        return _read_siblings(folder, good, category)
    train, test = folder / "train", folder / "test"
    if not (train / GOOD).is_dir() and (require_train or train.is_dir()):
        where = train if train.is_dir() else folder
        raise UserError(f"{folder} has no train/good; {_describe(where)}")
    extra = [sub.name for sub in folders_in(train) if sub.name != GOOD]
    if extra:
        raise UserError(
            f"{train} holds {', '.join(extra)} beside good; put defective images into "
            "test/<defect> and choose those to train on with config.data.defect_rule"
        )
    records = []
    if (train / GOOD).is_dir():
        records += _read_images(train / GOOD, None, category, "train")
    defect_types = [sub.name for sub in folders_in(test)]
    for defect_type in sorted(
        defect_types, key=lambda name: (name != GOOD, not is_good(name))
    ):
        masks = None if is_good(defect_type) else folder / "ground_truth" / defect_type
        records += _read_images(test / defect_type, masks, category, "test")
    return records


def _read_images(
    folder: Path, mask_folder: Path | None, category: str, split: str
) -> list[Record]:
    files = images_in(folder)
    if not files:
        raise UserError(
            f"{folder} holds no images; {_describe(folder)}; "
            f"known image files: {' '.join(images.SUFFIXES)}"
        )
    masks = _masks(mask_folder, files) if mask_folder else {}
    return [
        Record(
            image=str(file),
            mask=masks.get(file),
            category=category,
            defect_type=GOOD if is_good(folder.name) else folder.name,
            split=split,
            name=f"{category}/{split}/{folder.name}/{file.name}",
        )
        for file in files
    ]


def _masks(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Returns the mask of each image: none of them, or all."""
    known = {file.stem: file for file in images_in(folder)}
    known.update({sub.name: sub for sub in folders_in(folder)})
    if not known:
        return {}
    masks: dict[Path, str] = {}
    taken: dict[Path, Path] = {}
    for image in files:
        mask = known.get(f"{image.stem}_mask", known.get(image.stem))
        if mask is None:
            continue
        if mask in taken:
            raise UserError(f"{taken[mask]} and {image} share the mask {mask}")
        masks[image], taken[mask] = str(mask), image
    missing = [image.name for image in files if image not in masks]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} images have no mask in {folder}: "
            f"{', '.join(missing[:5])}; wanted <stem>_mask.png or <stem>.png for each "
            "(or no mask folder at all)"
        )
    return masks


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: natural_key(entry.name))


def folders_in(folder: Path) -> list[Path]:
    """Returns the visible folders in a folder, in natural order."""
    return [entry for entry in _visible(folder) if entry.is_dir()]


def images_in(folder: Path) -> list[Path]:
    """Returns the visible image files in a folder, in natural order; [] without one."""
    return [
        entry
        for entry in _visible(folder)
        if entry.suffix.lower() in images.SUFFIXES and not entry.is_dir()
    ]


def _images_below(folder: Path) -> list[Path]:
    below = [file for sub in folders_in(folder) for file in _images_below(sub)]
    return images_in(folder) + below


def _describe(folder: Path) -> str:
    entries = _visible(folder)
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{folder} holds {', '.join(names[:6]) + more if names else 'nothing'}"


def _check_record(record: Record) -> None:
    size = images.header_size(record.image)
    for file in mask_files(record.mask) if record.mask else []:
        mask_size = images.header_size(file)
        if mask_size != size:
            raise UserError(
                f"mask {file} is {mask_size[0]} x {mask_size[1]}, its image "
                f"{record.image} is {size[0]} x {size[1]}; they must be equal"
                + _turned(record.image, file)
            )


def _turned(image: str, mask: Path) -> str:
    """Returns what to add where only the image carries an EXIF orientation."""
    if images.orientation(image) == 1 or images.orientation(mask) != 1:
        return ""
    return " (the image is turned by its EXIF orientation and the mask is not)"
