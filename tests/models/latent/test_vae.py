"""The autoencoder: the same function as diffusers' classes, and the scaling."""

import dataclasses

import diffusers_twins
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import trees
from jaxanom.models.latent import vae
from jaxanom.models.ops import initialise

TINY = vae.VaeConfig(
    block_out_channels=(8, 16, 16),
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=3,
    scaling_factor=0.3,
)


def _image(seed=0, size=(2, 16, 24, 3)):
    image = np.random.default_rng(seed).random(size, np.float32)
    return jnp.asarray(image)


def _params(config):
    """Random parameters with no leaf at 0 or 1, so a leaf that is not read shows."""
    rng = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, 8, 8, config.in_channels), jnp.float32)
    params = initialise.parameters(vae.AutoencoderKL(config), jax.random.key(0), image)

    def moved(leaf):  # in numpy: jax would compile once per shape
        noise = 0.2 * rng.standard_normal(leaf.shape, np.float32)
        return np.asarray(leaf) + (noise if leaf.ndim == 1 else 0.0)

    return jax.tree.map(moved, params)


def _methods(config):
    model = vae.AutoencoderKL(config)
    encode = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode"))
    decode = jax.jit(
        lambda p, z, clip=True: model.apply({"params": p}, z, clip, method="decode"),
        static_argnames="clip",
    )
    return encode, decode


@pytest.fixture(scope="module")
def tiny():
    """(encode, decode, params), compiled once."""
    return (*_methods(TINY), _params(TINY))


def _torch_vae(config):
    return diffusers_twins.torch_model("AutoencoderKL", config)


PARITY_CONFIGS = {
    "stable diffusion": TINY,
    "no quantisation layers, no attention": dataclasses.replace(
        TINY,
        layers_per_block=2,
        block_out_channels=(8, 8),
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ),
}


@pytest.mark.parametrize("name", PARITY_CONFIGS)
def test_equals_diffusers_torch_autoencoder(name):
    config = PARITY_CONFIGS[name]
    model = _torch_vae(config)
    import torch

    params, image = diffusers_twins.to_our_tree(model, _params(config)), _image()
    encode, decode = _methods(config)
    moments = encode(params, image)
    shift, factor = config.shift_factor or 0.0, config.scaling_factor
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(image).transpose(0, 3, 1, 2))
        posterior = model.encode(2 * pixels - 1).latent_dist
        latents = (posterior.mean - shift) * factor  # as diffusers' pipelines do
        decoded = (model.decode(latents / factor + shift).sample + 1) / 2

    def nhwc(array):
        return array.numpy().transpose(0, 2, 3, 1)

    # Sums in another order: 1e-6 measured in float32.
    np.testing.assert_allclose(moments.mean, nhwc(latents), atol=1e-5)
    np.testing.assert_allclose(
        moments.log_variance, nhwc(posterior.logvar) + 2 * np.log(factor), atol=1e-5
    )
    ours = decode(params, jnp.asarray(nhwc(latents)), clip=False)
    np.testing.assert_allclose(ours, nhwc(decoded), atol=1e-5)
    assert np.abs(nhwc(decoded) - 0.5).max() > 0.3
    assert np.abs(encode(params, image + 0.1).mean - moments.mean).max() > 1e-3


def test_equals_diffusers_flax_autoencoder(tiny):
    pytest.importorskip("torch")  # diffusers' Flax modules import it
    vae_flax = pytest.importorskip("diffusers.models.vae_flax")
    encode, decode, params = tiny
    num_blocks = len(TINY.block_out_channels)
    reference = vae_flax.FlaxAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * num_blocks,
        up_block_types=("UpDecoderBlock2D",) * num_blocks,
        block_out_channels=TINY.block_out_channels,
        layers_per_block=TINY.layers_per_block,
        latent_channels=TINY.latent_channels,
        norm_num_groups=TINY.norm_num_groups,
    )
    image, factor = _image(), TINY.scaling_factor

    @jax.jit
    def flax_round_trip(params, pixels):
        bound = reference.bind({"params": params})
        posterior = bound.encode(pixels).latent_dist
        decoded = bound.decode(posterior.mean).sample
        return posterior.mean, posterior.logvar, decoded.transpose(0, 2, 3, 1)

    mean, log_variance, decoded = flax_round_trip(
        params, 2 * image.transpose(0, 3, 1, 2) - 1
    )
    moments = encode(params, image)
    # The Flax class norms with the one-pass variance: 1e-5 apart, not 1e-6.
    np.testing.assert_allclose(moments.mean, mean * factor, atol=1e-4)
    np.testing.assert_allclose(
        moments.log_variance, log_variance + 2 * np.log(factor), atol=1e-4
    )
    ours = decode(params, moments.mean, clip=False)
    np.testing.assert_allclose(ours, decoded / 2 + 0.5, atol=1e-4)


def test_shapes_follow_the_number_of_resolutions(tiny):
    encode, decode, params = tiny
    moments = encode(params, _image())
    assert TINY.downsampling == 4
    assert moments.mean.shape == moments.log_variance.shape == (2, 4, 6, 3)
    assert decode(params, moments.mean).shape == (2, 16, 24, 3)


def test_scaling_factor_scales_the_gaussian_and_cancels_in_the_round_trip(tiny):
    encode, decode, params = tiny
    other = dataclasses.replace(TINY, scaling_factor=3.0, shift_factor=0.5)
    encode_other, decode_other = _methods(other)
    ours, theirs = encode(params, _image()), encode_other(params, _image())
    raw = ours.mean / 0.3
    np.testing.assert_allclose(theirs.mean, (raw - 0.5) * 3, atol=1e-5)  # float32
    ratio = np.exp(0.5 * (theirs.log_variance - ours.log_variance))
    np.testing.assert_allclose(ratio, 10, rtol=1e-4)  # 3 / 0.3
    np.testing.assert_allclose(
        decode_other(params, theirs.mean), decode(params, ours.mean), atol=1e-5
    )


def test_draws_have_the_mean_and_spread_of_the_moments():
    mean = jnp.array([1.0, -2.0])
    moments = vae.Moments(
        jnp.broadcast_to(mean, (1, 100, 100, 2)),
        jnp.broadcast_to(jnp.log(jnp.array([0.25, 4.0])), (1, 100, 100, 2)),
    )
    draw = vae.sample(moments, jax.random.key(0))
    # 10^4 draws: standard errors 0.02 of the mean and 0.7 % of the spread, at most.
    np.testing.assert_allclose(draw.mean((0, 1, 2)), mean, atol=0.08)
    np.testing.assert_allclose(draw.std((0, 1, 2)), [0.5, 2.0], rtol=0.03)
    assert jnp.any(vae.sample(moments, jax.random.key(1)) != draw)


def test_a_deterministic_encoder_draws_its_mean():
    moments = vae.Moments(_image(), None)
    draw = jax.jit(vae.sample)(moments, jax.random.key(0))
    np.testing.assert_array_equal(draw, moments.mean)


def test_decode_clips_unless_told_not_to(tiny):
    _, decode, params = tiny
    flat = trees.flatten(params)
    flat["decoder/conv_out/bias"] = np.array([-2.0, 0.0, 2.0], np.float32)
    params, latents = trees.unflatten(flat), jnp.ones((2, 4, 6, 3))
    free = decode(params, latents, clip=False)
    assert free.min() < 0 and free.max() > 1
    np.testing.assert_array_equal(decode(params, latents), np.clip(free, 0, 1))


def test_bfloat16_computes_near_float32_and_returns_float32(tiny):
    encode, decode, params = tiny
    model = vae.AutoencoderKL(TINY, dtype=jnp.bfloat16)
    half = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, _image())
    assert half.dtype == jnp.float32
    whole = decode(params, encode(params, _image()).mean)
    # 8 bits of mantissa through about 30 layers.
    assert np.sqrt(np.mean((half - whole) ** 2)) < 0.05 * np.std(whole)


def test_an_image_that_does_not_divide_into_cells_is_refused(tiny):
    encode, _, params = tiny
    with pytest.raises(ValueError, match="multiples of 4"):
        encode(params, jnp.zeros((1, 16, 18, 3)))


def test_has_the_size_of_the_stable_diffusion_autoencoder():
    config = vae.VaeConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    params = jax.eval_shape(
        vae.AutoencoderKL(config).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32),
    )["params"]
    assert len(jax.tree.leaves(params)) == 248
    assert trees.num_params(params) == 83_653_863


@pytest.mark.parametrize("name", PARITY_CONFIGS)
def test_config_survives_the_round_trip_through_json_types(name):
    config = PARITY_CONFIGS[name]
    assert vae.VaeConfig.from_dict(config.to_dict()) == config


def test_config_reads_what_diffusers_writes():
    written = dict(_torch_vae(TINY).config)
    assert vae.VaeConfig.from_dict(written) == TINY


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("down_block_types", ["DownEncoderBlock2D"]),
        ("up_block_types", ["AttnUpDecoderBlock2D"] * 3),
        ("act_fn", "gelu"),
        ("latents_mean", [0.0, 0.0, 0.0]),
        ("some_new_key", 1),
    ],
)
def test_config_names_the_key_it_cannot_honour(key, value):
    with pytest.raises(ValueError, match=key):
        vae.VaeConfig.from_dict({**TINY.to_dict(), key: value})
