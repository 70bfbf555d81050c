"""What a checkpoint on disk is and needs, told from its configs and headers alone.

No weight is read, but those of TAESD's small original files; parameter trees and
operations are counted on abstract values.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
      folder: Where it lies in the checkpoint; "" for the checkpoint itself.
      kind: A key of `pretrained.KINDS`.
      architecture: What it is, in words.
      layout: Whose names its tensors have, see `layouts.LAYOUTS`.
      shapes: Its parameter tree.
      dtypes: {dtype in the file: number of tensors}.
      calls: What one forward takes, batch 1.
      assumed: What no tensor tells, see `sources.Source`.
      problems: Tensors and leaves that do not fit, one line each; empty if all do.
    """

    folder: str
    kind: str
    architecture: str
    layout: str
    shapes: Params
    dtypes: dict[str, int]
    calls: tuple[Call, ...]
    assumed: str = ""
    problems: tuple[str, ...] = ()

    @property
    def num_params(self) -> int:
        """Number of parameters of the network."""
        return trees.num_params(self.shapes)


def parts(name: str | Path) -> list[tuple[str, str]]:
    """Lists the networks of a checkpoint as (folder, kind).

    Args:
      name: Directory, file or hub name, see `sources.find`.

    Raises:
      UserError: there is no such checkpoint, or it holds no network known here.
    """
    path = sources.small_files(name, (*_FOLDERS, "."), [("config.json",)])
    if path.is_file():
        return [("", kind) for kind in _kinds_of_file(path)]
    folders = [name for name in _FOLDERS if (path / name / "config.json").is_file()]
    if folders:
        return [(folder, _kind_of(path / folder)) for folder in folders]
    if tiny_autoencoder.pair_of_files(path) is not None:
        return [("", "tiny_autoencoder")]
    return [("", _kind_of(path))]


def examine(
    name: str | Path,
    folder: str,
    kind: str,
    image_size: int | None = None,
    variant: str | None = None,
) -> Part:
    """Examines one network of a checkpoint.

    Args:
      name: As in `parts`.
      folder, kind: An entry of `parts`.
      image_size: Side in pixels of the images that operations are counted for; None
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
    network = source.network(kind, image_size)
    tensors = weights.tensors(weight_files.locate(source.weights, kind, variant))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    fit = pretrained.compare(shapes, network.shapes(), kind)
    used = {origin.name for origin in fit.origins.values()}
    part = _part(folder, kind, network, fit.layout, [tensors[x].dtype for x in used])
    problems = [
        *(f"not in the model: {line}" for line in fit.unread),
        *(f"not in the weights: {line}" for line in fit.missing),
        *(f"twice in the weights: {line}" for line in fit.doubled),
        *(f"of another shape: {line}" for line in fit.differing),
    ]
    return part._replace(assumed=source.assumed, problems=tuple(problems))


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
    noise = backbones.load_schedule(name)
    first, last = noise.alphas_cumprod[[0, -1]]
    return (
        f"{len(noise.alphas_cumprod)} noise levels, alphas_cumprod {first:.4g} to "
        f"{last:.4g}, predicts {noise.prediction_type}, spacing {noise.spacing}"
    )


def _examine_pair(encoder: Path, decoder: Path, image_size: int | None) -> Part:
    """Examines two original TAESD files; they are so small that they are read."""
    states = [tiny_autoencoder.read_state(path) for path in (encoder, decoder)]
    config, _ = tiny_autoencoder.from_state(*states)
    network = networks.of("tiny_autoencoder", config.to_dict(), image_size)
    dtypes = [array.dtype for state in states for array in state.values()]
    return _part("", "tiny_autoencoder", network, "original", dtypes)


def _part(
    folder: str,
    kind: str,
    network: networks.Network,
    layout: str,
    dtypes: Sequence[np.dtype],
) -> Part:
    shapes = network.shapes()
    calls = tuple(
        Call(
            title,
            flops.count(
                functools.partial(network.module.apply, method=method or None),
                {"params": shapes},
                *inputs,
            ),
        )
        for (title, method), inputs in network.calls.items()
    )
    names = Counter(dtype.name for dtype in dtypes)
    return Part(folder, kind, network.words, layout, shapes, dict(names), calls)


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
    return [_kind_of(path.parent)]


def _kind_of(folder: Path) -> str:
    """Tells a network by the class name in its config.json."""
    known = {
        networks.class_name(layout.identity): kind
        for kind, layout in pretrained.KINDS.items()
    } | {
        "CLIPTextModelWithProjection": "text_encoder",
        "CLIPVisionModel": "image_encoder",
    }
    name = networks.class_name(pretrained.load_config(folder))
    if name not in known:
        raise UserError(
            f"{folder} holds a {name or 'model without a class name'}; known are "
            f"{sorted(known)}"
        )
    return known[name]
