"""What a run keeps of its own: a user's few images, the weights of a feature tower.

shots/<category>/train/good/000.png ...   copies of the images
shots/.copies.json                        the names of these copies
features/<file of weights>                a copy
"""

import filecmp
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from jaxanom import record
from jaxanom.data import images
from jaxanom.errors import UserError
from jaxanom.models.features import mobilenet_v2

IN_RUN = "run:"
"""What a config's text starts with that names a folder of the run itself."""
SHOTS, FEATURES = "shots", "features"
COPIES = ".copies.json"


def keep(
    config: ml_collections.ConfigDict,
    files: Sequence[Path],
    category: str,
    directory: str | Path,
    weights: str | Path = "",
) -> ml_collections.ConfigDict:
    """Copies images and weights into a run; returns its config, pointed at them.

    All is checked before anything is written. Copies that a refused command has left
    are replaced, nothing else is.

    Args:
      config: of method "adp".
      files: normal images of any sizes.
      category: what the product is called, in words.
      directory: of the run.
      weights: folder of MobileNetV2 weights; "" keeps the config's tower.

    Raises:
      UserError: a name or a file that would not be read back, or a directory that
        holds another run or files of the user.
    """
    directory = Path(directory)
    wanted = _named(files, category)
    changed = with_shots(config, category)
    if weights:
        changed = with_features(changed)
        weights = _checked(weights, directory)
    is_there = _holds(directory, wanted)
    record.claim(directory, changed, write=False)
    if not is_there:
        _copy(wanted, directory / SHOTS)
    if weights:
        folder = directory / FEATURES
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{mobilenet_v2.WEIGHTS}.partial"
        shutil.copyfile(weights, partial)
        os.replace(partial, folder / mobilenet_v2.WEIGHTS)
    return changed


def with_shots(
    config: ml_collections.ConfigDict, category: str
) -> ml_collections.ConfigDict:
    """Returns a config that learns from all images kept in its run, of one category."""
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.data.name, changed.data.directory = "folder", IN_RUN + SHOTS
    changed.data.categories, changed.data.num_train = (category,), 0
    changed.data.defect_rule, changed.data.shots = "none", 0
    return changed


def with_features(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a config of method "adp" with the feature tower kept in its run.

    The memory then decides unless the self-tuning finds more in the text: the embedded
    CLIP has seen procedural images only.
    """
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.adp.feature_tower = IN_RUN + FEATURES
    changed.adp.feature_layers = mobilenet_v2.DEFAULT_LAYERS
    changed.adp.primary = "reference"
    return changed


def _named(files: Sequence[Path], category: str) -> dict[str, Path]:
    """Returns {name of the copy: file}; only what `data.folders` reads has one."""
    is_name = category.strip(" .") and Path(category).name == category
    if not is_name or category[0] == "." or category.lower() in ("train", "test"):
        raise UserError(
            f"category name {category!r}; wanted words such as 'hex nut' that are a "
            "folder's name: no dot in front, neither 'train' nor 'test'"
        )
    for file in files:
        if file.suffix.lower() not in images.SUFFIXES:
            raise UserError(
                f"{file} has suffix {file.suffix!r}; wanted one of "
                f"{' '.join(images.SUFFIXES)}"
            )
    return {
        f"{category}/train/good/{number:03d}{file.suffix.lower()}": file
        for number, file in enumerate(files)
    }


def _checked(weights: str | Path, directory: Path) -> Path:
    """Returns the file of weights; refuses what is none, or a run of others."""
    mobilenet_v2.load(weights)
    file = Path(weights).expanduser() / mobilenet_v2.WEIGHTS
    own = directory / FEATURES / mobilenet_v2.WEIGHTS
    if own.is_file() and not filecmp.cmp(file, own, shallow=False):
        raise UserError(f"{own} holds other weights than {file}; choose another --out")
    return file


def _holds(directory: Path, wanted: Mapping[str, Path]) -> bool:
    """Whether a run has just these images; refuses where others are not to be lost."""
    place = directory / SHOTS
    found = {
        path.relative_to(place).as_posix(): path
        for path in place.rglob("*")
        if path.is_file() and path != place / COPIES
    }
    if found.keys() == wanted.keys() and all(
        filecmp.cmp(path, wanted[name], shallow=False) for name, path in found.items()
    ):
        return True
    for file in wanted.values():
        if file.resolve().is_relative_to(place.resolve()):
            raise UserError(
                f"{file} lies in {place}, where the run keeps its copies; choose "
                "another --out"
            )
    if found and (directory / record.CONFIG).is_file():
        raise UserError(f"{directory} holds images of another run; choose another")
    listed = place / COPIES
    foreign = found.keys() - (record.read_json(listed) if listed.is_file() else ())
    if foreign:
        raise UserError(
            f"{place} holds files that are no copies of a run, such as "
            f"{min(foreign)}; choose another --out"
        )
    return False


def _copy(wanted: Mapping[str, Path], place: Path) -> None:
    """Puts the copies in the place of what is there, all of them or none."""
    building = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        for name, file in wanted.items():
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, building / name)
        record.write_json(building / COPIES, sorted(wanted))
        if place.is_dir():
            shutil.rmtree(place)
        os.rename(building, place)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
