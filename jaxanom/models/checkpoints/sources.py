"""Where one network of a checkpoint is: its config and its weights.

A checkpoint is a directory in the layout of diffusers or transformers, a hub name of
one, or a single file of weights. A single file in Stable Diffusion's or CLIP's original
layout tells its config by its shapes; any other needs config.json beside it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxanom import record
from jaxanom.errors import UserError
from jaxanom.models import networks
from jaxanom.models.checkpoints import hub, pretrained, weight_files
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.checkpoints.names import (
    layouts,
    openai_clip,
    original_stable_diffusion,
)
from jaxanom.models.clip import layers
from jaxanom.parallel import rules
from jaxanom.types import Params


class Loading(NamedTuple):
    """How weights are read.

    Attributes:
      dtype: Floating leaves are cast to it; None keeps the file's.
      variant: Which weight files are meant: "fp16" is `model.fp16.safetensors`.
      hidden_act: Activation of CLIP's towers; "" is the config's.
      mesh: Devices over which `parallel.rules` spreads each leaf as soon as it is read;
        None leaves them on the host.
    """

    dtype: Any = np.float32
    variant: str | None = None
    hidden_act: str = ""
    mesh: Mesh | None = None


PLAIN = Loading()


def chosen(section: Any) -> Loading:
    """Returns how a section of a config wants weights to be read.

    Args:
      section: A ConfigDict of which `variant` and `clip_act` are read.

    Raises:
      UserError: an activation that is not known.
    """
    known = ("", *layers.ACTIVATIONS)
    if section.clip_act not in known:
        raise UserError(
            f"config.model.clip_act={section.clip_act!r}; choose one of {known}, where "
            "'' is what the checkpoint says"
        )
    return Loading(variant=section.variant, hidden_act=section.clip_act)


# What tells of a checkpoint is fetched with any part of it, so that a snapshot that has
# one part says what the others are. On the hub "*" crosses "/": whole names keep the
# rest of a repository out.
_DESCRIPTIONS = (
    *("config.json", "preprocessor_config.json", "scheduler_config.json"),
    *(f"{folder}/config.json" for folder in ("unet", "vae", "text_encoder")),
    *(f"{tower}/config.json" for tower in ("clip", "image_encoder")),
    *(f"{tower}/preprocessor_config.json" for tower in ("clip", "image_encoder")),
    "scheduler/scheduler_config.json",
)
_NUMBER = 5 * "[0-9]"
_CLIPS = ("clip", "text_encoder", "image_encoder")


class Source(NamedTuple):
    """One network.

    Attributes:
      config: Its config.json, read or inferred.
      weights: A directory with its weights, or the file itself.
      assumed: What was taken to hold because no tensor tells it, in words.
      hidden_act: Activation of CLIP's towers; "" is the config's.
    """

    config: dict[str, Any]
    weights: Path
    assumed: str = ""
    hidden_act: str = ""

    def network(self, kind: str, image_size: int | None = None) -> networks.Network:
        """Returns what the config describes, see `networks.of`.

        Raises:
          UserError: it was refused; says where the config is and what it declares.
        """
        beside = self.weights / "preprocessor_config.json"
        preprocessor = record.read_json(beside) if beside.is_file() else None
        try:
            return networks.of(
                kind, self.config, image_size, preprocessor, self.hidden_act
            )
        except (ValueError, TypeError) as error:  # such as a word where a list belongs
            name = self.config.get("_class_name") or self.config.get("architectures")
            declared = f", which declares {name}" if name else ""
            raise UserError(f"config of {self.weights}{declared}: {error}") from error


def find(
    name: str | Path, folders: Sequence[str], kind: str, loading: Loading = PLAIN
) -> Source:
    """Finds one network of a checkpoint, fetching it from the hub if need be.

    Args:
      name: A directory, a file, or a hub name.
      folders: Where the network may be in a directory, the likeliest first; "." is the
        directory itself.
      kind: A key of `pretrained.KINDS`.
      loading: Its variant and activation are read.

    Raises:
      UserError: nothing there, no config.json, or a single file of unknown sizes.
      ImportError: a hub name that is not cached, without `huggingface_hub`.
    """
    variant = loading.variant
    hidden_act = loading.hidden_act if kind in _CLIPS else ""

    def is_complete(snapshot: Path) -> bool:
        inside = [snapshot / folder for folder in folders]
        return any(_has_weights(folder, kind, variant) for folder in inside)

    groups = [
        [
            *_DESCRIPTIONS,
            *(_below(f, pattern) for f in folders for pattern in _patterns(names)),
        ]
        for names in weight_files.formats(kind, variant)
    ]
    path = _local(name, is_complete, groups)
    if path.is_file():
        config, assumed = _config_of_file(path, kind)
        return Source(config, path, "" if hidden_act else assumed, hidden_act)
    described = [name for name in folders if (path / name / "config.json").is_file()]
    folder = (described or folders)[0]
    config = pretrained.load_config(path, folder)
    return Source(config, path / folder, hidden_act=hidden_act)


def read(
    source: Source,
    kind: str,
    target: Params,
    loading: Loading = PLAIN,
    ignore: Sequence[str] = (),
) -> Params:
    """Reads a network's weights, each to where `loading` says.

    Args:
      source: What `find` returned.
      kind, target, ignore: As in `pretrained.load_params`.
      loading: How to read them.

    Raises:
      UserError: as `pretrained.load_params`.
    """
    mesh = loading.mesh
    place = None if mesh is None else rules.shardings(target, mesh)
    return pretrained.load_params(
        source.weights, kind, target, loading.dtype, ignore, place, loading.variant
    )


def small_files(
    name: str | Path,
    folders: Sequence[str],
    choices: Sequence[Sequence[str]],
    beside: Sequence[str] = (),
) -> Path:
    """Returns the directory (or file) that a name stands for, with its small files.

    Args:
      name: As in `find`.
      folders: Where the files may be in a directory.
      choices: Sets of files, such as [("vocab.json", "merges.txt")], of which one at
        least is wanted whole, in one folder.
      beside: Files that are fetched with them where they are there.
    """

    def is_complete(snapshot: Path) -> bool:
        return any(
            all((snapshot / folder / file).is_file() for file in files)
            for folder in folders
            for files in choices
        )

    files = dict.fromkeys([*(file for files in choices for file in files), *beside])
    patterns = [_below(folder, file) for folder in folders for file in files]
    return _local(name, is_complete, [[*_DESCRIPTIONS, *patterns]])


def _local(
    name: str | Path,
    is_complete: Callable[[Path], bool],
    patterns: Sequence[Sequence[str]],
) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    if hub.is_name(str(name)):
        return hub.resolve(str(name), is_complete, patterns)
    raise UserError(
        f"no backbone directory or file {path}; set config.model.directory to "
        "'embedded', to a folder in diffusers' layout (unet/, vae/, text_encoder/, "
        "...), to a file of weights, or to a hub name like owner/name"
    )


def _config_of_file(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """Returns a single file's config, and what of it no tensor tells."""
    beside = path.parent / "config.json"
    shapes = weights.shapes(path)
    layout = layouts.detect(shapes)
    if beside.is_file():
        return pretrained.load_config(path.parent), ""
    if layout == "original":
        configs = original_stable_diffusion.configs(shapes)
        if kind in configs:
            lone = original_stable_diffusion.is_lone_autoencoder(shapes)
            return configs[kind], original_stable_diffusion.ASSUMED if lone else ""
    if layout == "openai" and kind in _CLIPS:
        return openai_clip.config(shapes), openai_clip.ASSUMED
    raise UserError(
        f"{beside} is missing, and {path.name} (layout {layout!r}) does not tell the "
        f"config of a {kind}; put the model's config.json beside it"
    )


def _has_weights(folder: Path, kind: str, variant: str | None) -> bool:
    """Says whether what `weight_files.locate` finds there is whole, with its config."""
    if not (folder / "config.json").is_file():
        return False
    files = [folder / name for name in weight_files.candidates(kind, variant)]
    first = next((file for file in files if file.is_file()), None)
    return first is not None and weights.is_whole(first)


def _patterns(names: tuple[str, str]) -> list[str]:
    single, index = names
    stem, dot, suffix = single.rpartition(".")
    return [single, index, f"{stem}-{_NUMBER}-of-{_NUMBER}{dot}{suffix}"]


def _below(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"
