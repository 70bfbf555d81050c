"""Published datasets as they are unpacked -> records; files stay where they are.

    mvtec_ad     <category>/{train,test,ground_truth}/...          see `mvtec`
    mvtec_loco   the same; test/{logical,structural}_anomalies, masks in folders
    btad         {01,02,03}/{train,test}/ok, test/ko, ground_truth/ko/<stem>.*
    visa         split_csv/1cls.csv: object,split,label,image,mask
    kolektor     KolektorSDD2: {train,test}/<number>.png with <number>_GT.png beside it
    kolektor_sdd the older KolektorSDD: kos01/Part0.jpg with Part0_label.bmp beside it

The owners of KolektorSDD hand out folds apart from the images, for training on defects
too. Here it is split by item for training on normal images: those of kos01 to kos32
train, the other items' and every defective image are tested.

Each is downloaded by hand from its owners, under their terms; nothing is fetched here.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxanom.data import images
from jaxanom.data.layouts import mvtec
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.errors import UserError, check_known

VISA_TABLE = Path("split_csv", "1cls.csv")
_ANOMALY = {
    "btad": "ko",
    "visa": "anomaly",
    "kolektor": "defect",
    "kolektor_sdd": "crack",
}
_ITEM = re.compile(r"kos(\d+)")
_LAST_TRAINING_ITEM = 32  # of 50


def read(
    name: str, directory: str | Path, categories: Sequence[str] = ()
) -> list[Record]:
    """Lists the images of a published dataset.

    Args:
      name: a key of `READERS`.
      directory: where it was unpacked.
      categories: which to read, in this order; empty reads all.

    Returns:
      Records in the order of `mvtec.read_folder`. Defective images of a train split
      (kolektor) are listed there; what learns from normal images leaves them alone.

    Raises:
      UserError: an unknown name or category, or files that are not laid out so.
    """
    check_known("dataset", name, READERS)
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UserError(f"config.data.directory={root}: no such folder of {name!r}")
    records = READERS[name](root)
    known = dict.fromkeys(record.category for record in records)
    for category in categories:
        check_known("category", category, known)
    order = {category: place for place, category in enumerate(categories or known)}
    kept = [record for record in records if record.category in order]
    return sorted(kept, key=lambda r: (order[r.category], *_place(r)))


def _place(record: Record) -> tuple:
    good_first = record.defect_type != GOOD, record.defect_type
    return record.split != "train", *good_first, mvtec.natural_key(record.name)


def _btad(root: Path) -> list[Record]:
    records = []
    for category in mvtec.folders_in(root):
        if not (category / "train" / "ok").is_dir():
            continue
        masks = {
            path.stem: path
            for path in mvtec.images_in(category / "ground_truth" / "ko")
        }
        for split, kind in (("train", "ok"), ("test", "ok"), ("test", "ko")):
            for path in mvtec.images_in(category / split / kind):
                defect_type = GOOD if kind == "ok" else _ANOMALY["btad"]
                mask = masks.get(path.stem) if kind == "ko" else None
                records.append(_record(path, mask, category.name, defect_type, split))
    return _some(records, root, "01/train/ok, 01/test/{ok,ko} and 01/ground_truth/ko")


def _visa(root: Path) -> list[Record]:
    table = root / VISA_TABLE
    if not table.is_file():
        raise UserError(f"{root} has no {VISA_TABLE}; wanted VisA as it is unpacked")
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is no table of text: {error}") from error
    records = []
    for line, row in enumerate(csv.DictReader(lines), start=2):
        fields = ("object", "split", "label", "image", "mask")
        if any(row.get(field) is None for field in fields):
            raise UserError(f"{table}:{line}: wanted the columns {fields}")
        normal = row["label"] == "normal"
        mask = root / row["mask"] if row["mask"] and not normal else None
        kind = GOOD if normal else _ANOMALY["visa"]
        path = root / row["image"]
        records.append(_record(path, mask, row["object"], kind, row["split"]))
    return _some(records, root, f"rows in {VISA_TABLE}")


def _kolektor(root: Path) -> list[Record]:
    records = []
    for split in ("train", "test"):
        for path, mask in _with_masks(root / split, "_GT"):
            kind = _ANOMALY["kolektor"] if mask else GOOD
            records.append(_record(path, mask, "kolektor", kind, split))
    return _some(records, root, "train/*.png and test/*.png of KolektorSDD2")


def _kolektor_sdd(root: Path) -> list[Record]:
    records = []
    for item in mvtec.folders_in(root):
        numbered = _ITEM.fullmatch(item.name)
        for path, mask in _with_masks(item, "_label", ".bmp") if numbered else ():
            kind = _ANOMALY["kolektor_sdd"] if mask else GOOD
            trained = not mask and int(numbered[1]) <= _LAST_TRAINING_ITEM
            split = "train" if trained else "test"
            record = _record(path, mask, "commutator", kind, split)
            name = f"commutator/{split}/{kind}/{item.name}_{path.name}"
            records.append(record._replace(name=name))  # every item has a Part0
    return _some(records, root, "kos01/Part0.jpg and Part0_label.bmp of KolektorSDD")


def _with_masks(
    folder: Path, ending: str, suffix: str = ""
) -> Iterator[tuple[Path, Path | None]]:
    """Yields images with the mask <stem><ending> beside each; None for an empty one."""
    for path in mvtec.images_in(folder):
        if path.stem.endswith(ending):
            continue
        mask = path.with_name(f"{path.stem}{ending}{suffix or path.suffix}")
        if not mask.is_file():
            raise UserError(f"{path} has no {mask.name} beside it")
        yield path, mask if np.any(images.load_mask([mask])) else None


READERS: dict[str, Callable[[Path], list[Record]]] = {
    "mvtec_ad": mvtec.read_folder,
    "mvtec_loco": mvtec.read_folder,
    "btad": _btad,
    "visa": _visa,
    "kolektor": _kolektor,
    "kolektor_sdd": _kolektor_sdd,
}


def _record(
    path: Path, mask: Path | None, category: str, defect_type: str, split: str
) -> Record:
    name = f"{category}/{split}/{defect_type}/{path.name}"
    marked = None if mask is None else str(mask)
    return Record(str(path), marked, category, defect_type, split, name)


def _some(records: list[Record], root: Path, layout: str) -> list[Record]:
    if not records:
        raise UserError(f"{root}: found no images; wanted {layout}")
    return records
