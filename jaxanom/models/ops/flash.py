"""Attention for TPUs that never writes the attention matrix (arXiv 2205.14135).

The kernel is jax's own, `jax.experimental.pallas.ops.tpu.flash_attention`. The compiler
cannot split it over devices, so that is done by examples and heads, with all positions
on each; and `vmap` adds examples, which are split like any other.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp

from jaxanom.parallel import kernels
from jaxanom.types import Array

TILE = 128
"""Positions are padded to a multiple of this, the lanes of a TPU's registers."""

BLOCK, WIDE_BLOCK = 512, 256
"""Positions of queries and of keys that a step of the kernel holds, at most; the second
for heads wider than `TILE`, so that a step fits the 16 MiB of a v5e's fast memory."""


@jax.custom_vjp
def attend(query: Array, key: Array, value: Array) -> Array:
    """softmax(q k^T / sqrt(D)) v, block by block; reverse mode only.

    The backward pass runs the forward kernel again: of what that could keep for it only
    the inputs are kept.

    Args:
      query: [B, Sq, H, D], D up to 128 or a multiple of it.
      key, value: [B, Sk, H, D].

    Returns:
      [B, Sq, H, D] in the dtype of `query`.
    """
    return _forward(query, key, value)


attend.defvjp(
    lambda *inputs: (_forward(*inputs), inputs),
    lambda inputs, out_bar: tuple(_backward(*inputs, out_bar)),
)


def _on_one_device(query: Array, key: Array, value: Array) -> Array:
    """The kernel on the examples and heads of one device."""
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    num_query, num_key = query.shape[1], key.shape[1]
    query, key, value = (
        _padded(array.transpose(0, 2, 1, 3)) for array in (query, key, value)
    )  # [B, H, S', D]
    segments = None
    if num_key != key.shape[2]:  # padding is another segment: nobody looks there
        segments = kernel.SegmentIds(
            _is_padding(query, num_query), _is_padding(key, num_key)
        )
    # The kernel's compiler refuses more precision than narrow inputs have.
    wide = query.dtype == jnp.float32
    with contextlib.nullcontext() if wide else jax.default_matmul_precision("default"):
        out = kernel.flash_attention(
            query,
            key,
            value,
            segment_ids=segments,
            sm_scale=query.shape[-1] ** -0.5,
            block_sizes=_blocks(query.shape[2], key.shape[2], query.shape[3]),
        )
    return out[:, :, :num_query].transpose(0, 2, 1, 3)


def _gradients_on_one_device(*arrays: Array) -> tuple[Array, ...]:
    *inputs, out_bar = arrays
    return jax.vjp(_on_one_device, *inputs)[1](out_bar)


def _padded(array: Array) -> Array:
    """[B, H, S, D] -> [B, H, S', D], zeros after S up to a multiple of `TILE`."""
    return jnp.pad(array, ((0, 0), (0, 0), (0, -array.shape[2] % TILE), (0, 0)))


def _is_padding(padded: Array, size: int) -> Array:
    """[B, H, S', D] -> int32 [B, S'], 1 from position `size` on."""
    batch, _, positions, _ = padded.shape
    rows = (jnp.arange(positions) >= size).astype(jnp.int32)
    return jnp.broadcast_to(rows, (batch, positions))


def _blocks(num_query: int, num_key: int, width: int) -> Any:
    """Returns the largest blocks that divide both lengths evenly."""
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    most = BLOCK if width <= TILE else WIDE_BLOCK
    rows, columns = (
        max(n for n in range(TILE, most + 1, TILE) if size % n == 0)
        for size in (num_query, num_key)
    )
    of_rows = ("q", "q_major_dkv", "q_dkv", "q_dq")
    of_columns = ("k_major", "k", "k_major_dkv", "k_dkv", "k_major_dq", "k_dq")
    return kernel.BlockSizes(
        block_b=1,
        **{f"block_{name}": rows for name in of_rows},
        **{f"block_{name}": columns for name in of_columns},
    )


def _under_vmap(function: Any) -> Any:
    """Returns the function, whose `vmap` makes more examples of what it maps over."""

    @jax.custom_batching.custom_vmap
    def batched(*arrays):
        return function(*arrays)

    @batched.def_vmap
    def more_examples(axis_size, is_mapped, *arrays):
        arrays = [
            array if mapped else jnp.broadcast_to(array, (axis_size, *array.shape))
            for array, mapped in zip(arrays, is_mapped, strict=True)
        ]
        rows = arrays[0].shape[1]
        out = batched(*(array.reshape(-1, *array.shape[2:]) for array in arrays))
        out = jax.tree.map(lambda x: x.reshape(axis_size, rows, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return batched


# Tokens that `vmap` runs side by side are split over particles; see `_under_vmap`.
_forward, _backward = (
    _under_vmap(kernels.over_devices(function, kernels.EXAMPLES_OF_PARTICLES))
    for function in (_on_one_device, _gradients_on_one_device)
)
