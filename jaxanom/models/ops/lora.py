"""Low-rank updates of frozen kernels (arXiv 2106.09685), as trees.

The UNet stays unaware: `merge` returns a tree of the UNet's own shape.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.types import Params, PRNGKey

ATTENTION = r".*/attn[12]/(to_q|to_k|to_v|to_out_0)/kernel"


def init(params: Params, rank: int, key: PRNGKey, pattern: str = ATTENTION) -> Params:
    """Makes an update that is zero at the start: `up` is zero, `down` is Gaussian.

    Args:
      params: Nested dict; kernels [D_in, D_out] that match `pattern` get an update.
      rank: Inner width R.
      key: Seeds the draw of `down`.
      pattern: Regular expression over the whole path "a/b/kernel".

    Returns:
      {path of the kernel: {"down": [D_in, R], "up": [R, D_out]}}.

    Raises:
      UserError: rank below 1, or no kernel matches.
    """
    if rank < 1:
        raise UserError(f"rank={rank}; set config.defect_generation.lora_rank >= 1")
    kernels = {
        path: leaf
        for path, leaf in trees.flatten(params).items()
        if re.fullmatch(pattern, path) and leaf.ndim == 2
    }
    if not kernels:
        raise UserError(f"no [D_in, D_out] kernel matches {pattern}")
    update: dict[str, Any] = {}
    for number, (path, leaf) in enumerate(sorted(kernels.items())):
        width_in, width_out = leaf.shape
        draw = jax.random.normal(jax.random.fold_in(key, number), (width_in, rank))
        update[f"{path}/down"] = draw / rank
        update[f"{path}/up"] = jnp.zeros((rank, width_out))
    return trees.unflatten(update)


def merge(params: Params, update: Params, scale: float = 1.0) -> Params:
    """Returns `params` with `kernel + scale * down @ up` where an update exists."""
    flat, changes = trees.flatten(params), trees.flatten(update)
    merged = dict(flat)
    for path in {name.rpartition("/")[0] for name in changes}:
        delta = changes[f"{path}/down"] @ changes[f"{path}/up"]
        merged[path] = flat[path] + scale * delta.astype(flat[path].dtype)
    return trees.unflatten(merged)
