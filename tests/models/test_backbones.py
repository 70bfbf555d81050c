"""Whole models from one directory in diffusers' layout."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import record
from jaxanom.models import backbones, networks
from jaxanom.models.clip import tokenizer
from jaxanom.models.latent import unet


@pytest.fixture
def copy(tiny_backbone, tmp_path):
    return shutil.copytree(tiny_backbone, tmp_path / "backbone")


def test_every_part_of_a_directory_loads_with_the_shapes_of_its_config(tiny_backbone):
    autoencoder = backbones.load_autoencoder(tiny_backbone)
    network = backbones.load_unet(str(tiny_backbone))
    both = backbones.load_clip(tiny_backbone)
    text = backbones.load_text_encoder(tiny_backbone)
    assert backbones.latent_channels(autoencoder) == 4
    assert backbones.latent_grid(autoencoder, (16, 32)) == (4, 8)
    assert network.module.config.cross_attention_dim == text.width == 16
    np.testing.assert_array_equal(
        text.params["text_model"]["final_layer_norm"]["scale"],
        both.params["text_model"]["final_layer_norm"]["scale"],
    )
    alphas = backbones.load_alphas(tiny_backbone)
    assert alphas.shape == (1000,) and alphas.dtype == np.float64
    assert np.all(np.diff(alphas) < 0)


def test_a_text_has_the_same_states_in_any_company(tiny_backbone):
    text = backbones.load_text_encoder(tiny_backbone)
    words = ["", "a photo of a pill", "a crack", "a good nut", "a wood with a hole"]
    together = text.encode(words)
    assert together.shape == (5, text.length, text.width)
    assert together.dtype == np.float32
    # Batches of another size may sum in another order.
    np.testing.assert_allclose(text.encode(words, batch_size=2), together, atol=1e-5)
    np.testing.assert_allclose(text.encode(words[3:4])[0], together[3], atol=1e-5)
    assert np.abs(together[1] - together[2]).max() > 1e-2


def test_a_name_that_is_no_directory_says_which_key_to_set():
    with pytest.raises(ValueError, match=r"nowhere.*config\.model\.directory"):
        backbones.load_unet("nowhere")


@pytest.mark.parametrize("part", ["unet", "vae", "clip"])
def test_a_missing_part_is_named(copy, part):
    load = {
        "unet": backbones.load_unet,
        "vae": backbones.load_autoencoder,
        "clip": backbones.load_text_encoder,
    }[part]
    shutil.rmtree(copy / part)
    with pytest.raises(ValueError, match="is missing"):
        load(copy)


def test_a_missing_tokenizer_is_named(copy):
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        backbones.load_text_encoder(copy)


def test_a_tokenizer_with_more_words_than_the_tower_is_refused(copy):
    letters = np.random.default_rng(0).choice(list("abcdefghij"), (500, 6))
    texts = ["".join(word) for word in letters]
    shutil.rmtree(copy / "tokenizer")
    tokenizer.train(texts, 900, copy / "tokenizer")
    with pytest.raises(ValueError, match="has 900 ids and its text tower"):
        backbones.load_text_encoder(copy)


def test_a_missing_schedule_and_another_prediction_type_are_refused(copy):
    path = copy / "scheduler" / "scheduler_config.json"
    settings = record.read_json(path)
    record.write_json(path, settings | {"prediction_type": "sample"})
    with pytest.raises(ValueError, match=r"'sample'.*'epsilon'"):
        backbones.load_alphas(copy)
    path.unlink()
    with pytest.raises(ValueError, match=r"config\.model\.scheduler"):
        backbones.load_alphas(copy)


def test_a_velocity_network_is_read_as_the_noise_it_implies(copy):
    network = backbones.load_unet(copy)
    path = copy / "scheduler" / "scheduler_config.json"
    settings = record.read_json(path)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 4, 4, 4)).astype(np.float32)
    context = rng.standard_normal((2, 3, 16)).astype(np.float32)
    timesteps = np.array([10, 900], np.int32)
    inputs = latents, timesteps, context
    plain = jax.jit(network.module.apply)({"params": network.params}, *inputs)
    found = {}
    for kind in backbones.PREDICTION_TYPES:
        record.write_json(path, settings | {"prediction_type": kind})
        apply = jax.jit(backbones.noise_apply(network.module, copy))
        found[kind] = apply(network.params, *inputs)
    # Equal but for how a program is fused.
    np.testing.assert_allclose(found["epsilon"], plain, atol=1e-6)
    alphas = backbones.load_alphas(copy)[timesteps][:, None, None, None]
    wanted = np.sqrt(alphas) * plain + np.sqrt(1 - alphas) * latents
    np.testing.assert_allclose(found["v_prediction"], wanted, atol=1e-5)
    assert np.abs(wanted - plain).max() > 0.1, "the two kinds must differ here"


def test_the_schedule_is_the_one_in_the_file(copy):
    path = copy / "scheduler" / "scheduler_config.json"
    record.write_json(path, {"num_train_timesteps": 10, "beta_schedule": "linear"})
    assert backbones.load_alphas(copy).shape == (10,)


def test_an_image_that_does_not_divide_names_its_key(tiny_backbone):
    autoencoder = backbones.load_autoencoder(tiny_backbone)
    with pytest.raises(ValueError, match=r"18x16.*factor 4.*config\.data\.image_size"):
        backbones.latent_grid(autoencoder, (18, 16))


@pytest.mark.parametrize("fine", [False, True])
def test_a_small_unet_attends_to_text_at_every_grid_and_to_itself_where_asked(fine):
    config = backbones.small_unet(4, 6, (8, 16), 1, 2, fine)
    assert unet.attention_resolutions(config, 8, 8) == ((8, 8), (4, 4))
    shapes = networks.shapes(unet.UNet(config))
    block = shapes["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]
    # The first attention reads channels (itself) or the context.
    assert block["attn1"]["to_k"]["kernel"].shape == ((8 if fine else 6), 8)
    assert block["attn2"]["to_k"]["kernel"].shape == (6, 8)
    deep = shapes["down_blocks_1"]["attentions_0"]["transformer_blocks_0"]
    assert deep["attn1"]["to_k"]["kernel"].shape == (16, 16)


def test_a_new_unet_starts_by_predicting_no_noise():
    config = backbones.small_unet(4, 6, (8,), 1, 2, False)
    tower = backbones.new_unet(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.normal(size=(1, 4, 4, 4)), jnp.float32)
    context = jnp.asarray(rng.normal(size=(1, 2, 6)), jnp.float32)
    found = jax.jit(tower.module.apply)(
        {"params": tower.params}, latents, jnp.asarray([7]), context
    )
    assert not np.any(found)


def test_a_network_of_another_kind_is_named_with_its_place(tiny_backbone):
    place = tiny_backbone / "vae"
    with pytest.raises(ValueError, match=f"config of {place}.* AutoencoderKL") as found:
        backbones.load_unet(place)
    assert "UNetConfig" in str(found.value)
    assert backbones.load_autoencoder(place).params
