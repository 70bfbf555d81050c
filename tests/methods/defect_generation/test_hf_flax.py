"""The method on the libraries' own Flax classes: `config.model.implementation`.

The tiny backbone of the suite leaves out attention that the Flax autoencoder always
has, so this file writes a UNet and an autoencoder of its own beside that text tower.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.data import pools
from jaxanom.jobs import prepare
from jaxanom.methods import by_name
from jaxanom.models import backbones, networks
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.latent import unet, vae
from jaxanom.models.ops import initialise

UNET = unet.UNetConfig(
    block_out_channels=(32,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=16,
)
VAE = vae.VaeConfig(block_out_channels=(8, 8, 8), norm_num_groups=4, scaling_factor=0.5)


@pytest.fixture(scope="module")
def backbone(tiny_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "backbone"
    shutil.copytree(tiny_backbone, folder)
    for kind, module in (("unet", unet.UNet(UNET)), ("vae", vae.AutoencoderKL(VAE))):
        example = networks.example(module)
        params = initialise.parameters(module, jax.random.key(4), *example)
        shutil.rmtree(folder / kind)
        pretrained.save_component(folder, kind, module.config.to_dict(), params, kind)
    return folder


@pytest.fixture(scope="module")
def make(generation_config, backbone):
    def call(**changes):
        config = generation_config(
            model__directory=str(backbone), model__unet="", **changes
        )
        whole, division = prepare.open_data(config)
        return by_name.make(config, pools.training_part(whole, division))

    return call


def loss_and_latents(method):
    params, frozen = method.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    mask = np.zeros((2, 16, 16), np.float32)
    mask[0, 4:9, 4:9] = 1
    batch = {
        "image": jnp.asarray(rng.uniform(size=(2, 16, 16, 3)), jnp.float32),
        "mask": jnp.asarray(mask),
        "label": jnp.asarray([1, 0]),
        "category_id": jnp.zeros(2, jnp.int32),
        "defect_id": jnp.asarray([1, 0]),
        "index": jnp.arange(2),
        "valid": jnp.ones(2, bool),
    }

    def both(params, frozen, batch):
        encoded = method.encode(frozen, batch)
        value, _ = method.phases[0].loss_fn(params, frozen, encoded, jax.random.key(1))
        return value, encoded["latents"], frozen["contexts"]["defect"]

    return jax.device_get(jax.jit(both)(params, frozen, batch))


def test_the_loss_on_the_libraries_towers_is_that_on_ours(make):
    pytest.importorskip("diffusers.models.vae_flax")
    pytest.importorskip("transformers.models.clip.modeling_flax_clip")
    found = {
        name: loss_and_latents(
            make(model__implementation=name, defect_generation__masked_attention=False)
        )
        for name in backbones.IMPLEMENTATIONS
    }
    for ours, theirs in zip(found["ours"], found["hf_flax"], strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4)  # 2e-6 is usual
    # The networks are not the same code: some bit differs.
    assert any(
        np.any(ours != theirs)
        for ours, theirs in zip(found["ours"], found["hf_flax"], strict=True)
    )
    assert found["ours"][0] > 0.1


def test_masked_attention_names_both_keys_before_a_weight_is_read(make):
    with pytest.raises(
        ValueError,
        match=r"masked_attention=False, or config\.model\.implementation='ours'",
    ):
        make(model__implementation="hf_flax", model__text_encoder="nowhere")


def test_an_unknown_implementation_is_refused(make):
    with pytest.raises(ValueError, match=r"config\.model\.implementation='hf'"):
        make(model__implementation="hf")


def test_a_backbone_that_the_library_cannot_run_is_refused(make, tiny_backbone):
    with pytest.raises(ValueError, match=r"mid_block_add_attention.*implementation="):
        make(
            model__implementation="hf_flax",
            model__autoencoder=str(tiny_backbone),
            defect_generation__masked_attention=False,
        )
