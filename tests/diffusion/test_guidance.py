import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import guidance


def noise_fn(latents, timesteps, context):
    return latents * context.mean((1, 2))[:, None, None, None] + timesteps[
        :, None, None, None
    ].astype(jnp.float32)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((2, 4, 4, 3)), jnp.float32)
    context = jnp.asarray(rng.standard_normal((2, 5, 6)), jnp.float32)
    return latents, jnp.array([3, 7]), context, jnp.zeros_like(context)


def test_guidance_extrapolates_from_the_unconditional_estimate(batch):
    latents, timesteps, context, null_context = batch
    guided = guidance.classifier_free(noise_fn, context, null_context, 3.0)
    conditional = noise_fn(latents, timesteps, context)
    unconditional = noise_fn(latents, timesteps, null_context)
    wanted = unconditional + 3.0 * (conditional - unconditional)
    # One float32 rounding of values near 10.
    np.testing.assert_allclose(guided(latents, timesteps), wanted, atol=1e-5)
    # Negative control: the two estimates may not be swapped.
    swapped = guidance.guide(unconditional, conditional, 3.0)
    assert np.abs(swapped - wanted).max() > 0.1


def test_both_contexts_go_through_one_call_and_no_guidance_costs_none(batch):
    latents, timesteps, context, null_context = batch
    rows = []

    def counted(latents, timesteps, context):
        rows.append((latents.shape[0], timesteps.shape[0], context.shape[0]))
        return noise_fn(latents, timesteps, context)

    guidance.classifier_free(counted, context, null_context, 2.0)(latents, timesteps)
    plain = guidance.classifier_free(counted, context, null_context)(latents, timesteps)
    assert rows == [(4, 4, 4), (2, 2, 2)]
    np.testing.assert_array_equal(plain, noise_fn(latents, timesteps, context))


def test_guidance_is_float32_for_a_bfloat16_network():
    conditional = jnp.full((1, 1), 1.0078125, jnp.bfloat16)  # 1 + 2^-7
    null = jnp.full((1, 1), 1.0, jnp.bfloat16)
    guided = guidance.guide(conditional, null, 1.5)
    assert guided.dtype == jnp.float32
    assert float(guided[0, 0]) == 1 + 1.5 * 2**-7  # bfloat16 would round it


def test_defect_only_leaves_the_background_untouched(batch):
    latents, timesteps, context, null_context = batch

    def pair(latents, background_latents, timesteps):
        defect = noise_fn(latents, timesteps, context)
        if background_latents is None:
            return defect, None
        return defect, noise_fn(background_latents, timesteps, context + 1)

    def null(latents, timesteps):
        return noise_fn(latents, timesteps, null_context)

    guided = guidance.defect_only(pair, null, 4.0)
    plain_defect, plain_background = pair(latents, latents / 2, timesteps)
    defect, background = guided(latents, latents / 2, timesteps)
    np.testing.assert_array_equal(background, plain_background)
    wanted = guidance.guide(plain_defect, null(latents, timesteps), 4.0)
    np.testing.assert_array_equal(defect, wanted)
    assert np.abs(defect - plain_defect).max() > 0.1
    assert guided(latents, None, timesteps)[1] is None  # as a replay calls it
    assert guidance.defect_only(pair, null) is pair
