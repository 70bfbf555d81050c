"""Masks on grids, masked cross-attention, contexts: arXiv 2411.16767, Eqs. 10-11."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_defect_generation import masks, training

from jaxanom.methods.defect_generation import model, options
from jaxanom.models.latent import layers

BATCH, GRID, WIDTH, HEADS = 2, (4, 4), 8, 2
LENGTHS = (5, 3)  # tokens of the defect's and of the background's prompt


@pytest.mark.parametrize("how", options.POOLINGS)
@pytest.mark.parametrize("grid", [(16, 16), (8, 8), (4, 4), (2, 8)])
def test_pooled_masks_are_binary(how, grid):
    pooled = np.asarray(model.pool_mask(jnp.asarray(masks()), grid, how))
    assert pooled.shape == (3, *grid) and pooled.dtype == np.float32
    assert set(np.unique(pooled)) <= {0.0, 1.0}


def test_poolings_agree_where_a_cell_is_full_or_empty_and_differ_between():
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, :2, :2] = 1  # full cell
    mask[0, 0, 2] = 1  # its corner pixel alone
    mask[0, 3, 0] = mask[0, 3, 1] = 1  # half of a cell, not its corner
    wanted = {"max": [1, 1, 1, 0], "nearest": [1, 1, 0, 0], "area": [1, 0, 1, 0]}
    for how, cells in wanted.items():
        pooled = model.pool_mask(jnp.asarray(mask), (2, 2), how)
        np.testing.assert_array_equal(np.asarray(pooled).ravel(), cells, how)


def test_a_defect_of_one_pixel_survives_max_pooling_down_to_the_coarsest_grid():
    mask = np.zeros((1, 64, 64), np.float32)
    mask[0, 63, 17] = 1
    for side in (32, 8, 2, 1):
        pooled = model.pool_mask(jnp.asarray(mask), (side, side), "max")
        assert pooled.sum() == 1
        assert pooled[0, side - 1, 17 * side // 64] == 1
    # Negative control: the other poolings lose it.
    assert model.pool_mask(jnp.asarray(mask), (8, 8), "nearest").sum() == 0
    assert model.pool_mask(jnp.asarray(mask), (8, 8), "area").sum() == 0


def test_pooling_twice_by_max_is_pooling_once():
    mask = jnp.asarray(masks())
    twice = model.pool_mask(model.pool_mask(mask, (8, 8)), (2, 2))
    np.testing.assert_array_equal(twice, model.pool_mask(mask, (2, 2)))


def test_a_grid_that_does_not_divide_and_an_unknown_pooling_are_refused():
    with pytest.raises(ValueError, match=r"16x16 does not pool to 3x4.*image_size"):
        model.pool_mask(jnp.asarray(masks()), (3, 4))
    with pytest.raises(ValueError, match="'mean'"):
        model.pool_mask(jnp.asarray(masks()), (4, 4), "mean")


def attention_inputs(seed=1):
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(BATCH, GRID[0] * GRID[1], WIDTH)).astype(np.float32)
    context = rng.normal(size=(BATCH, sum(LENGTHS), 6)).astype(np.float32)
    layer = layers.Attention(HEADS)
    params = {
        name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}
        for name, shape in {
            "to_q": (WIDTH, WIDTH),
            "to_k": (6, WIDTH),
            "to_v": (6, WIDTH),
            "to_out_0": (WIDTH, WIDTH),
        }.items()
    }
    params["to_out_0"]["bias"] = jnp.asarray(rng.normal(size=WIDTH), jnp.float32)
    mask = masks(seed, (BATCH, *GRID))
    mask[0] = 0
    mask[0, 1, 2] = 1  # one cell
    bias = model.attention_bias(jnp.asarray(mask), *LENGTHS, [GRID])[GRID[0] * GRID[1]]
    apply = jax.jit(lambda q, c, b: layer.apply({"params": params}, q, c, b))
    return queries, context, mask.reshape(BATCH, -1), bias, apply, params


def two_softmaxes(queries, context, mask, params):
    """Eqs. 10-11 as they are written: each group normalised alone, then selected."""

    def heads(array):
        return array.reshape(*array.shape[:2], HEADS, -1)

    def softmax(logits):
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    query, key, value = (
        heads(np.asarray(inputs, np.float64) @ np.asarray(params[name]["kernel"]))
        for name, inputs in (("to_q", queries), ("to_k", context), ("to_v", context))
    )
    split = LENGTHS[0]
    groups = []
    for part in (slice(0, split), slice(split, None)):
        logits = np.einsum("bqhd,bkhd->bhqk", query, key[:, part])
        weights = softmax(logits / np.sqrt(WIDTH // HEADS))
        groups.append(np.einsum("bhqk,bkhd->bqhd", weights, value[:, part]))
    inside = mask[:, :, None, None]
    mixed = inside * groups[0] + (1 - inside) * groups[1]
    out = mixed.reshape(queries.shape) @ np.asarray(params["to_out_0"]["kernel"])
    return out + np.asarray(params["to_out_0"]["bias"])


def test_the_bias_is_two_softmaxes_selected_by_the_mask():
    queries, context, mask, bias, apply, params = attention_inputs()
    found = apply(queries, context, bias)
    wanted = two_softmaxes(queries, context, mask, params)
    # float32 against float64; sums of 8 terms of size 10.
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)
    # Negative control: one softmax over both groups is another function.
    plain = apply(queries, context, jnp.zeros_like(bias))
    assert np.abs(plain - wanted).max() > 0.1


@pytest.mark.parametrize("group", ["defect", "background"])
def test_a_query_reads_only_the_text_of_its_side(group):
    queries, context, mask, bias, apply, _ = attention_inputs()
    changed = context.copy()
    part = slice(0, LENGTHS[0]) if group == "defect" else slice(LENGTHS[0], None)
    changed[:, part] += 3.0
    before = np.asarray(apply(queries, context, bias))
    after = np.asarray(apply(queries, changed, bias))
    reads = mask > 0.5 if group == "defect" else mask < 0.5
    np.testing.assert_array_equal(before[~reads], after[~reads])
    assert np.abs(before[reads] - after[reads]).max(-1).min() > 1e-3
    # Negative control: without the bias everybody reads everything.
    none = jnp.zeros_like(bias)
    free = np.abs(apply(queries, context, none) - apply(queries, changed, none))
    assert free[~reads].max() > 1e-3


def test_no_query_is_left_without_a_token_on_any_grid():
    mask = jnp.asarray(masks(shape=(3, 8, 8)))
    grids = ((8, 8), (4, 4), (2, 2), (4, 4))
    biases = model.attention_bias(mask, *LENGTHS, grids)
    assert sorted(biases) == [4, 16, 64]
    for queries, bias in biases.items():
        assert bias.shape == (3, queries, sum(LENGTHS)) and bias.dtype == jnp.float32
        open_tokens = np.asarray(bias == 0).sum(-1)
        assert set(np.unique(open_tokens)) <= set(LENGTHS)


@pytest.fixture
def prompted():
    """(masked_attention) -> (prompt rows, what two images are told)."""
    rng = np.random.default_rng(2)
    rows = model.Contexts(
        defect=jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32),
        background=jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32),
    )

    def call(masked_attention):
        prompt = model.prompted(
            rows,
            jnp.asarray(masks(shape=(2, *GRID))),
            jnp.asarray([2, 1]),
            jnp.asarray([1, 0]),
            training(masked_attention=masked_attention),
            (GRID,),
        )
        return rows, prompt

    return call


def test_grouped_contexts_share_the_background_and_differ_in_the_first_group(prompted):
    rows, prompt = prompted(True)
    assert prompt.defect.shape == prompt.background.shape == (2, 8, 6)
    np.testing.assert_array_equal(prompt.defect[:, :4], rows.defect[jnp.array([2, 1])])
    for told in (prompt.background, prompt.null):
        np.testing.assert_array_equal(told[1, :4], rows.defect[0])  # the hole's
    for told in (prompt.defect, prompt.background, prompt.null):
        np.testing.assert_array_equal(told[:, 4:], rows.background[::-1])
    assert sorted(prompt.bias) == [GRID[0] * GRID[1]]


def test_plain_contexts_are_the_single_prompts(prompted):
    rows, prompt = prompted(False)
    np.testing.assert_array_equal(prompt.defect, rows.defect[jnp.array([2, 1])])
    np.testing.assert_array_equal(prompt.background, rows.background[::-1])
    np.testing.assert_array_equal(prompt.null[1], rows.defect[0])
    assert prompt.bias is None
