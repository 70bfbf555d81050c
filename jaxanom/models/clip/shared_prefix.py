"""CLIP's text tower on sentences that begin alike: the beginning is encoded once.

Prompts of one particle differ in the class name alone, which stands at the end. Under
the causal mask nothing before it sees it, so keys and values of [start, vectors] serve
all classes; and nothing is read after the end token, so sentences stop there. Both are
exact. Gradients flow through the reused keys and values to the vectors.

Functions on the parameter tree of `clip.TextTower`. Norms, softmax and projections are
float32, or float64 where parameters and embeddings are.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.models.clip import layers as clip_layers
from jaxanom.models.clip import prompts, towers
from jaxanom.models.ops import attention
from jaxanom.types import Array, Params


class Cut(NamedTuple):
    """A layout in two: columns equal in all classes, and the rest.

    Attributes:
      prefix: The beginning of one sentence, [L0].
      suffix: What follows for every class, [K, L1]; `eos_positions` count from its
        first column.
    """

    prefix: prompts.Layout
    suffix: prompts.Layout


def cut(layout: prompts.Layout) -> Cut:
    """Splits a layout [K, L] after the longest beginning that all classes share.

    Columns after the last end token are dropped. At least the column of each end token
    stays in the suffix, so one class is a case like any other.
    """
    ids, slots = np.asarray(layout.input_ids), np.asarray(layout.slots)
    ends = np.asarray(layout.eos_positions)
    alike = (ids == ids[:1]).all(0) & (slots == slots[:1]).all(0)
    length = int(np.argmin(np.append(alike, False)))
    return _cut_at(layout, min(length, int(ends.min())), int(ends.max()) + 1)


def whole(layout: prompts.Layout) -> Cut:
    """The plain form: nothing is shared, and every column is encoded."""
    return _cut_at(layout, 0, None)


def _cut_at(layout: prompts.Layout, length: int, last: int | None) -> Cut:
    ids, slots = np.asarray(layout.input_ids), np.asarray(layout.slots)
    prefix = layout.replace(
        input_ids=ids[0, :length], slots=slots[0, :length], eos_positions=np.int32(0)
    )
    suffix = layout.replace(
        input_ids=ids[:, length:last],
        slots=slots[:, length:last],
        eos_positions=(np.asarray(layout.eos_positions) - length).astype(np.int32),
    )
    return Cut(prefix, suffix)


def text_features(
    params: Params,
    config: towers.TextConfig,
    parts: Cut,
    prompt_vectors: Array,
    dtype: Any = jnp.float32,
) -> Array:
    """Encodes one prompt per set of vectors and class.

    Args:
      params: Parameters of `towers.TextTower`, projection included.
      config: Its sizes.
      parts: What `cut` or `whole` returned.
      prompt_vectors: [P, N, D].
      dtype: What matrix products compute in.

    Returns:
      [P, K, projection_dim], not normalised, float32 or float64.

    Raises:
      UserError: a sentence is longer than the position table.
    """
    model = params["text_model"]
    table = model["embeddings"]["token_embedding"]["embedding"]
    length = parts.prefix.input_ids.shape[-1]
    total = length + parts.suffix.input_ids.shape[-1]
    if total > config.max_position_embeddings:
        raise UserError(
            f"prompts take {total} tokens, the text tower max_position_embeddings="
            f"{config.max_position_embeddings}; use fewer prompt vectors or shorter "
            "class names"
        )
    positions = model["embeddings"]["position_embedding"]["embedding"][:total]
    words = jax.lax.stop_gradient(table)[jnp.asarray(parts.prefix.input_ids)]
    first = prompts.inject(words, parts.prefix.slots, prompt_vectors)
    rest = prompts.assemble(parts.suffix, table, prompt_vectors)
    first = first + positions[:length]  # [P, L0, D]
    rest_in = rest.token_embeddings + positions[length:]  # [P, K, L1, D]
    hidden = encode(params, config, first, rest_in, dtype)
    ends = rest.eos_positions[..., None, None]
    last = jnp.take_along_axis(hidden, ends, axis=2)[:, :, 0]  # [P, K, D]
    return project(params, config, last)


def project(params: Params, config: towers.TextConfig, last: Array) -> Array:
    """Final norm and projection of states at the end tokens, [..., D] -> [..., K]."""
    pooled = _layer_norm(params["text_model"]["final_layer_norm"], last, config)
    kernel = params["text_projection"]["kernel"]
    return pooled @ kernel.astype(pooled.dtype)


def encode(
    params: Params, config: towers.TextConfig, first: Array, rest: Array, dtype: Any
) -> Array:
    """Runs all layers over beginnings and ends.

    Args:
      params, config, dtype: As in `text_features`.
      first: [P, L0, D] with positions; L0 may be 0.
      rest: [P, K, L1, D] with positions.

    Returns:
      [P, K, L1, D], states of the ends before the final norm.
    """
    chex.assert_equal_shape([first, rest], dims=(0, -1))
    layers = params["text_model"]["encoder"]["layers"]
    first, rest = first.astype(dtype), rest.astype(dtype)
    for number in range(config.num_hidden_layers):
        layer = layers[str(number)]
        attend = layer["self_attn"]
        query, key, value = _qkv(layer, first, config, dtype)  # [P, L0, H, D/H]
        own = _qkv(layer, rest, config, dtype)  # [P, K, L1, H, D/H]
        rest = rest + _dense(attend["out_proj"], _over_both(own, key, value), dtype)
        rest = rest + _mlp(layer, rest, config, dtype)
        # Nobody reads what the last layer makes of the beginning.
        if first.shape[1] and number + 1 < config.num_hidden_layers:
            mixed = _over_one(query, key, value)
            first = first + _dense(attend["out_proj"], mixed, dtype)
            first = first + _mlp(layer, first, config, dtype)
    return rest


def _qkv(layer: Params, hidden: Array, config: towers.TextConfig, dtype: Any):
    normed = _layer_norm(layer["layer_norm1"], hidden, config).astype(dtype)
    heads = config.num_attention_heads
    shape = (*hidden.shape[:-1], heads, hidden.shape[-1] // heads)
    return tuple(
        _dense(layer["self_attn"][name], normed, dtype).reshape(shape)
        for name in ("q_proj", "k_proj", "v_proj")
    )


def _over_one(query: Array, key: Array, value: Array) -> Array:
    """Causal attention of [P, L0, H, d] to itself: [P, L0, H d]."""
    bias = _causal(query.shape[1])[None, None]
    mixed = attention.dot_product(query, key, value, bias)
    return mixed.reshape(*mixed.shape[:2], -1)


def _over_both(own: tuple[Array, Array, Array], key: Array, value: Array) -> Array:
    """Attention of ends [P, K, L1, H, d] to their beginning and, causally, to them."""
    query, own_key, own_value = own
    before = _logits("pcqhd,pkhd->pchqk", query, key)  # [P, K, H, L1, L0]
    among = _logits("pcqhd,pckhd->pchqk", query, own_key)  # [P, K, H, L1, L1]
    among = among + _causal(query.shape[2])
    weights = jax.nn.softmax(jnp.concatenate([before, among], -1), -1)
    to_first, to_own = jnp.split(weights.astype(value.dtype), [key.shape[1]], axis=-1)
    mixed = jnp.einsum("pchqk,pkhd->pcqhd", to_first, value)
    mixed = mixed + jnp.einsum("pchqk,pckhd->pcqhd", to_own, own_value)
    return mixed.reshape(*mixed.shape[:3], -1)


def _logits(equation: str, query: Array, key: Array) -> Array:
    return attention.products(equation, query, key) * query.shape[-1] ** -0.5


def _causal(length: int) -> Array:
    allowed = jnp.tril(jnp.ones((length, length), bool))
    return jnp.where(allowed, 0.0, -jnp.inf).astype(jnp.float32)


def _mlp(layer: Params, hidden: Array, config: towers.TextConfig, dtype: Any) -> Array:
    normed = _layer_norm(layer["layer_norm2"], hidden, config).astype(dtype)
    inside = _dense(layer["mlp"]["fc1"], normed, dtype)
    inside = clip_layers.ACTIVATIONS[config.hidden_act](inside)
    return _dense(layer["mlp"]["fc2"], inside, dtype)


def _dense(params: Params, x: Array, dtype: Any) -> Array:
    return x @ params["kernel"].astype(dtype) + params["bias"].astype(dtype)


def _layer_norm(params: Params, x: Array, config: towers.TextConfig) -> Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred**2, -1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + config.layer_norm_eps)
    return normed * params["scale"] + params["bias"]
