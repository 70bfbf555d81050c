"""Dot-product attention in the form that suits the machine and the shapes.

All forms compute softmax(q k^T / sqrt(D) + bias) v with the softmax in float32:

* "matmul": batched matrix products; best on CPU for small and cross attention.
* "lean": one head at a time with a hand-written backward pass; several times faster
  than "matmul" on CPU once the attention matrix leaves the cache. Reverse mode only.
* "fused": `jax.nn.dot_product_attention`, which GPU and TPU compilers know.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxanom.types import Array

Implementation = Literal["matmul", "lean", "fused"]

LEAN_MIN_SIZE = 512 * 512
"""Sq * Sk from which "lean" beats "matmul" on CPU in forward and backward."""


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
      implementation: one of the forms of this file; None lets `choose` pick from the
        backend and the static shapes.

    Returns:
      [B, Sq, H, D] in the dtype of `query`.

    Raises:
      ValueError: unknown implementation, or "lean" together with a bias.
    """
    chex.assert_rank([query, key, value], 4)
    chex.assert_equal_shape([key, value])
    chex.assert_equal_shape([query, key], dims=(0, 2, 3))
    if bias is not None:
        num_batch, num_query, num_heads, _ = query.shape
        num_key = key.shape[1]
        chex.assert_shape(
            bias, ({1, num_batch}, {1, num_heads}, {1, num_query}, num_key)
        )
    if implementation is None:
        implementation = choose(
            jax.default_backend(), query.shape[1], key.shape[1], bias is not None
        )
    if implementation == "matmul":
        return _matmul(query, key, value, bias)
    if implementation == "fused":
        return _fused(query, key, value, bias)
    if implementation != "lean":
        raise ValueError(
            f"implementation={implementation!r} is unknown; use 'matmul', 'lean', "
            "'fused' or None"
        )
    if bias is not None:
        raise ValueError(
            "implementation='lean' takes no bias; use 'matmul' or leave it None"
        )
    return _lean(query, key, value)


def choose(
    backend: str, num_query: int, num_key: int, has_bias: bool
) -> Implementation:
    """Returns the form for a backend name and static sizes; see the module text."""
    if backend != "cpu":
        return "fused"
    if has_bias or num_query * num_key < LEAN_MIN_SIZE:
        return "matmul"
    return "lean"


def _matmul(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    logits = logits * scale
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).astype(query.dtype)


def _fused(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
    if bias is not None:
        # The library wants the query and key axes of the bias in full.
        full = (*bias.shape[:2], query.shape[1], key.shape[1])
        bias = jnp.broadcast_to(bias.astype(jnp.float32), full)
    return jax.nn.dot_product_attention(query, key, value, bias=bias)


def _lean(query: Array, key: Array, value: Array) -> Array:
    num_batch, num_query, num_heads, width = query.shape

    def heads_first(x: Array) -> Array:
        x = x.transpose(0, 2, 1, 3).astype(jnp.float32)  # [B, H, S, D]
        return x.reshape(num_batch * num_heads, x.shape[2], width)

    out = _per_head(heads_first(query), heads_first(key), heads_first(value))
    out = out.reshape(num_batch, num_heads, num_query, width)
    return out.transpose(0, 2, 1, 3).astype(query.dtype)  # [B, Sq, H, D]


@jax.custom_vjp
def _per_head(query: Array, key: Array, value: Array) -> Array:
    """[N, Sq, D], [N, Sk, D], [N, Sk, D] -> [N, Sq, D], one of the N at a time."""
    return _per_head_forward(query, key, value)[0]


def _per_head_forward(query, key, value):
    def one(args):
        q, k, v = args
        logits = (q * q.shape[-1] ** -0.5) @ k.T  # [Sq, Sk]
        top = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = weights.sum(axis=-1, keepdims=True)
        return (weights @ v) / total, (top + jnp.log(total))[:, 0]

    out, logsumexp = jax.lax.map(one, (query, key, value))
    return out, (query, key, value, out, logsumexp)


def _per_head_backward(saved, out_bar):
    """Rebuilds the attention matrix twice, so that no product runs down its columns.

    Contracting the leading axis of [Sq, Sk] costs a CPU several times a plain product;
    recomputing the transpose from q and k is cheaper.
    """

    def one(args):
        q, k, v, out, logsumexp, o_bar = args
        scale = q.shape[-1] ** -0.5
        q = q * scale
        inner = jnp.sum(o_bar * out, axis=-1)  # [Sq]
        weights = jnp.exp(q @ k.T - logsumexp[:, None])  # [Sq, Sk]
        q_bar = scale * (weights * (o_bar @ v.T - inner[:, None])) @ k
        weights_t = jnp.exp(k @ q.T - logsumexp[None, :])  # [Sk, Sq]
        v_bar = weights_t @ o_bar
        k_bar = (weights_t * (v @ o_bar.T - inner[None, :])) @ q
        return q_bar, k_bar, v_bar

    return jax.lax.map(one, (*saved, out_bar))


_per_head.defvjp(_per_head_forward, _per_head_backward)
