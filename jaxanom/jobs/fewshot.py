"""From a few normal images of a product to a run that detects its defects.

The run keeps what it learnt from, so that it works wherever it is copied to:

    shots/<category>/train/good/000.png ...   copies of the images
    shots/.copies.json                        the names of these copies
    features/<file of weights>                a copy, of a tower in a folder
"""

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from jaxanom import files as whole
from jaxanom import record
from jaxanom.data import images
from jaxanom.data.layouts import mvtec
from jaxanom.errors import UserError
from jaxanom.jobs.load import Trained
from jaxanom.jobs.train import train
from jaxanom.models.features import mobilenet_v2

RECIPE = "configs/memory/folder.py"
SMALL_RECIPE = "configs/adp/folder.py"
SMALL = 64
"""Shorter side in pixels up to which the embedded towers see an image whole."""
TOWERS = {"adp": ("feature_tower", "feature_layers"), "memory": ("tower", "taps")}
"""{few-shot method: keys of its section that name the tower and its layers}."""
MOBILENET = "mobilenet_v2:"
SHOTS, FEATURES = "shots", "features"
COPIES = ".copies.json"


def recipe(normal: str | Path | Sequence[str | Path]) -> str:
    """Returns the recipe for images of this size: half of them decide.

    Args:
      normal: See `fewshot`.
    """
    sizes = [min(images.header_size(file)) for file in _files(normal)]
    return RECIPE if sorted(sizes)[len(sizes) // 2] > SMALL else SMALL_RECIPE


def fewshot(
    normal: str | Path | Sequence[str | Path],
    category: str,
    directory: str | Path,
    config: ml_collections.ConfigDict,
    tower: str = "",
) -> Trained:
    """Copies normal images into a run and trains it on all of them.

    Args:
      normal: Image files, or folders whose images are meant.
      category: What the product is called, in words.
      directory: The run.
      config: A config of the few-shot method.
      tower: Feature tower of the memory, see `models.features.towers`; "" keeps the
        config's.

    Raises:
      UserError: The config is of another method, or see `keep`.
    """
    if config.method not in TOWERS:
        raise UserError(
            f"the config is of method {config.method!r}; wanted one of {list(TOWERS)}"
        )
    settings = keep(config, _files(normal), category, directory, tower)
    return train(settings, directory)


def _files(normal: str | Path | Sequence[str | Path]) -> list[Path]:
    return mvtec.image_files([normal] if isinstance(normal, str | Path) else normal)


def keep(
    config: ml_collections.ConfigDict,
    files: Sequence[Path],
    category: str,
    directory: str | Path,
    tower: str = "",
) -> ml_collections.ConfigDict:
    """Copies images and weights into a run; returns its config, pointed at them.

    All is checked before anything is written. Copies that a refused command has left
    are replaced, nothing else is.

    Args:
      config: A config of the few-shot method.
      files: Normal images of any sizes.
      category: What the product is called, in words.
      directory: The run.
      tower: "mobilenet_v2:DIR", whose weights are copied, or any other; "" keeps the
        config's.

    Raises:
      UserError: A name or a file would not be read back, or the directory holds another
        run or files of the user.
    """
    directory = Path(directory)
    copies = _named(files, category)
    config = with_shots(config, category)
    weights = None
    if tower.startswith(MOBILENET):
        weights = _checked(tower.removeprefix(MOBILENET), directory)
    if tower:
        config = with_tower(config, tower)
    is_there = _holds(directory, copies)
    record.claim(directory, config, write=False)
    if not is_there:
        with whole.replacing(directory / SHOTS) as building:
            for name, file in copies.items():
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, building / name)
            record.write_json(building / COPIES, sorted(copies))
    if weights:
        with whole.replacing(directory / FEATURES / mobilenet_v2.WEIGHTS) as building:
            shutil.copyfile(weights, building)
    return config


def with_shots(
    config: ml_collections.ConfigDict, category: str
) -> ml_collections.ConfigDict:
    """Returns a config that learns from all images kept in its run, of one category."""
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.data.name, changed.data.directory = "folder", ""
    changed.data.categories, changed.data.num_train = (category,), 0
    changed.data.defect_rule, changed.data.shots = "none", 0
    changed.kept = (("data.directory", SHOTS),)
    return changed


def with_tower(
    config: ml_collections.ConfigDict, tower: str
) -> ml_collections.ConfigDict:
    """Returns a config of a few-shot method with another feature tower.

    MobileNetV2 is looked for in the run. The layers are the tower's own. In ADP the
    memory then decides unless the self-tuning finds more in the text: the embedded CLIP
    has seen procedural images only.
    """
    changed = ml_collections.ConfigDict(config.to_dict())
    section, (key, layers) = changed[config.method], TOWERS[config.method]
    # The recipe's layers are those of this family.
    if config.method == "adp" or not tower.startswith("efficientnet"):
        section[layers] = ()
    if config.method == "adp":
        section.primary = "reference"
    if tower.startswith(MOBILENET):
        kept = (f"{config.method}.{key}", f"{MOBILENET}{FEATURES}")
        changed.kept = (*changed.kept, kept)
    else:
        section[key] = tower
    return changed


def _named(files: Sequence[Path], category: str) -> dict[str, Path]:
    """Returns {name of the copy: file}; only what `data.layouts` reads has one."""
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


def _holds(directory: Path, copies: Mapping[str, Path]) -> bool:
    """Whether a run has just these images; refuses where others are not to be lost."""
    place = directory / SHOTS
    there = {
        path.relative_to(place).as_posix(): path
        for path in place.rglob("*")
        if path.is_file() and path != place / COPIES
    }
    if there.keys() == copies.keys() and all(
        filecmp.cmp(path, copies[name], shallow=False) for name, path in there.items()
    ):
        return True
    for file in copies.values():
        if file.resolve().is_relative_to(place.resolve()):
            raise UserError(
                f"{file} lies in {place}, where the run keeps its copies; choose "
                "another --out"
            )
    if there and (directory / record.CONFIG).is_file():
        raise UserError(f"{directory} holds images of another run; choose another")
    listed = place / COPIES
    foreign = there.keys() - (record.read_json(listed) if listed.is_file() else ())
    if foreign:
        raise UserError(
            f"{place} holds files that are no copies of a run, such as "
            f"{min(foreign)}; choose another --out"
        )
    return False
