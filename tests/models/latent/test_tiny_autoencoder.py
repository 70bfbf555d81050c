"""The TAESD family: real weights, diffusers' class, and the names in between."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import trees
from jaxanom.models.latent import tiny_autoencoder, vae


def _state(latent_channels=4, width=8, encoder_pools=(), decoder_pools=(), seed=0):
    """A random state under the original names: 4x reduction, one unit a stage."""
    rng = np.random.default_rng(seed)

    def conv(name, features_in, features_out, side=3, bias=True):
        shape = (features_out, features_in, side, side)
        std = 1 / np.sqrt(features_in * side * side)
        arrays = {f"{name}.weight": std * rng.standard_normal(shape, np.float32)}
        if bias:
            values = 0.2 * rng.standard_normal(features_out, np.float32)
            arrays[f"{name}.bias"] = values
        return arrays

    def unit(index, pools):
        arrays = {}
        for i in (0, 2, 4):
            arrays |= conv(f"{index}.conv.{i}", width, width)
        if index in pools:
            arrays |= conv(f"{index}.pool.0", width, 256, 1, bias=False)
            scale = 1 + 0.2 * rng.standard_normal(256, np.float32)
            arrays |= {f"{index}.pool.1.weight": scale}
            arrays |= {f"{index}.pool.1.bias": scale[::-1] - 1}
            arrays |= conv(f"{index}.pool.3", 256, width, 1, bias=False)
        return arrays

    encoder = conv("0", 3, width) | unit(1, encoder_pools)
    encoder |= conv("2", width, width, bias=False) | unit(3, encoder_pools)
    encoder |= conv("4", width, width, bias=False) | unit(5, encoder_pools)
    encoder |= conv("6", width, latent_channels)
    # The original decoder: clamp 0, convolution 1, ReLU 2, units, enlargement 4, ...
    decoder = conv("1", latent_channels, width) | unit(3, decoder_pools)
    decoder |= conv("5", width, width, bias=False) | unit(6, decoder_pools)
    decoder |= conv("8", width, width, bias=False) | unit(9, decoder_pools)
    decoder |= conv("10", width, 3)
    return encoder, decoder


def _load(*state):
    config, params = tiny_autoencoder.from_state(*state)
    model = tiny_autoencoder.TinyAutoencoder(config)
    encode = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode"))
    decode = jax.jit(
        lambda p, z, clip=True: model.apply({"params": p}, z, clip, method="decode"),
        static_argnames="clip",
    )
    encode, decode = (
        functools.partial(encode, params),
        functools.partial(decode, params),
    )
    return config, encode, decode


def _image(seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((2, 8, 12, 3), np.float32))


def test_published_weights_reproduce_their_reference(shared_data):
    taesd = shared_data("taesd")
    state = [dict(np.load(taesd / f"taef2_{n}.npz")) for n in ("encoder", "decoder")]
    reference = np.load(taesd / "reference.npz")
    reference = {name: reference[name][:1] for name in reference.files}  # one image
    config, encode, decode = _load(*state)
    assert config.latent_channels == 32
    assert config.num_encoder_blocks == (1, 3, 3, 3)
    assert config.num_decoder_blocks == (3, 3, 3, 1)
    assert config.encoder_pool_layers == (11, 12, 13)
    assert config.decoder_pool_layers == (2, 3, 4)
    image = reference["image_uint8_nhwc"].astype(np.float32) / 255
    latents = reference["latent_nchw"].transpose(0, 2, 3, 1)
    decoded = reference["decoded_nchw"].transpose(0, 2, 3, 1).astype(np.float32)
    # The tolerance of the data's README; 5e-6 and 2.4e-4 (half precision) measured.
    np.testing.assert_allclose(encode(image).mean, latents, atol=1e-3)
    np.testing.assert_allclose(decode(latents, clip=False), decoded, atol=1e-3)
    error = np.mean((np.asarray(decode(latents)) - image) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(-10 * np.log10(error), reference["psnr"], atol=0.01)


def test_equals_diffusers_autoencoder_tiny():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    encoder, decoder = _state()
    reference = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).eval()
    state = {f"encoder.layers.{name}": array for name, array in encoder.items()}
    for name, array in decoder.items():  # diffusers has no clamp layer
        index, rest = name.split(".", 1)
        state[f"decoder.layers.{int(index) - 1}.{rest}"] = array
    reference.load_state_dict(
        {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    )
    _, encode, decode = _load(encoder, decoder)
    image = _image()
    latents = 4 * np.random.default_rng(1).standard_normal((2, 2, 3, 4), np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(image).transpose(0, 3, 1, 2))
        # The class speaks [-1, 1], the networks inside it [0, 1].
        encoded = reference.encode(2 * pixels - 1).latents.numpy()
        decoded = reference.decode(
            torch.from_numpy(latents.transpose(0, 3, 1, 2))
        ).sample.numpy()
    # float32 sums in another order.
    np.testing.assert_allclose(
        encode(image).mean, encoded.transpose(0, 2, 3, 1), atol=1e-5
    )
    ours = decode(latents, clip=False)
    np.testing.assert_allclose(ours, decoded.transpose(0, 2, 3, 1) / 2 + 0.5, atol=1e-5)
    assert np.abs(encode(2 * image - 1).mean - encode(image).mean).max() > 0.01


def test_config_reads_what_diffusers_writes():
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    written = dict(diffusers.AutoencoderTiny(latent_channels=16).config)
    wanted = tiny_autoencoder.TinyConfig(latent_channels=16)
    assert tiny_autoencoder.TinyConfig.from_dict(written) == wanted
    assert tiny_autoencoder.TinyConfig.from_dict(wanted.to_dict()) == wanted


def test_side_branch_corrects_the_input_of_its_unit():
    """Against the published definition, in numpy and float64, for a constant image.

    On constant maps a padded convolution is not constant, so the three convolutions are
    zeroed: what is left is relu(x + branch(x)).
    """
    encoder, decoder = _state(encoder_pools=(5,), seed=3)
    for name in encoder:
        if name.startswith("5.conv"):
            encoder[name] = np.zeros_like(encoder[name])
    config, params = tiny_autoencoder.from_state(encoder, decoder)
    assert config.encoder_pool_layers == (5,)
    unit = tiny_autoencoder.ResidualUnit(8, True, jnp.float32)
    inputs = np.random.default_rng(0).standard_normal((2, 3, 4, 8), np.float32)
    ours = unit.apply({"params": params["encoder"]["layers_5"]}, inputs)

    hidden = inputs.astype(np.float64) @ encoder["5.pool.0.weight"][:, :, 0, 0].T
    groups = hidden.reshape(2, 12, 4, 64)
    groups = groups - groups.mean((1, 3), keepdims=True)
    groups = groups / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    hidden = groups.reshape(hidden.shape) * encoder["5.pool.1.weight"]
    hidden = np.maximum(hidden + encoder["5.pool.1.bias"], 0)
    branch = hidden @ encoder["5.pool.3.weight"][:, :, 0, 0].T
    wanted = np.maximum(inputs + branch, 0)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)  # float32
    assert np.abs(wanted - np.maximum(inputs, 0)).max() > 0.1


def test_config_is_read_off_names_and_shapes():
    config, _ = tiny_autoencoder.from_state(
        *_state(latent_channels=16, width=12, encoder_pools=(3,), decoder_pools=(3, 9))
    )
    assert config == tiny_autoencoder.TinyConfig(
        encoder_block_out_channels=(12,) * 3,
        decoder_block_out_channels=(12,) * 3,
        latent_channels=16,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        encoder_pool_layers=(3,),
        decoder_pool_layers=(2, 8),
    )
    assert config.downsampling == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda e, d: d.pop("6.conv.2.bias"),
            r"decoder/layers_5/conv_2/bias: wanted \(8,\), found nothing",
        ),
        (
            lambda e, d: e.update({"7.bias": np.zeros(8)}),
            "layers_7/bias: wanted nothing",
        ),
        (
            lambda e, d: e.update({"2.bias": np.zeros(8)}),
            "layers_2/bias: wanted nothing",
        ),
        (
            lambda e, d: e.update({"0.bias": np.zeros(9)}),
            r"layers_0/bias: wanted \(8,\), found \(9,\)",
        ),
        (lambda e, d: e.update({"encoder.0.bias": np.zeros(8)}), "original TAESD name"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(spoil, message):
    encoder, decoder = _state()
    spoil(encoder, decoder)
    with pytest.raises(ValueError, match=message):
        tiny_autoencoder.from_state(encoder, decoder)


def test_serves_in_place_of_the_variational_autoencoder():
    _, encode, decode = _load(*_state())
    moments = encode(_image())
    assert isinstance(moments, vae.Moments)
    latents = vae.sample(moments, jax.random.key(0))
    np.testing.assert_array_equal(latents, moments.mean)
    image = decode(latents)
    assert image.shape == (2, 8, 12, 3)
    assert image.min() >= 0 and image.max() <= 1


def test_scaling_factor_cancels_in_the_round_trip():
    encoder, decoder = _state()
    config, params = tiny_autoencoder.from_state(encoder, decoder)
    scaled = tiny_autoencoder.TinyConfig(
        **{**vars(config), "scaling_factor": 2.5, "shift_factor": 0.3}
    )

    def run(config):
        model = tiny_autoencoder.TinyAutoencoder(config)
        latents = model.apply({"params": params}, _image(), method="encode").mean
        return latents, model.apply({"params": params}, latents, method="decode")

    plain, other = run(config), run(scaled)
    np.testing.assert_allclose(other[0], (plain[0] - 0.3) * 2.5, atol=1e-5)  # float32
    np.testing.assert_allclose(other[1], plain[1], atol=1e-5)


def test_latents_enter_the_decoder_softly_limited():
    _, _, decode = _load(*_state())
    far = jnp.full((1, 2, 2, 4), 60.0)
    # 3 tanh(20) = 3 to rounding: nothing beyond it can be told apart.
    np.testing.assert_allclose(
        decode(far, clip=False), decode(2 * far, clip=False), atol=1e-5
    )
    assert jnp.abs(decode(far, clip=False) - decode(far / 60, clip=False)).max() > 0.01


def test_unequal_widths_are_refused():
    with pytest.raises(ValueError, match="encoder_block_out_channels"):
        tiny_autoencoder.TinyConfig(encoder_block_out_channels=(64, 64, 64, 32))


def test_an_image_that_does_not_divide_into_cells_is_refused():
    _, encode, _ = _load(*_state())
    with pytest.raises(ValueError, match="multiples of 4"):
        encode(jnp.zeros((1, 8, 10, 3)))


def test_original_names_fill_the_whole_tree():
    encoder, decoder = _state(encoder_pools=(1,))
    _, params = tiny_autoencoder.from_state(encoder, decoder)
    assert len(trees.flatten(params)) == len(encoder) + len(decoder)
