"""Published weights in and out of our parameter trees.

The tree that is wanted drives the mapping: every leaf names the tensor it comes from
(`layouts` knows the names), so a tensor nobody asked for, a leaf nobody fills and a
shape that differs are all errors, found by shapes alone before a weight is read. Then
one tensor after the other is read, cast, turned into our order and placed.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxanom import record, trees
from jaxanom.errors import UserError
from jaxanom.models.checkpoints import weight_files
from jaxanom.models.checkpoints.formats import stored, weights
from jaxanom.models.checkpoints.formats.stored import Computed
from jaxanom.models.checkpoints.names import layouts
from jaxanom.models.checkpoints.names.layouts import Origin
from jaxanom.types import Params

KINDS = weight_files.KINDS
_SHOWN = weight_files.SHOWN


class Comparison(NamedTuple):
    """How the tensors of a file and the leaves of a tree fit; lines for a reader.

    Attributes:
      origins: {path in our tree: where it comes from}, for the leaves that fit.
      layout: One of `layouts.LAYOUTS`.
      unread: Tensors that nobody wants.
      missing: Leaves that nobody fills.
      doubled: Leaves that two tensors fill.
      differing: Leaves whose tensor has another shape.
    """

    origins: dict[str, Origin]
    layout: str
    unread: list[str]
    missing: list[str]
    doubled: list[str]
    differing: list[str]


def compare(
    shapes: Mapping[str, tuple[int, ...]],
    target: Params,
    kind: str,
    ignore: Sequence[str] = (),
) -> Comparison:
    """Compares the tensors of a file with the leaves of a tree, by names and shapes.

    Args:
      shapes: {name in the file: shape}.
      target, kind, ignore: As in `load_params`.
    """
    weight_files.kind_of(kind)
    leaves = {path: tuple(leaf.shape) for path, leaf in trees.flatten(target).items()}
    layout = layouts.detect(shapes)
    patterns = (*layouts.left_out(kind, layout, leaves), *ignore)
    skipped = [re.compile(pattern) for pattern in patterns]
    left = {
        name: shape
        for name, shape in shapes.items()
        if not any(pattern.fullmatch(name) for pattern in skipped)
    }
    fit, used = Comparison({}, layout, [], [], [], []), set()
    for path, choices in layouts.origins(leaves, kind, layout).items():
        names = dict.fromkeys(origin.name for origin in choices)
        there = [name for name in names if name in left]
        used.update(there)
        fitting = [
            origin for origin in choices if left.get(origin.name) == origin.shape
        ]
        if not there:
            line = f"{' or '.join(names)} {choices[0].shape} for {path}"
            fit.missing.append(line)
        elif len(there) > 1:
            fit.doubled.append(f"{' and '.join(there)} for {path}")
        elif not fitting:
            (name,) = there
            shape = next(origin.shape for origin in choices if origin.name == name)
            fit.differing.append(f"{name} is {left[name]}, {path} wants {shape}")
        else:
            fit.origins[path] = fitting[0]
    fit.unread.extend(f"{name} {left[name]}" for name in left if name not in used)
    return fit


def to_published(tree: Params, kind: str) -> dict[str, np.ndarray]:
    """Returns {published name: array} of our tree; `load_params` inverts it exactly.

    Args:
      tree: Nested dict of arrays, host or device.
      kind: A key of `KINDS`.
    """
    return {name: np.asarray(leaf) for name, leaf in _outward(tree, kind).items()}


def load_config(directory: Path, component: str = "") -> dict[str, Any]:
    """Reads `<directory>/<component>/config.json`.

    Args:
      directory: A saved pipeline, or with component "" a saved model.
      component: "unet", "vae", "text_encoder", ... or "".

    Raises:
      UserError: the file is missing or is not a JSON object.
    """
    folder = Path(directory) / component
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{path} is missing; wanted it and a .safetensors file in {folder}; "
            f"{weight_files.contents(folder)}"
        )
    config = record.read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} holds {type(config).__name__}, wanted a JSON object")
    return config


def load_params(
    directory_or_file: Path,
    kind: str,
    target: Params,
    dtype: Any = np.float32,
    ignore: Sequence[str] = (),
    place: Mapping[str, Any] | None = None,
    variant: str | None = None,
) -> dict[str, Any]:
    """Reads published weights into the shape of `target`, one tensor at a time.

    Host memory holds the result, where it stays on the host, and one tensor; the large
    ones come first, so that the peak is little above the result.

    Args:
      directory_or_file: The component's own directory (`<pipeline>/unet`), where the
        kind's usual file is looked for, single before sharded; or a weight file or
        index of any name.
      kind: A key of `KINDS`.
      target: Nested dict of anything with a shape, e.g. `networks.shapes` of a module.
      dtype: Floating leaves are cast to it; None keeps theirs.
      ignore: Regular expressions; tensors whose whole name matches one are left out on
        purpose (such as `vision_model.*` where only the text tower is wanted).
      place: Where each leaf goes as soon as it is read, a tree of shardings like
        `target` (`parallel.rules.shardings`); None leaves it on the host.
      variant: Such as "fp16" in the file's name.

    Returns:
      Nested dict of arrays, on the devices or of NumPy.

    Raises:
      UserError: no weight file, a damaged one, or one of another model.
    """
    path = weight_files.locate(Path(directory_or_file), kind, variant)
    tensors = weights.tensors(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        origins = match(shapes, target, kind, ignore)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    shardings = trees.flatten(place or {})
    if place and shardings.keys() != origins.keys():
        differing = sorted(shardings.keys() ^ origins.keys())
        raise UserError(f"place and target differ in {differing[:5]}")
    flat: dict[str, Any] = dict.fromkeys(origins)
    for leaf in sorted(origins, key=lambda leaf: -tensors[origins[leaf].name].nbytes):
        origin = origins[leaf]
        rows = stored.read(tensors[origin.name], origin.part)
        array = layouts.inward(weights.cast(rows, dtype, origin.name), origin)
        flat[leaf] = _on_devices(array, shardings[leaf]) if place else array
    return trees.unflatten(flat)


def save_component(
    directory: Path,
    component: str,
    config: Mapping[str, Any],
    tree: Params,
    kind: str,
    dtype: Any = None,
) -> None:
    """Writes config.json and weights as the published classes' `from_pretrained` reads.

    Args:
      directory: The pipeline's directory; the model's own if `component` is "".
      component: The folder below it.
      config: What config.json shall hold; the class name is added where it lacks one.
      tree: Our parameters, host or device; one leaf at a time is fetched.
      kind: A key of `KINDS`.
      dtype: float16 or bfloat16 for a smaller file; None keeps the tree's.

    Raises:
      UserError: a value that `dtype` cannot hold.
    """
    folder, layout = Path(directory) / component, weight_files.kind_of(kind)
    path = folder / f"{layout.stem}.safetensors"
    weights.write(path, _outward(tree, kind, dtype), {"format": "pt"})
    record.write_json(folder / "config.json", {**layout.identity, **config})


def match(
    shapes: Mapping[str, tuple[int, ...]],
    target: Params,
    kind: str,
    ignore: Sequence[str] = (),
) -> dict[str, Origin]:
    """Returns where each leaf comes from, once everything fits; see `compare`.

    Raises:
      UserError: lists tensors nobody wants, leaves nobody fills, leaves that two
        tensors fill, and shapes that differ, each with its shape.
    """
    fit = compare(shapes, target, kind, ignore)
    problems = {
        "in the weights but not in the model": fit.unread,
        "in the model but not in the weights": fit.missing,
        "twice in the weights": fit.doubled,
        "of another shape": fit.differing,
    }
    if any(problems.values()):
        listed = "".join(_listing(*problem) for problem in problems.items())
        raise UserError(
            f"the weights are not those of this {kind}; check that its config.json "
            f"belongs to them{listed}"
        )
    return fit.origins


def _on_devices(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """Copies each device's part there and waits, so that the host part can go."""
    leaf = jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.asarray(array[index])
    )
    return jax.block_until_ready(leaf)


def _outward(tree: Params, kind: str, dtype: Any = None) -> dict[str, Computed]:
    weight_files.kind_of(kind)
    return {
        layouts.published_names(path, kind)[0]: _outward_leaf(path, leaf, dtype)
        for path, leaf in trees.flatten(tree).items()
    }


def _outward_leaf(path: str, leaf: Any, dtype: Any) -> Computed:
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    axes = layouts.outward_axes(path, len(leaf.shape)) or range(len(leaf.shape))
    shape = tuple(leaf.shape[axis] for axis in axes)
    is_cast = dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)

    def make():
        turned = np.asarray(leaf).transpose(axes)
        return np.asarray(weights.cast(turned, dtype, path), order="C")

    return Computed(shape, jnp.dtype(dtype) if is_cast else leaf.dtype, make)


def _listing(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    lines = [f"\n{len(items)} {title}:", *(f"\n  {item}" for item in items[:_SHOWN])]
    if len(items) > _SHOWN:
        lines.append(f"\n  ... and {len(items) - _SHOWN} more")
    return "".join(lines)
