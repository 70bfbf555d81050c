"""Dot-product attention in the form that suits the machine and the shapes.

All forms compute softmax(q k^T / sqrt(D) + bias) v with the softmax in float32:

* "matmul": batched matrix products; best for short sequences, and the only one that
  takes a bias.
* "lean": CPU; one head at a time, a long one in blocks of rows, with a hand-written
  backward pass; several times faster than "matmul" once the attention matrix leaves the
  cache. Reverse mode only.
* "cudnn": NVIDIA GPUs; the fused attention of cuDNN, bfloat16 or float16 only.
* "flash": TPUs; `models.flash`. Reverse mode only.

The last two never write the attention matrix. Their speed was not measured.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxanom.errors import UserError
from jaxanom.models.ops import flash
from jaxanom.parallel import kernels
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array

Implementation = Literal["matmul", "lean", "cudnn", "flash"]

LEAN_MIN_SIZE, LEAN_MIN_SIDE = 2**15, 64
"""Sq * Sk, and the lesser of both, from which a CPU does "lean" as fast as "matmul"."""

CUDNN_MIN_SIDE, FLASH_MIN_SIDE = 256, 1024
"""The lesser of Sq and Sk from which a GPU does "cudnn", a TPU "flash"; a guess."""

BLOCK_SIZE = 2**20
"""Entries of the attention matrix that "lean" holds at a time; 4 MB, near the cache."""


def dot_product(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    implementation: Implementation | None = None,
) -> Array:
    """Attends: softmax(q k^T / sqrt(D) + bias) v (arXiv 1706.03762, eq. 1).

    Args:
      query: [B, Sq, H, D].
      key, value: [B, Sk, H, D].
      bias: [B or 1, H or 1, Sq or 1, Sk], added to the logits; None for none.
      implementation: One of the forms of this file; None lets `choose` pick.

    Returns:
      [B, Sq, H, D] in the dtype of `query`.

    Raises:
      UserError: unknown implementation, or another than "matmul" together with a bias.
    """
    chex.assert_rank([query, key, value], 4)
    chex.assert_equal_shape([key, value])
    chex.assert_equal_shape([query, key], dims=(0, 2, 3))
    if bias is not None:
        batch, num_query, num_heads, _ = query.shape
        chex.assert_shape(
            bias, ({1, batch}, {1, num_heads}, {1, num_query}, key.shape[1])
        )
    if implementation is None:
        implementation = choose(query, key, bias is not None, fusing_platform())
    if implementation == "matmul":
        return _matmul(query, key, value, bias)
    forms = {"lean": _split_lean, "cudnn": _cudnn, "flash": flash.attend}
    if implementation not in forms:
        raise UserError(
            f"implementation={implementation!r} is unknown; use 'matmul', "
            f"{', '.join(map(repr, forms))} or None"
        )
    if bias is not None:
        raise UserError(
            f"implementation={implementation!r} takes no bias; use 'matmul' or leave "
            "it None"
        )
    return forms[implementation](query, key, value)


def choose(query: Any, key: Any, has_bias: bool, platform: str) -> Implementation:
    """Returns the form for a platform and static shapes; see the module text.

    Args:
      query, key: Arrays or shapes, [B, Sq, H, D] and [B, Sk, H, D].
      has_bias: Whether something is added to the logits.
      platform: What `fusing_platform` returns.
    """
    num_query, num_key, width = query.shape[1], key.shape[1], query.shape[3]
    shorter = min(num_query, num_key)
    if has_bias:
        return "matmul"
    if platform == "cpu" and shorter >= LEAN_MIN_SIDE:
        return "lean" if num_query * num_key >= LEAN_MIN_SIZE else "matmul"
    if platform == "cuda" and shorter >= CUDNN_MIN_SIDE:
        narrow = query.dtype in (jnp.bfloat16, jnp.float16)
        return "cudnn" if narrow and width <= 128 and width % 8 == 0 else "matmul"
    if platform == "tpu" and shorter >= FLASH_MIN_SIDE:
        return "flash" if width <= flash.TILE or width % flash.TILE == 0 else "matmul"
    return "matmul"


def fusing_platform() -> str:
    """Returns "cpu", "cuda" or "tpu", or "other" where no kernel can be relied on.

    That of the mesh which the program is traced for (`parallel.mesh.bound`), whose
    devices need not be attached; else this machine's. A TPU program for several devices
    of which nobody told the mesh is "other": its kernels could not be split.
    """
    mesh = meshes.traced_for()
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if device.platform == "gpu" and "cuda" in device.client.platform_version:
        # cuDNN's fused attention wants Ampere or later.
        return "cuda" if float(device.compute_capability) >= 8 else "other"
    if device.platform == "tpu" and mesh is None and jax.device_count() > 1:
        return "other"
    return device.platform if device.platform in ("cpu", "tpu") else "other"


def products(equation: str, query: Array, key: Array) -> Array:
    """An einsum of two arrays, summed in float32 at least: logits before their softmax.

    Of bfloat16 inputs the gradients are bfloat16 products too. Left alone, the float32
    gradient of the logits would meet bfloat16 keys, and both products of the backward
    pass would run in float32.

    Args:
      equation: An equation of `jnp.einsum` with two inputs.
      query, key: arrays of one dtype.

    Returns:
      Float32, or the dtype of the inputs if that is wider. Inputs narrower than float32
      are differentiated in reverse mode only.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    if query.dtype == wide:
        return jnp.einsum(equation, query, key)
    return _narrow_products(equation, query, key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_products(equation: str, query: Array, key: Array) -> Array:
    return jnp.einsum(equation, query, key, preferred_element_type=jnp.float32)


def _narrow_forward(equation, query, key):
    return _narrow_products(equation, query, key), (query, key)


def _narrow_backward(equation, saved, logits_bar):
    query, key = saved
    logits_bar = logits_bar.astype(query.dtype)
    by_query = jax.linear_transpose(lambda q: jnp.einsum(equation, q, key), query)
    by_key = jax.linear_transpose(lambda k: jnp.einsum(equation, query, k), key)
    return *by_query(logits_bar), *by_key(logits_bar)


_narrow_products.defvjp(_narrow_forward, _narrow_backward)


def _matmul(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
    logits = products("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).astype(query.dtype)


def _cudnn(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _lean(query: Array, key: Array, value: Array) -> Array:
    num_batch, num_query, num_heads, width = query.shape

    def heads_first(x: Array) -> Array:
        x = x.transpose(0, 2, 1, 3).astype(jnp.float32)  # [B, H, S, D]
        return x.reshape(num_batch * num_heads, x.shape[2], width)

    out = _per_head(heads_first(query), heads_first(key), heads_first(value))
    out = out.reshape(num_batch, num_heads, num_query, width)
    return out.transpose(0, 2, 1, 3).astype(query.dtype)  # [B, Sq, H, D]


_split_lean = kernels.over_devices(_lean)


@jax.custom_vjp
def _per_head(query: Array, key: Array, value: Array) -> Array:
    """[N, Sq, D], [N, Sk, D], [N, Sk, D] -> [N, Sq, D], one of the N at a time."""
    return _per_head_forward(query, key, value)[0]


def _per_head_forward(query, key, value):
    def one(args):
        q, k, v = args

        def rows(q):
            logits = (q * q.shape[-1] ** -0.5) @ k.T  # [rows, Sk]
            top = logits.max(axis=-1, keepdims=True)
            weights = jnp.exp(logits - top)
            total = weights.sum(axis=-1, keepdims=True)
            return (weights @ v) / total, (top + jnp.log(total))[:, 0]

        return _in_blocks(rows, len(k), q)

    out, logsumexp = jax.lax.map(one, (query, key, value))
    return out, (query, key, value, out, logsumexp)


def _per_head_backward(saved, out_bar):
    """Rebuilds the attention matrix twice, so that no product runs down its columns.

    Contracting the leading axis of [Sq, Sk] costs a CPU several times a plain product;
    recomputing the transpose from q and k is cheaper. It also leaves the blocks of rows
    nothing to add up.
    """

    def one(args):
        q, k, v, out, logsumexp, o_bar = args
        scale = q.shape[-1] ** -0.5
        q = q * scale
        inner = jnp.sum(o_bar * out, axis=-1)  # [Sq]

        def query_rows(q, logsumexp, o_bar, inner):
            weights = jnp.exp(q @ k.T - logsumexp[:, None])  # [rows, Sk]
            return scale * (weights * (o_bar @ v.T - inner[:, None])) @ k

        def key_rows(k, v):
            weights = jnp.exp(k @ q.T - logsumexp[None, :])  # [rows, Sq]
            return (weights * (v @ o_bar.T - inner[None, :])) @ q, weights @ o_bar

        q_bar = _in_blocks(query_rows, len(k), q, logsumexp, o_bar, inner)
        return q_bar, *_in_blocks(key_rows, len(q), k, v)

    return jax.lax.map(one, (*saved, out_bar))


def _in_blocks(function: Callable, num_columns: int, *rows: Array):
    """Maps independent rows, as many at a time as `BLOCK_SIZE` entries hold.

    Blocks halve the leading axis of `rows`, while that is even.
    """
    num_rows, num_blocks = len(rows[0]), 1
    while num_rows % (2 * num_blocks) == 0 and (
        num_rows // num_blocks * num_columns > BLOCK_SIZE
    ):
        num_blocks *= 2
    if num_blocks == 1:
        return function(*rows)
    split = [x.reshape(num_blocks, -1, *x.shape[1:]) for x in rows]
    out = jax.lax.map(lambda block: function(*block), split)
    return jax.tree.map(lambda x: x.reshape(num_rows, *x.shape[2:]), out)


_per_head.defvjp(_per_head_forward, _per_head_backward)
