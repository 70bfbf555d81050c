"""Tokens side by side, alone, padded; what is differentiated; what training does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.adp import model, objective
from jaxanom.methods.adp.token import inversion
from jaxanom.models.clip import prompts

NUM_STEPS = 12


@pytest.fixture(scope="module")
def loss_fn(parts, terms):
    options = terms(
        batch_size=2,
        temperature=0.3,
        align_weight=2.0,
        state_weight=2.0,
        templates_per_step=3,  # all there are, so that no draw hides a fall
    )
    return objective.make_loss(parts.towers, parts.layouts, parts.pyramid, options)


@pytest.fixture(scope="module")
def run(parts, loss_fn):
    """(data of T tokens, keys) -> tokens and trace; one program per T and shape."""
    traced = jax.jit(
        lambda start, data, params, keys: inversion.invert_all(
            loss_fn, start, data, params, keys, NUM_STEPS, 5e-3
        )
    )
    return lambda data, keys: traced(data.start, data, parts.params, keys)


def keys(count):
    return inversion.token_keys(jax.random.key(5), count)


def test_tokens_side_by_side_are_the_tokens_alone(run, token_data, stacked):
    data = stacked([token_data(0), token_data(1)])
    together, trace = run(data, keys(2))
    assert trace.loss.shape == (2, NUM_STEPS)
    # A token's neighbour is exchanged for another: nothing of the first may change.
    other = stacked([token_data(0), token_data(7)])
    again, _ = run(other, keys(2))
    np.testing.assert_array_equal(together[0], again[0])
    assert np.abs(together[1] - again[1]).max() > 1e-3
    alone, _ = run(jax.tree.map(lambda leaf: leaf[1:], data), keys(2)[1:])
    # V2: batched and single matrix products round differently, over 12 Adam steps.
    np.testing.assert_allclose(alone[0], together[1], atol=1e-4)


def test_a_padded_shot_changes_nothing(run, token_data, stacked):
    found = [
        run(stacked([token_data(3, 1, 2, padding)] * 2), keys(2))[0]
        for padding in (0.0, 50.0)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    # Negative control: the second shot matters where it counts.
    both, _ = run(stacked([token_data(3, 2, 2)] * 2), keys(2))
    assert np.abs(both - found[0]).max() > 1e-3


def test_the_zero_shot_terms_fall(run, token_data, stacked):
    _, trace = run(stacked([token_data(4), token_data(5)]), keys(2))
    first, last = (
        {name: float(v[:, part].mean()) for name, v in trace.terms.items()}
        for part in (slice(0, 3), slice(-3, None))
    )
    assert last["align"] + last["state"] < first["align"] + first["state"]
    assert set(first) == {"inversion", "align", "state", "anchor", "prior"}


def test_a_weight_of_0_switches_a_term_off(parts, terms, token_data):
    """Without any zero-shot term CLIP is not even called."""
    options = terms(
        align_weight=0.0, state_weight=0.0, anchor_weight=0.0, prior_weight=0.0
    )
    loss = objective.make_loss(parts.towers, parts.layouts, parts.pyramid, options)
    data = token_data(0)
    without_clip = {
        **parts.params,
        "clip": {"text_model": parts.params["clip"]["text_model"]},
    }
    _, values = jax.eval_shape(loss, data.start, data, without_clip, jax.random.key(0))
    assert list(values) == ["inversion"]


def test_injection_has_the_gradient_of_writing_into_the_table(parts):
    """V1: the same derivative, without a copy of the table per token."""
    towers, params = parts.towers, parts.params
    layout = parts.around.normal
    table = model.token_table(params)
    ids = np.array([3, 4])
    written = prompts.Layout(
        input_ids=np.where(layout.slots >= 0, ids[layout.slots], layout.input_ids),
        slots=np.full_like(layout.slots, -1),
        eos_positions=layout.eos_positions,
        num_vectors=2,
    )
    rng = np.random.default_rng(0)
    vectors = jnp.asarray(0.1 * rng.normal(size=(2, table.shape[1])), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(1, 1, 16)), jnp.float32)

    def injected(vectors, params):
        return jnp.sum(weights * model.text_features(towers, params, layout, vectors))

    def into_table(vectors, params):
        token_table = jnp.asarray(table).at[ids].set(vectors)
        flat = written.input_ids.reshape(-1, written.input_ids.shape[-1])
        output = towers.clip_text.apply(
            {"params": params["clip"]},
            token_embeddings=token_table[flat],
            eos_positions=jnp.asarray(written.eos_positions).ravel(),
        ).text_features
        output = output / jnp.linalg.norm(output, axis=-1, keepdims=True)
        return jnp.sum(weights * output.reshape(*layout.eos_positions.shape, -1))

    first, second = jax.jit(
        lambda v, p: (jax.grad(injected)(v, p), jax.grad(into_table)(v, p))
    )(vectors, params)
    scale = float(jnp.abs(second).max())
    np.testing.assert_allclose(first, second, atol=1e-6 * max(scale, 1))
    assert scale > 1e-3


def test_long_vectors_are_scaled_to_the_bound_and_short_ones_kept():
    vectors = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    found = model.bounded(vectors, 2.0)
    np.testing.assert_allclose(found, [[1.2, 1.6], [0.3, 0.4]], rtol=1e-6)


def test_the_phase_gives_every_token_the_gradient_of_its_own_loss(stacked):
    """On a loss that can be differentiated by hand: |v - start|^2 + noise . v."""

    def own_loss(vectors, data, params, key):
        noise = jax.random.normal(key, vectors.shape)
        value = jnp.sum((vectors - data.start) ** 2) + jnp.sum(noise * vectors)
        return value * params["scale"], {"inversion": value}

    rng = np.random.default_rng(3)
    start, tokens = (jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32) for _ in "ab")
    rest = dict.fromkeys(objective.TokenData._fields, jnp.zeros(3))
    frozen = {"particles": {**rest, "start": start}, "towers": {"scale": 2.0}}
    key = jax.random.key(2)
    phase = inversion.phase_loss(own_loss)
    grads, terms = jax.grad(
        lambda params: phase(params, frozen, {"image": None}, key), has_aux=True
    )({"particles": {"tokens": tokens}})
    noise = [jax.random.normal(k, (2, 4)) for k in inversion.token_keys(key, 3)]
    wanted = 2.0 * (2 * (tokens - start) + jnp.stack(noise))
    np.testing.assert_allclose(grads["particles"]["tokens"], wanted, rtol=1e-5)
    assert terms["inversion"].shape == ()
    # Tokens draw from keys of their own.
    assert np.abs(noise[0] - noise[1]).max() > 0.1
