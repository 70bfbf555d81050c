"""Parameters under the names of the released checkpoints, and our tree.

| released                                        | ours                              |
|-------------------------------------------------|-----------------------------------|
| `prompt_context`, `prompt_state_(ab)normal`     | `prompts/...`                     |
| `temperature_pixel`, `temperature_image`        | `temperatures/...`                |
| `context_encoder.weight_mean.module.{0,2,4}`    | `context_encoder/mean/layers_{i}` |
| `context_encoder.weight_log_variance.module`    | `context_encoder/spread`          |
| `PFL_context.amor_u` ...                        | `context_flow/u` ...              |
| `PFL_normal.amor_u` [1, K, D, 1], `state`       | `normal_flow/u` [K, D], `state`   |
| `RCA.q_proj_pre` [D, D, 1]                      | `attention/query`                 |
| `RCA.linear_proj.{l}` [D, V], one per layer     | `attention/projections` [S, V, D] |
| `fuse.fuse_modules`, `.compress`, `.post_process` | `fuse/project`, `weigh`, `out`  |

Linear weights [out, in] are our kernels [in, out], transposed. The decoders and `p_mu`
belong to a reconstruction that the released objective throws away; they are read only
where our tree has them.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats import weights
from jaxanom.types import Params

UNUSED = (
    r"(context|state)_decoder\..*",
    r"PFL_(context|normal|abnormal)\.p_mu\..*",
)
"""What a released checkpoint holds beyond the objective."""

_LAYERS = "attention/projections"
_PARTS = (
    (r"prompts/context", "prompt_context"),
    (r"prompts/(normal|abnormal)", r"prompt_state_\1"),
    (r"temperatures/(pixel|image)", r"temperature_\1"),
    (r"(context|state)_encoder/mean", r"\1_encoder.weight_mean.module"),
    (r"(context|state)_encoder/spread", r"\1_encoder.weight_log_variance.module"),
    (r"context_decoder", "context_decoder.weight_mean.module"),
    (r"context_flow_out", "PFL_context.p_mu.0"),
    (r"context_flow/(u|w|b)", r"PFL_context.amor_\1"),
    (r"(normal|abnormal)_flow/(u|w|b)", r"PFL_\1.amor_\2"),
    (r"(normal|abnormal)_flow/state", r"PFL_\1.state"),
    (r"attention/query", "RCA.q_proj_pre"),
    (r"fuse/project", "fuse.fuse_modules"),
    (r"fuse/weigh", "fuse.compress"),
    (r"fuse/out", "fuse.post_process"),
    (r"(class_mapping|image_mapping)", r"\1"),
)


def read(path: Path, target: Params) -> Params:
    """Reads a released checkpoint file, running nothing that it holds.

    Raises:
      UserError: No such file, more in it than tensors, or what `from_released` says.
    """
    try:
        return from_released(weights.read(path), target)
    except ValueError as error:
        raise UserError(f"config.bayes_pfl.checkpoint={path}: {error}") from error


def from_released(tensors: Mapping[str, np.ndarray], target: Params) -> Params:
    """Builds our parameters from a released checkpoint.

    Args:
      tensors: Arrays by released name.
      target: Our tree, arrays or shapes; it drives the mapping.

    Returns:
      Nested dict of float32 numpy arrays.

    Raises:
      UserError: Tensors that are missing, left over, or of another shape; all are
        named.
    """
    left, problems, leaves = set(tensors), [], {}
    for path, leaf in trees.flatten(target).items():
        names = released_names(path, leaf.shape)
        absent = [name for name in names if name not in tensors]
        left -= set(names)
        if absent:
            problems.append(f"{absent} missing, for {path}")
            continue
        values = [_inward(path, np.asarray(tensors[name])) for name in names]
        value = np.stack(values) if path == _LAYERS else values[0]
        value = value.reshape(leaf.shape) if value.size == 1 else value
        if value.shape != tuple(leaf.shape):
            problems.append(f"{names[0]} gives {value.shape}, wanted {leaf.shape}")
        leaves[path] = value.astype(np.float32)
    left = [n for n in left if not any(re.fullmatch(p, n) for p in UNUSED)]
    problems += [f"{name} is of no use" for name in sorted(left)]
    if problems:
        raise UserError(
            "the checkpoint is not of this model; config.bayes_pfl decides its sizes: "
            + "; ".join(problems[:8])
        )
    return trees.unflatten(leaves)


def released_names(path: str, shape: tuple[int, ...]) -> list[str]:
    """Returns the released names behind one of our leaves; several for `projections`.

    Raises:
      UserError: the path is not of this model.
    """
    if path == _LAYERS:
        return [f"RCA.linear_proj.{layer}.weight" for layer in range(shape[0])]
    stem, _, last = path.rpartition("/")
    is_linear = last in ("kernel", "bias")
    stem, ending = (stem, "") if is_linear else (path, "")
    if is_linear:
        ending = ".weight" if last == "kernel" else ".bias"
        layer = re.fullmatch(r"(.*)/layers_(\d)", stem)
        if layer:  # softplus takes the odd places of their list
            stem, ending = layer[1], f".{2 * int(layer[2])}{ending}"
    for pattern, name in _PARTS:
        if match := re.fullmatch(pattern, stem):
            return [match.expand(name) + ending]
    raise UserError(f"{path} has no name in released checkpoints")


def _inward(path: str, array: np.ndarray) -> np.ndarray:
    if path == "attention/query/kernel":
        array = array[:, :, 0]
    if path.endswith("/kernel") or path == _LAYERS:
        return array.T
    if re.fullmatch(r"(normal|abnormal)_flow/.*", path):
        return array.reshape([size for size in array.shape if size > 1])
    return array
