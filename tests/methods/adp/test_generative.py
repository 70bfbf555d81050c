"""Channels that ask the diffusion model, on a tiny one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import walks
from jaxanom.methods.adp.channels import evidence as channels
from jaxanom.methods.adp.channels import generative
from jaxanom.models.features import patches


@pytest.fixture(scope="module")
def seen(parts):
    rng = np.random.default_rng(1)
    length, depth = parts.towers.text_length, 16
    return channels.Evidence(
        clip=None,
        prototypes=None,
        distances=None,
        latents=jnp.asarray(rng.normal(size=(2, 4, 4, 4)), jnp.float32),
        contexts=jnp.asarray(rng.normal(size=(2, 4, length, depth)), jnp.float32),
        category_id=jnp.zeros(2, jnp.int32),
        left_out=jnp.full(2, patches.NOBODY),
    )


def jitted(channel, parts):
    apply = jax.jit(channel.apply)
    return lambda evidence, cell: apply(evidence, {"towers": parts.params}, cell)


def rows(seen, chosen):
    return jax.tree.map(lambda leaf: leaf[chosen], seen)


def looks(**changes):
    values = {"num_noises": 1, "walk_steps": 2, "gap_steps": 3, "layers": ()}
    return generative.Options(**values | changes)


def test_reconstruction_from_level_0_changes_nothing_and_from_300_does(
    parts, seen, monkeypatch
):
    monkeypatch.setattr(generative, "STARTS", (300, 0))
    monkeypatch.setattr(generative, "SCALES", (1.0,))
    options = looks()
    channel = generative.reconstruct(parts.towers, options, side=4)
    apply = jitted(channel, parts)
    assert channel.cells == ("t 300, guidance 1.0", "t 0, guidance 1.0")
    found = np.asarray(apply(seen, jnp.array([0, 1])))
    np.testing.assert_array_equal(found[1], 0.0)
    assert found[0].max() > 0.01
    # Fixed noises: the same again, and the same beside another image.
    np.testing.assert_array_equal(apply(seen, jnp.array([0, 1])), found)
    swapped = np.asarray(apply(rows(seen, np.array([1, 0])), jnp.array([1, 0])))
    np.testing.assert_allclose(swapped[1], found[0], atol=1e-5)  # V7: float32


def test_the_noise_gap_of_one_prompt_with_itself_is_0(parts, seen):
    options = looks()
    channel = generative.noise_gap(parts.towers, options, side=4)
    apply = jitted(channel, parts)
    cell = jnp.zeros(2, jnp.int32)
    same = seen.contexts.at[:, generative.ANOMALOUS].set(
        seen.contexts[:, generative.NORMAL]
    )
    np.testing.assert_array_equal(apply(seen._replace(contexts=same), cell), 0.0)
    found = np.asarray(apply(seen, cell))
    assert np.abs(found).max() > 1e-6
    # Exchanging the prompts changes the sign: higher means "damaged" explains better.
    order = np.array([2, 1, 0, 3])
    other = apply(seen._replace(contexts=seen.contexts[:, order]), cell)
    np.testing.assert_allclose(other, -found, atol=1e-6)


def test_unet_features_of_a_shot_are_found_in_its_own_memory(parts, seen):
    towers = parts.towers
    context = seen.contexts[:1, 0]
    channel = generative.unet_memory(towers, side=4)

    @jax.jit
    def both(latents, params):
        wide = jnp.broadcast_to(context, (2, *context.shape[1:]))
        features = generative.unet_features(towers, params, latents, wide)
        memory = {
            "features": features[:1].reshape(1, -1, features.shape[-1]),
            "owners": jnp.zeros((1, features.shape[1] * features.shape[2]), jnp.int32),
        }
        frozen = {
            "towers": params,
            "class_contexts": context,
            "memory": {generative.UNET: memory},
        }
        return channel.apply(seen._replace(latents=latents), frozen, None)

    found = np.asarray(both(seen.latents, parts.params))
    assert found[0].max() < 1e-5 < found[1].mean()


def test_tables_of_several_levels_end_clean_and_refuse_too_few_indices(parts):
    table = walks.tables(parts.towers.alphas_cumprod, (0, 100, 999), 4)
    assert table.alpha_to.shape == (3, 4)
    np.testing.assert_array_equal(table.alpha_to[:, -1], 1.0)
    assert table.sigma_from[0, 0] == 0 < table.sigma_from[1, 0] < table.sigma_from[2, 0]
    with pytest.raises(ValueError, match="take fewer steps"):
        walks.tables(parts.towers.alphas_cumprod, (3,), 4)


def test_redrawing_a_region_keeps_the_rest(parts, seen):
    table = walks.rows(
        walks.tables(parts.towers.alphas_cumprod, (200, 500), 3), jnp.array([0, 1])
    )
    mask = np.zeros((2, 4, 4, 1), np.float32)
    mask[:, 1:3, 1:3] = 1
    noise = np.random.default_rng(3).normal(size=(2, 4, 4, 4)).astype(np.float32)
    # The exact noise of latents that are all 0: z_t / sqrt(1 - alpha).
    found = walks.denoise(
        lambda z, t: 0.3 * z, seen.latents, jnp.asarray(noise), table, jnp.asarray(mask)
    )
    outside = np.broadcast_to(mask == 0, found.shape)
    np.testing.assert_allclose(
        np.asarray(found)[outside], np.asarray(seen.latents)[outside], atol=1e-5
    )
    assert np.abs(np.asarray(found - seen.latents)[~outside]).max() > 0.05
