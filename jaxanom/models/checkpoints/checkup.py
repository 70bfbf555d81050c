"""What a checkpoint on disk is and needs, told from its configs and headers alone.

No weight is read, but those of TAESD's small original files; parameter trees and
operations are counted on abstract values.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from jaxanom import flops, trees
from jaxanom.errors import UserError
from jaxanom.models import backbones, networks
from jaxanom.models.checkpoints import pretrained, sources, weight_files
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.checkpoints.names import layouts, original_stable_diffusion
from jaxanom.models.latent import tiny_autoencoder
from jaxanom.types import Params

_FOLDERS = ("unet", "vae", "text_encoder", "clip", "image_encoder")


class Call(NamedTuple):
    """One way to call a network, with shapes in words."""

    name: str
    count: flops.Count


class Part(NamedTuple):
    """One network of a checkpoint.

    Attributes:
      folder: where it lies in the checkpoint; "" for the checkpoint itself.
      kind: a key of `pretrained.KINDS`.
      architecture: what it is, in words.
      layout: whose names its tensors have, see `layouts.LAYOUTS`.
      shapes: its parameter tree.
      dtypes: {dtype in the file: number of tensors}.
      assumed: what no tensor tells, see `sources.Source`.
      problems: tensors and leaves that do not fit, one line each; empty if all do.
      calls: what one forward takes, batch 1.
    """

    folder: str
    kind: str
    architecture: str
    layout: str
    shapes: Params
    dtypes: dict[str, int]
    assumed: str
    problems: tuple[str, ...]
    calls: tuple[Call, ...]

    @property
    def num_params(self) -> int:
        """Number of parameters of the network."""
        return trees.num_params(self.shapes)


def parts(name: str | Path) -> list[tuple[str, str]]:
    """Lists the networks of a checkpoint as (folder, kind).

    Args:
      name: directory, file or hub name, see `sources.find`.

    Raises:
      UserError: there is no such checkpoint, or it holds no network known here.
    """
    path = sources.small_files(name, (*_FOLDERS, "."), [("config.json",)])
    if path.is_file():
        return [("", kind) for kind in _kinds_of_file(path)]
    found = [
        (folder, _kind_of_config(pretrained.load_config(path, folder), path / folder))
        for folder in _FOLDERS
        if (path / folder / "config.json").is_file()
    ]
    if found:
        return found
    if tiny_autoencoder.pair_of_files(path) is not None:
        return [("", "tiny_autoencoder")]
    return [("", _kind_of_config(pretrained.load_config(path), path))]


def examine(
    name: str | Path,
    folder: str,
    kind: str,
    image_size: int | None = None,
    variant: str | None = None,
) -> Part:
    """Examines one network of a checkpoint.

    Args:
      name: as in `parts`.
      folder, kind: an entry of `parts`.
      image_size: side in pixels of the images that operations are counted for; None
        takes the config's.
      variant: Which weight files are meant, such as "fp16".

    Raises:
      UserError: a config that our modules cannot honour, or a damaged file.
    """
    pair = tiny_autoencoder.pair_of_files(name)
    if pair is not None and not folder:
        return _examine_pair(*pair, image_size)
    loading = sources.Loading(variant=variant)
    source = sources.find(name, (folder or ".",), kind, loading)
    try:
        network = networks.of(kind, source.config, image_size)
    except TypeError as error:  # such as a word where a list is wanted
        raise UserError(f"config.json of {source.weights}: {error}") from error
    tensors = weights.tensors(weight_files.locate(source.weights, kind, variant))
    target = network.shapes()
    fit = pretrained.compare({k: v.shape for k, v in tensors.items()}, target, kind)
    problems = [
        *(f"not in the model: {line}" for line in fit.unread),
        *(f"not in the weights: {line}" for line in fit.missing),
        *(f"twice in the weights: {line}" for line in fit.doubled),
        *(f"of another shape: {line}" for line in fit.differing),
    ]
    used = {origin.name for origin in fit.origins.values()}
    dtypes = Counter(tensors[name].dtype.name for name in used)
    part = _part(folder, kind, network, target, fit.layout, dtypes, problems)
    return part._replace(assumed=source.assumed)


def schedule(name: str | Path) -> str | None:
    """Says what noise a checkpoint was trained on; None if it has no such file.

    Raises:
      UserError: it asks for what is not implemented, or does not tell.
    """
    file = "scheduler_config.json"
    folders = ("scheduler", *_FOLDERS, ".")
    path = sources.small_files(name, folders, [(file,), ("config.json",)])
    if path.is_file():
        shapes = weights.shapes(path)
        original = layouts.detect(shapes) == "original"
        if not original or original_stable_diffusion.is_lone_autoencoder(shapes):
            return None
    elif not any((path / place / file).is_file() for place in ("scheduler", ".")):
        return None
    found = backbones.load_schedule(name)
    first, last = found.alphas_cumprod[[0, -1]]
    return (
        f"{len(found.alphas_cumprod)} noise levels, alphas_cumprod {first:.4g} to "
        f"{last:.4g}, predicts {found.prediction_type}, spacing {found.spacing}"
    )


def _examine_pair(encoder: Path, decoder: Path, image_size: int | None) -> Part:
    """Examines two original TAESD files; they are so small that they are read."""
    states = [tiny_autoencoder.read_state(path) for path in (encoder, decoder)]
    config, _ = tiny_autoencoder.from_state(*states)
    network = networks.of("tiny_autoencoder", config.to_dict(), image_size)
    dtypes = Counter(array.dtype.name for state in states for array in state.values())
    target = network.shapes()
    return _part("", "tiny_autoencoder", network, target, "original", dtypes, [])


def _part(
    folder: str,
    kind: str,
    network: networks.Network,
    target: Params,
    layout: str,
    dtypes: Mapping[str, int],
    problems: Sequence[str],
) -> Part:
    calls = tuple(
        Call(title, _count(network.module, method, target, inputs))
        for (title, method), inputs in network.calls.items()
    )
    return Part(
        folder,
        kind,
        network.words,
        layout,
        target,
        dict(dtypes),
        "",
        tuple(problems),
        calls,
    )


def _count(module: nn.Module, method: str, shapes: Params, inputs: Any) -> flops.Count:
    return flops.count(
        lambda params, *inputs: module.apply(
            {"params": params}, *inputs, method=method or None
        ),
        shapes,
        *inputs,
    )


def _kinds_of_file(path: Path) -> list[str]:
    shapes = weights.shapes(path)
    layout = layouts.detect(shapes)
    is_told = (path.parent / "config.json").is_file()
    lone = original_stable_diffusion.is_lone_autoencoder(shapes)
    if layout == "original" and not (lone and is_told):
        return list(original_stable_diffusion.configs(shapes))
    if layout == "openai":
        return ["clip"]
    if not is_told:
        raise UserError(
            f"{path} does not tell what it is; put the model's config.json beside it"
        )
    return [_kind_of_config(pretrained.load_config(path.parent), path.parent)]


def _kind_of_config(config: Mapping[str, Any], where: Path) -> str:
    """Tells a network by its class name; PyTorch's and Flax's are one."""
    known = {}
    for kind, layout in pretrained.KINDS.items():
        known[networks.class_name(layout.identity)] = kind
    known |= {
        "CLIPTextModelWithProjection": "text_encoder",
        "CLIPVisionModel": "image_encoder",
    }
    name = networks.class_name(config)
    if name not in known:
        raise UserError(
            f"{where} holds a {name or 'model without a class name'}; known are "
            f"{sorted(known)}"
        )
    return known[name]
