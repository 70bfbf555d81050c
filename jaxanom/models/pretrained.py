"""Published weights of diffusers and transformers, and our parameter trees.

Published names are those of the PyTorch classes (`mid_block.resnets.0.conv1.weight`),
our trees those of the libraries' Flax classes (`mid_block/resnets_0/conv1/kernel`). The
tree that is wanted drives the mapping: every leaf names the tensor it comes from, so a
tensor nobody asked for, a leaf nobody fills and a shape that differs are all errors.

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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxanom import record, trees
from jaxanom.models import weights
from jaxanom.types import Params


class Kind(NamedTuple):
    """One published class: how its directory is laid out.

    Attributes:
      stem: the weight file's name without `.safetensors`.
      identity: what config.json must say for the class to be found; a config that
        says otherwise keeps its own words.
    """

    stem: str
    identity: dict[str, Any]


KINDS = {
    "unet": Kind("diffusion_pytorch_model", {"_class_name": "UNet2DConditionModel"}),
    "vae": Kind("diffusion_pytorch_model", {"_class_name": "AutoencoderKL"}),
    "clip": Kind("model", {"model_type": "clip", "architectures": ["CLIPModel"]}),
    "text_encoder": Kind(
        "model", {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}
    ),
    "image_encoder": Kind(
        "model",
        {
            "model_type": "clip_vision_model",
            "architectures": ["CLIPVisionModelWithProjection"],
        },
    ),
}

# Module lists of the PyTorch classes. Other trailing numbers (`linear_1`, `conv1`) are
# part of a name.
_INDEXED = re.compile(
    "(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers"
    r"|transformer_blocks|to_out|net)_(\d+)"
)
_VAE_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# Buffers that older transformers wrote among the weights; they hold 0, 1, 2, ...
_BUFFERS = (r"(.*\.)?position_ids",)
_CONFIG_NAMES = {"scheduler": "scheduler_config.json"}
_SHOWN = 20


def published_names(path: str, kind: str) -> tuple[str, ...]:
    """Returns the published names of one of our leaves, the one we write first.

    Args:
      path: "a/b/c" in our tree.
      kind: a key of `KINDS`.
    """
    *modules, leaf = path.split("/")
    leaf = _LEAVES.get(leaf, leaf)
    modules = [_INDEXED.sub(r"\1.\2", module) for module in modules]
    older = ".".join([*modules, leaf])
    in_attention = len(modules) > 1 and modules[-2].startswith("attentions.")
    if kind == "vae" and in_attention and modules[-1] in _VAE_ATTENTION:
        modules[-1] = _VAE_ATTENTION[modules[-1]]
        return ".".join([*modules, leaf]), older
    return (older,)


def from_published(
    published: Mapping[str, Any],
    target: Params,
    kind: str,
    dtype: Any = np.float32,
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Builds our tree from tensors under published names.

    Args:
      published: {name: array}.
      target: nested dict of anything with a shape, e.g. `jax.eval_shape` of our init.
      kind: a key of `KINDS`.
      dtype: floating leaves are cast to it; None keeps theirs.
      ignore: regular expressions; tensors whose whole name matches one are left out on
        purpose (such as `vision_model.*` where only the text tower is wanted).

    Returns:
      Nested dict of NumPy arrays, with the paths and shapes of `target`.

    Raises:
      ValueError: names or shapes do not match; the message lists them.
    """
    shapes = {name: tuple(np.shape(value)) for name, value in published.items()}
    paths = plan(shapes, target, kind, ignore)
    return _assemble(published.items(), paths, dtype)


def to_published(tree: Params, kind: str) -> dict[str, np.ndarray]:
    """Returns {published name: array} of our tree; `from_published` inverts it exactly.

    Args:
      tree: nested dict of arrays, host or device.
      kind: a key of `KINDS`.
    """
    _kind(kind)
    return {
        published_names(path, kind)[0]: _outward(path, np.asarray(leaf))
        for path, leaf in trees.flatten(tree).items()
    }


def plan(
    shapes: Mapping[str, tuple[int, ...]],
    target: Params,
    kind: str,
    ignore: Sequence[str] = (),
) -> dict[str, str]:
    """Returns {published name: path in our tree}, once everything matches.

    Works on shapes alone, so a wrong file is refused before any weight is read.

    Args:
      shapes: {published name: shape}.
      target, kind, ignore: as in `from_published`.

    Raises:
      ValueError: lists tensors nobody wants, leaves nobody fills, leaves that two
        tensors fill, and shapes that differ, each with its shape.
    """
    _kind(kind)
    skipped = [re.compile(pattern) for pattern in (*_BUFFERS, *ignore)]
    left = {
        name: shape
        for name, shape in shapes.items()
        if not any(pattern.fullmatch(name) for pattern in skipped)
    }
    paths, missing, doubled, differing = {}, [], [], []
    for path, leaf in trees.flatten(target).items():
        wanted = _outward_shape(path, tuple(leaf.shape))
        names = published_names(path, kind)
        found = [name for name in names if name in left]
        if not found:
            missing.append(f"{' or '.join(names)} {wanted} for {path}")
        elif len(found) > 1:
            doubled.append(f"{' and '.join(found)} for {path}")
        elif left[found[0]] != wanted:
            differing.append(f"{found[0]} is {left[found[0]]}, {path} wants {wanted}")
        paths |= dict.fromkeys(found, path)
    unread = [f"{name} {left[name]}" for name in left if name not in paths]
    problems = {
        "in the weights but not in the model": unread,
        "in the model but not in the weights": missing,
        "twice in the weights": doubled,
        "of another shape": differing,
    }
    if any(problems.values()):
        listed = "".join(_listing(*problem) for problem in problems.items())
        raise ValueError(
            f"the weights are not those of this {kind}; check that its config.json "
            f"belongs to them{listed}"
        )
    return paths


def load_config(directory: Path, component: str = "") -> dict[str, Any]:
    """Reads `<directory>/<component>/config.json`.

    Args:
      directory: a saved pipeline, or with component "" a saved model.
      component: "unet", "vae", "text_encoder", ... or ""; the file of "scheduler" is
        `scheduler_config.json`.

    Raises:
      ValueError: the file is missing or is not a JSON object.
    """
    folder = Path(directory) / component
    path = folder / _CONFIG_NAMES.get(component, "config.json")
    if not path.is_file():
        weight_file = "" if component in _CONFIG_NAMES else " and a .safetensors file"
        raise ValueError(
            f"{path} is missing; wanted {path.name}{weight_file} in {folder}; "
            f"{_contents(folder)}"
        )
    config = record.read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {type(config).__name__}, wanted a JSON object")
    return config


def load_params(
    directory_or_file: Path,
    kind: str,
    target: Params,
    dtype: Any = np.float32,
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Reads published weights into the shape of `target`, one tensor at a time.

    Args:
      directory_or_file: the component's own directory (`<pipeline>/unet`), where the
        kind's usual file is looked for, single before sharded; or a weight file or
        index of any name.
      kind, target, dtype, ignore: as in `from_published`.

    Returns:
      Nested dict of NumPy arrays on the host, for the caller to place.

    Raises:
      ValueError: no weight file, a damaged one, or one of another model.
    """
    path = _weight_file(Path(directory_or_file), kind)
    shapes = weights.shapes(path)
    try:
        paths = plan(shapes, target, kind, ignore)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _assemble(weights.stream(path), paths, dtype)


def save_component(
    directory: Path,
    component: str,
    config: Mapping[str, Any],
    tree: Params,
    kind: str,
    dtype: Any = None,
) -> None:
    """Writes config.json and weights as the PyTorch classes' `from_pretrained` reads.

    Args:
      directory: the pipeline's directory; the model's own if `component` is "".
      component: the folder below it.
      config: what config.json shall hold; the class name is added where it lacks one.
      tree: our parameters.
      kind: a key of `KINDS`.
      dtype: float16 or bfloat16 for a smaller file; None keeps the tree's.
    """
    folder = Path(directory) / component
    layout = _kind(kind)
    path = folder / f"{layout.stem}.safetensors"
    weights.write(path, to_published(tree, kind), dtype, metadata={"format": "pt"})
    record.write_json(folder / "config.json", {**layout.identity, **config})


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; wanted one of {sorted(KINDS)}")
    return KINDS[kind]


def _permutation(path: str, num_axes: int) -> tuple[int, ...] | None:
    """Axes of our leaf in published order, or None where the layouts agree."""
    if not path.endswith("/kernel"):
        return None
    if num_axes == 2:
        return (1, 0)
    if num_axes == 4:
        return (3, 2, 0, 1)
    raise ValueError(f"{path} has {num_axes} axes; wanted a kernel with 2 or 4")


def _outward(path: str, array: np.ndarray) -> np.ndarray:
    axes = _permutation(path, array.ndim)
    return array if axes is None else np.asarray(array.transpose(axes), order="C")


def _outward_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = _permutation(path, len(shape))
    return shape if axes is None else tuple(shape[axis] for axis in axes)


def _inward(path: str, array: np.ndarray) -> np.ndarray:
    axes = _permutation(path, array.ndim)
    if axes is None:
        return array
    return np.asarray(array.transpose(np.argsort(axes)), order="C")


def _assemble(
    tensors: Iterable[tuple[str, Any]], paths: Mapping[str, str], dtype: Any
) -> dict[str, Any]:
    flat = {}
    for name, value in tensors:
        if name in paths:
            array = weights.cast(np.asarray(value), dtype, name)
            flat[paths[name]] = _inward(paths[name], array)
    return trees.unflatten(flat)


def _weight_file(path: Path, kind: str) -> Path:
    """Finds the weight file of a component directory; a file stands for itself."""
    stem = _kind(kind).stem
    if path.is_file():
        return path
    single = path / f"{stem}.safetensors"
    index = path / f"{stem}.safetensors{weights.INDEX_SUFFIX}"
    for candidate in (single, index):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"{path} holds no {kind} weights; wanted {single.name} or {index.name} there, "
        f"or the path of a weight file; {_contents(path)}"
    )


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a directory"
    names = sorted(entry.name for entry in folder.iterdir())
    return f"it holds {names[:_SHOWN] if names else 'nothing'}"


def _listing(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    shown = [f"\n  {item}" for item in items[:_SHOWN]]
    more = [f"\n  ... and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return "".join([f"\n{len(items)} {title}:", *shown, *more])
