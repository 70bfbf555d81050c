"""Fresh parameters of any linen module, drawn on the host.

`module.init` compiles one random-number program per parameter shape: seconds to minutes
for a UNet. Here the shapes come from abstract evaluation and the values from numpy.
"""

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.types import Params, PRNGKey

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

# Standard deviation of a unit normal cut at two standard deviations.
_CUT_NORMAL_STD = 0.87962566103423978


def constant(value: float) -> Draw:
    """Returns a draw that fills with `value`."""
    return lambda rng, shape: np.full(shape, value, np.float32)


zeros, ones = constant(0.0), constant(1.0)


def normal(std: float) -> Draw:
    """Returns a draw from N(0, std^2)."""
    return lambda rng, shape: np.float32(std) * rng.standard_normal(shape, np.float32)


def lecun_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draws a kernel [..., out] with variance 1 / fan_in, cut at two deviations.

    The fan-in is the product of all axes but the last, as in flax's default.
    """
    values = rng.standard_normal(shape, np.float32)
    outside = np.abs(values) > 2
    while outside.any():
        values[outside] = rng.standard_normal(int(outside.sum()), np.float32)
        outside = np.abs(values) > 2
    fan_in = max(1, int(np.prod(shape[:-1])))
    return values * np.float32(1 / (_CUT_NORMAL_STD * np.sqrt(fan_in)))


_BY_NAME: dict[str, Draw] = {
    "kernel": lecun_normal,
    "bias": zeros,
    "scale": ones,
    # A table [rows, D] is drawn from N(0, 1 / D), flax's default.
    "embedding": lambda rng, shape: normal(1 / np.sqrt(shape[-1]))(rng, shape),
}


def parameters(
    module: nn.Module,
    key: PRNGKey,
    *inputs: Any,
    overrides: Mapping[str, Draw] | None = None,
    **keywords: Any,
) -> Params:
    """Draws the parameters `module.init` would create, without compiling anything.

    Every leaf has its own stream, seeded by `key` and the leaf's path: a leaf keeps its
    values when others come or go.

    Args:
      module: Any linen module whose only collection is "params".
      key: `jax.random.key`; must be concrete, so this is not for use inside `jit`.
      *inputs: Arrays or `jax.ShapeDtypeStruct`, as the module is called.
      overrides: Path pattern -> draw, first match wins, before the rule by leaf name
        (kernel, bias, scale, embedding). `{"conv_out/.*": zeros}` starts a UNet at
        noise_pred = 0.
      **keywords: Passed to `module.init` unchanged.

    Returns:
      Nested dict of float32 arrays on the host, as weights that are read: a mesh then
      gets each device's part, and no device holds a whole leaf that is split.

    Raises:
      UserError: a leaf has no rule, or an override matches no path.
    """
    shapes = jax.eval_shape(
        lambda key, *inputs: module.init(key, *inputs, **keywords),
        key,
        *inputs,
    )["params"]
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    overrides = dict(overrides or {})
    unused = set(overrides)
    leaves = {}
    for path, leaf in trees.flatten(shapes).items():
        pattern = next((p for p in overrides if re.fullmatch(p, path)), None)
        unused.discard(pattern)
        draw = overrides.get(pattern, _BY_NAME.get(path.rsplit("/", 1)[-1]))
        if draw is None:
            raise UserError(f"no rule to initialise {path!r}; pass one in `overrides`")
        rng = np.random.default_rng([*seed, zlib.crc32(path.encode())])
        leaves[path] = np.asarray(draw(rng, leaf.shape), leaf.dtype)
    if unused:
        raise UserError(f"overrides match no parameter path: {sorted(unused)}")
    return trees.unflatten(leaves)
