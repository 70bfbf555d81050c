"""Floating-point operations of a function, counted on its jaxpr without running it.

A matrix product or convolution of n multiply-adds counts 2 n, as in the published
figures of networks. Two conventions differ between counters; here

* multiplications with a convolution's zero padding count (as PyTorch's counters do);
* zeros between the inputs of a strided convolution's gradient do not, so that the
  gradient of either argument costs what the forward pass costs.

The compiler's own count (`cost_analysis`) takes the body of a loop once; this one takes
it as often as it runs.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

# Primitives that move, compare or relabel values: no arithmetic.
_MOVES = frozenset(
    "argmax argmin and bitcast_convert_type broadcast_in_dim concatenate "
    "convert_element_type copy copy_p device_put dynamic_slice dynamic_update_slice "
    "eq expand_dims gather ge gt iota is_finite le lt ne not optimization_barrier or "
    "pad random_bits random_fold_in random_seed random_split random_unwrap random_wrap "
    "reduce_and reduce_or reduce_precision reshape rev scatter select_n "
    "sharding_constraint slice sort split squeeze stop_gradient transpose xor".split()
)


class Count(NamedTuple):
    """What a function computes.

    Attributes:
      matmul: 2 x multiply-adds of all `dot_general`.
      convolution: The same of all `conv_general_dilated`.
      other: One per value of the largest operand or result of any other arithmetic,
        transcendentals too. A rough figure, not part of `total`.
      unknown: What could not be counted in full, each named: a `while` whose number of
        turns depends on values counts as one turn; what calls several programs, or a
        kernel on a grid of a size known only when it runs, as nothing.
    """

    matmul: int = 0
    convolution: int = 0
    other: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Matrix products and convolutions: the number that papers quote."""
        return self.matmul + self.convolution


def count(function: Callable[..., Any], *args: Any, **keywords: Any) -> Count:
    """Counts one call.

    Args:
      function: Jittable; a jitted one counts the same.
      *args, **keywords: What it is called with; arrays may be `jax.ShapeDtypeStruct`,
        as nothing is computed and no array is made.

    Returns:
      The whole call over all devices, if the function is sharded by the compiler; of
      `shard_map` likewise (the part of one device times their number). Of the branches
      of a `cond`, the dearest.
    """
    traced = jax.make_jaxpr(lambda a, k: function(*a, **k))(args, keywords)
    return count_jaxpr(traced.jaxpr)


def count_jaxpr(jaxpr: Any) -> Count:
    """Counts a jaxpr, those inside of it included."""
    sums: Counter[str] = Counter()
    unknown: list[str] = []
    for equation in jaxpr.eqns:
        *counts, names = _equation(equation)
        sums.update(dict(zip(Count._fields, counts, strict=False)))
        unknown += [name for name in names if name not in unknown]
    return Count(**sums, unknown=tuple(unknown))


def _equation(equation: Any) -> Count:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return Count(matmul=_dot_general(equation))
    if name == "conv_general_dilated":
        return Count(convolution=_convolution(equation))
    if name == "scan":
        return _times(count_jaxpr(params["jaxpr"].jaxpr), params["length"])
    if name == "while":
        turn = count_jaxpr(params["body_jaxpr"].jaxpr)
        if not (turn.total or turn.other or turn.unknown):
            return turn
        return turn._replace(
            unknown=(*turn.unknown, "while: turns depend on values, counted as one")
        )
    if name == "cond":
        branches = [count_jaxpr(branch.jaxpr) for branch in params["branches"]]
        return max(branches, key=lambda branch: (branch.total, branch.other))
    if name == "shard_map":
        return _times(count_jaxpr(params["jaxpr"]), params["mesh"].size)
    if name == "pallas_call":  # its body at every point of its grid
        grid = params["grid_mapping"].grid
        if not all(isinstance(size, int) for size in grid):
            return Count(unknown=("pallas_call: not counted",))
        return _times(count_jaxpr(params["jaxpr"]), math.prod(grid))
    inner = list(_jaxprs(params))
    if len(inner) > 1:
        return Count(unknown=(f"{name}: not counted",))
    if inner:  # jit, remat, custom_jvp_call, custom_vjp_call, ...
        return count_jaxpr(inner[0])
    if name in _MOVES:
        return Count()
    return Count(other=max(map(_size, (*equation.invars, *equation.outvars))))


def _times(count: Count, times: int) -> Count:
    return Count(*(times * value for value in count[:3]), unknown=count.unknown)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _size(variable: Any) -> int:
    return math.prod(getattr(variable.aval, "shape", ()))


def _dot_general(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * depth * _size(equation.outvars[0])


def _convolution(equation: Any) -> int:
    """Every output value takes one window of the kernel, per group of channels."""
    params = equation.params
    kernel = equation.invars[1].aval.shape
    out_axis = params["dimension_numbers"].rhs_spec[0]
    window = math.prod(kernel) // kernel[out_axis]  # inputs per group x its extent
    between = math.prod(params["lhs_dilation"])
    return 2 * window * _size(equation.outvars[0]) // between
