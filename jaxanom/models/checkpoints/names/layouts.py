"""Where each leaf of our trees lies in a file of weights.

| layout      | names                                     | written by               |
|-------------|-------------------------------------------|--------------------------|
| `published` | `mid_block.resnets.0.conv1.weight`        | diffusers, transformers  |
| `original`  | `model.diffusion_model.middle_block.0...` | latent-diffusion         |
| `openai`    | `visual.transformer.resblocks.0...`       | CLIP's authors, OpenCLIP |
| `flax`      | `mid_block/resnets_0/conv1/kernel`        | the Flax models          |

Published names are those of the PyTorch classes, our trees those of the libraries'
Flax classes:

| ours                      | published      | layout                   |
|---------------------------|----------------|--------------------------|
| `kernel` [I, O]           | `weight`       | transposed to [O, I]     |
| `kernel` [h, w, I, O]     | `weight`       | transposed to [O,I,h,w]  |
| `scale`, `embedding`      | `weight`       | same                     |
| `bias` and anything else  | same           | same                     |
| `resnets_0/`              | `resnets.0.`   |                          |
| VAE `query/`, `key/`, ... | `to_q.`, ...   | older files: `query.`    |
"""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from jaxanom.errors import UserError
from jaxanom.models.checkpoints.names import openai_clip, original_stable_diffusion

LAYOUTS = ("published", "original", "openai", "flax")

# Module lists of the PyTorch classes. Other trailing numbers (`linear_1`, `conv1`) are
# part of a name.
_INDEXED = re.compile(
    "(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers"
    r"|transformer_blocks|to_out|net)_(\d+)"
)
_INDEXED_TINY = re.compile(r"(layers|conv|pool)_(\d+)")
_VAE_ATTENTION = dict(query="to_q", key="to_k", value="to_v", proj_attn="to_out.0")
# From transformers 5.6 on, a tower on its own lacks the level that names it in a CLIP.
_LONE_TOWERS = {"text_encoder": "text_model.", "image_encoder": "vision_model."}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# Buffers that older transformers wrote among the weights; they hold 0, 1, 2, ...
_BUFFERS = (r"(.*\.)?position_ids",)


class Origin(NamedTuple):
    """Where one leaf comes from.

    Attributes:
      name: The tensor in the file.
      shape: That tensor's shape.
      part: (i, n), the i-th of n equal runs of its rows.
      axes: The stored axes in our order; None where they agree.
    """

    name: str
    shape: tuple[int, ...]
    part: tuple[int, int] = (0, 1)
    axes: tuple[int, ...] | None = None


def detect(names: Collection[str]) -> str:
    """Returns the layout that a file's tensor names are in."""
    if any("/" in name for name in names):
        return "flax"
    if original_stable_diffusion.recognises(names):
        return "original"
    if openai_clip.recognises(names):
        return "openai"
    return "published"


def origins(
    leaves: Mapping[str, tuple[int, ...]], kind: str, layout: str
) -> dict[str, list[Origin]]:
    """Lists, for each leaf, the tensors that may hold it; the one we write comes first.

    Args:
      leaves: {path in our tree: shape}, of the whole tree.
      kind: A key of `pretrained.KINDS`.
      layout: One of `LAYOUTS`.
    """
    if layout == "flax":
        return {path: [Origin(path, shape)] for path, shape in leaves.items()}
    published = {path: _published(path, shape, kind) for path, shape in leaves.items()}
    if layout == "published":
        return published
    first = {path: choices[0] for path, choices in published.items()}
    if layout == "openai":
        return {path: [_openai(origin)] for path, origin in first.items()}
    renamed = original_stable_diffusion.names(
        [origin.name for origin in first.values()], kind
    )
    if kind == "text_encoder":
        forms = (
            (original_stable_diffusion.TEXT, lambda origin: origin),
            (original_stable_diffusion.OPEN_TEXT, _openai),
        )
        return {
            path: [
                form(origin)._replace(name=prefix + form(origin).name)
                for prefix, form in forms
            ]
            for path, origin in first.items()
        }
    return {
        path: [
            variant._replace(name=prefix + renamed[first[path].name])
            for prefix in original_stable_diffusion.prefixes(kind)
            for variant in _with_pointwise(choices)
        ]
        for path, choices in published.items()
    }


def left_out(kind: str, layout: str, leaves: Collection[str]) -> list[str]:
    """Returns patterns of tensors that a file of this layout holds for other purposes.

    Args:
      kind, layout: As in `origins`.
      leaves: Paths of our tree.
    """
    patterns = list(_BUFFERS)
    if layout == "openai":
        patterns += openai_clip.left_out(kind)
    if layout == "original":
        patterns += original_stable_diffusion.left_out(kind, leaves)
    return patterns


def published_names(path: str, kind: str) -> tuple[str, ...]:
    """Returns the published names of one of our leaves, the one we write first.

    Args:
      path: "a/b/c" in our tree.
      kind: A key of `pretrained.KINDS`.
    """
    *modules, leaf = path.split("/")
    leaf = _LEAVES.get(leaf, leaf)
    indexed = _INDEXED_TINY if kind == "tiny_autoencoder" else _INDEXED
    modules = [indexed.sub(r"\1.\2", module) for module in modules]
    older = ".".join([*modules, leaf])
    around, inside = ("", "", *modules)[-2:]
    if kind == "vae" and around.startswith("attentions.") and inside in _VAE_ATTENTION:
        return ".".join([*modules[:-1], _VAE_ATTENTION[inside], leaf]), older
    tower = _LONE_TOWERS.get(kind, "/")
    if older.startswith(tower):
        return older, older.removeprefix(tower)
    return (older,)


def outward_axes(path: str, num_axes: int) -> tuple[int, ...] | None:
    """Returns our leaf's axes in published order, or None where they agree."""
    if not path.endswith("/kernel"):
        return None
    if num_axes == 2:
        return (1, 0)
    if num_axes == 4:
        return (3, 2, 0, 1)
    raise UserError(f"{path} has {num_axes} axes; wanted a kernel with 2 or 4")


def inward(array: np.ndarray, origin: Origin) -> np.ndarray:
    """Brings a stored array (the part that was read) into our shape and order."""
    if origin.axes is None:
        return array
    if len(origin.axes) < array.ndim:
        array = array.reshape(array.shape[: len(origin.axes)])
    return np.asarray(array.transpose(origin.axes), order="C")


def _published(path: str, shape: tuple[int, ...], kind: str) -> list[Origin]:
    axes = outward_axes(path, len(shape))
    inverse = None
    if axes is not None:
        shape = tuple(shape[axis] for axis in axes)
        inverse = tuple(int(axis) for axis in np.argsort(axes))
    names = published_names(path, kind)
    choices = [Origin(name, shape, axes=inverse) for name in names]
    return _with_pointwise(choices) if kind == "vae" else choices


def _with_pointwise(choices: list[Origin]) -> list[Origin]:
    """Adds the form in which old autoencoders' attention was a 1x1 convolution."""
    return [
        variant
        for origin in choices
        for variant in (origin, origin._replace(shape=(*origin.shape, 1, 1)))
        if variant is origin or (origin.axes == (1, 0) and "attentions" in origin.name)
    ]


def _openai(origin: Origin) -> Origin:
    place, shape = openai_clip.place(origin.name), origin.shape
    if place.input_first:
        return Origin(place.name, shape[::-1])
    if shape:
        shape = (place.part[1] * shape[0], *shape[1:])
    return Origin(place.name, shape, place.part, origin.axes)
