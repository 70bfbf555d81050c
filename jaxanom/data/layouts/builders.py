"""The same records as tensorflow-datasets builders, without TensorFlow.

A builder copies a dataset into ArrayRecord files of encoded images, which a cluster
reads faster than many small files. What was unpacked by hand is looked for in
`manual_dir/<name>`, laid out as `published` says; "elpv" is an installed package, and
"foundry" needs no files.

    builder = builders.make("visa", data_dir, manual_dir)
    builder.download_and_prepare()
    catalog.open_dataset("tfds", builder.data_path)

Image and mask come back bit-equal to the files'.
"""

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxanom.data import canvas, images
from jaxanom.data.layouts import elpv, mvtec, published, rendered
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.errors import UserError, check_known

ELPV, FOUNDRY = "elpv", "foundry"
NAMES = (*published.READERS, ELPV, FOUNDRY)
FORMAT = "array_record"
_FIELDS = ("name", "category", "defect_type")
_ORIENTATION = 274  # of EXIF


def make(
    name: str,
    data_dir: str | Path,
    manual_dir: str | Path = "",
    categories: Sequence[str] = (),
    size: int = 256,
    seed: int = 0,
) -> Any:
    """Returns the builder of a dataset; its `download_and_prepare` writes it.

    Args:
      name: One of `NAMES`.
      data_dir: to write to; the dataset gets its own folder there.
      manual_dir: holds the unpacked dataset in a folder of its name.
      categories: which to take, in this order; empty takes all.
      size: Side of what "foundry" renders.
      seed: Decides what "foundry" renders, and which cells of "elpv" train.

    Raises:
      UserError: an unknown name, a dataset of that name that is there already (with
        which categories, size and seed, its folder does not tell), or
        tensorflow-datasets, or the package of "elpv", is not installed.
    """
    _check_installed()
    check_known("dataset", name, NAMES)
    root = elpv.folder() if name == ELPV else Path(manual_dir) / name
    arguments = (name, root, tuple(categories), size, seed)
    builder_class = _builder_class(name, functools.partial(_rows, *arguments))
    builder = builder_class(data_dir=str(data_dir), file_format=FORMAT)
    if Path(builder.data_path).exists():
        raise UserError(
            f"{builder.data_path} is there already, perhaps with other categories, "
            "size or seed; choose another --out, or delete it"
        )
    return builder


def _check_installed() -> None:
    try:
        import tensorflow_datasets  # noqa: F401
    except ImportError as error:
        raise UserError(
            "this needs tensorflow-datasets: pip install 'jaxanom[data]'"
        ) from error


def _builder_class(dataset: str, rows: Callable[[str], Iterator[Any]]) -> type:
    """Returns the builder class of a dataset; its name becomes the folder's."""
    import tensorflow_datasets as tfds

    picture = functools.partial(tfds.features.Image, encoding_format="png")
    features = {
        "image": picture(shape=(None, None, 3)),
        "mask": picture(shape=(None, None, 1)),
        "has_mask": tfds.features.Scalar(dtype=np.bool_),
        "label": tfds.features.ClassLabel(names=["normal", "anomalous"]),
        **{field: tfds.features.Text() for field in _FIELDS},
    }

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            # Order says which example is which: it is the order of the records.
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(name) for name in ("train", "test")}

        def _generate_examples(self, split):
            for number, (record, image, mask) in enumerate(rows(split)):
                texts = {field: getattr(record, field) for field in _FIELDS}
                yield (
                    number,
                    {
                        "image": image,
                        "mask": mask,
                        "has_mask": record.mask is not None,
                        "label": int(record.defect_type != GOOD),
                        **texts,
                    },
                )

    return Builder


def _rows(
    name: str, root: Path, categories: Sequence[str], size: int, seed: int, split: str
) -> Iterator[tuple[Record, bytes, bytes]]:
    """Yields records of a split with their encoded image and mask."""
    if name == FOUNDRY:
        for record, row in rendered.plan(categories, seed).items():
            if record.split == split:
                sample = rendered.sample(row, seed, size)
                mask = sample.mask.astype(bool).astype(np.uint8) * np.uint8(255)
                yield record, _png(sample.image), _png(mask)
        return
    if name == ELPV:
        records = elpv.read(root, categories, seed)
    else:
        records = published.read(name, root, categories)
    for record in records:
        if record.split != split:
            continue
        image = _encoded_image(Path(record.image))
        if record.mask is None:
            mask = np.zeros(images.header_size(record.image)[::-1], np.uint8)
        else:
            mask = images.load_mask(mvtec.mask_files(record.mask))
        yield record, image, _png(mask * np.uint8(255))


def _encoded_image(path: Path) -> bytes:
    """Returns the file itself where a decoder cannot misread it, else a PNG of it."""
    with Image.open(path) as opened:
        upright = opened.getexif().get(_ORIENTATION, 1) == 1
        if opened.format in ("PNG", "JPEG") and opened.mode == "RGB" and upright:
            return path.read_bytes()
    return _png(images.load_image(str(path)))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Prepared:
    """Random access to the pixels of a prepared dataset; goes to worker processes."""

    def __init__(self, directory: str | Path):
        """Opens a dataset that a builder has written.

        Raises:
          UserError: the directory holds none.
        """
        _check_installed()
        import tensorflow_datasets as tfds

        raw = tfds.decode.SkipDecoding()
        try:
            builder = tfds.builder_from_directory(str(Path(directory).expanduser()))
        except Exception as error:  # tfds raises by file system and by format
            raise UserError(
                f"config.data.directory={directory} holds no prepared dataset: {error};"
                " write one with `jaxanom data tfds`"
            ) from error
        decoders = {"image": raw, "mask": raw}
        self._sources = {
            split: builder.as_data_source(split=split, decoders=decoders)
            for split in builder.info.splits
        }
        self.records = []
        self._places = {}
        for split, source in self._sources.items():
            for number in range(len(source)):
                row = source[number]
                name, category, kind = (row[field].decode() for field in _FIELDS)
                mask = f"tfds:{name}" if row["has_mask"] else None
                record = Record(f"tfds:{name}", mask, category, kind, split, name)
                self.records.append(record)
                self._places[record] = split, number

    def shape(self, record: Record) -> tuple[int, int]:
        """Returns (height, width) of a record's image."""
        split, number = self._places[record]
        with Image.open(io.BytesIO(self._sources[split][number]["image"])) as opened:
            return opened.height, opened.width

    def load(
        self, record: Record, size: tuple[int, int], keeps_aspect: bool = False
    ) -> tuple[np.ndarray, ...]:
        """Returns image and mask of a record, as `catalog.load_files` does."""
        split, number = self._places[record]
        row = self._sources[split][number]
        with Image.open(io.BytesIO(row["image"])) as opened:
            image = np.asarray(opened.convert("RGB"))
        with Image.open(io.BytesIO(row["mask"])) as opened:
            mask = (np.asarray(opened.convert("L")) > 0).astype(np.uint8)
        return canvas.resized(image, mask, size, keeps_aspect)
