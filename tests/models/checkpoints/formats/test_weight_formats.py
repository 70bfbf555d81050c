"""Every model out to disk and back: the same bits, names and shapes in each format."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from jaxanom import trees
from jaxanom.models import backbones, networks
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.clip import towers
from jaxanom.models.latent import tiny_autoencoder, unet, vae

UNET = unet.UNetConfig(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=12,
    attention_head_dim=2,
)
VAE = vae.VaeConfig(block_out_channels=(8, 16), norm_num_groups=4)
TINY = tiny_autoencoder.TinyConfig(
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1),
)
TEXT = towers.TextConfig(
    vocab_size=30,
    hidden_size=8,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=9,
)
VISION = towers.VisionConfig(
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=1,
    num_attention_heads=3,
    image_size=8,
    patch_size=4,
)
MODELS = {
    "unet": unet.UNet(UNET),
    "vae": vae.AutoencoderKL(VAE),
    "tiny_autoencoder": tiny_autoencoder.TinyAutoencoder(TINY),
    "clip": towers.CLIP(towers.ClipConfig(TEXT, VISION)),
    "text_encoder": towers.TextTower(TEXT, projection=False),
    "image_encoder": towers.ImageTower(VISION),
}


def tree_of(kind, dtype=np.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(dtype),
        networks.shapes(MODELS[kind]),
    )


def assert_same_bits(first, second):
    first, second = trees.flatten(first), trees.flatten(second)
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        assert leaf.dtype == second[path].dtype, path
        assert leaf.shape == second[path].shape, path
        assert leaf.tobytes() == second[path].tobytes(), path


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
def test_out_and_back_is_bit_exact(kind, dtype, tmp_path):
    tree = tree_of(kind, dtype)
    pretrained.save_component(tmp_path, "part", {}, tree, kind)
    back = pretrained.load_params(tmp_path / "part", kind, tree, dtype=None)
    assert_same_bits(back, tree)
    assert (tmp_path / "part" / "config.json").is_file()
    # Negative control: one bit of one leaf is seen.
    leaf = jax.tree.leaves(back)[0]
    leaf.reshape(-1).view(np.uint8)[0] ^= 1
    with pytest.raises(AssertionError):
        assert_same_bits(back, tree)


@pytest.mark.parametrize("kind", MODELS)
def test_shards_of_halves_load(kind, tmp_path, write_shards):
    tree = tree_of(kind, jnp.bfloat16)
    path = tmp_path / f"{pretrained.KINDS[kind].stem}.safetensors"
    write_shards(path, pretrained.to_published(tree, kind), 1500)
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    assert_same_bits(pretrained.load_params(tmp_path, kind, tree, dtype=None), tree)


@pytest.mark.parametrize("kind", ["text_encoder", "image_encoder"])
def test_a_tower_saved_by_transformers_from_5_6_on_loads(kind, tmp_path):
    tree = tree_of(kind)
    prefix = {"text_encoder": "text_model.", "image_encoder": "vision_model."}[kind]
    nested = pretrained.to_published(tree, kind)
    flat = {name.removeprefix(prefix): value for name, value in nested.items()}
    assert flat.keys() != nested.keys()
    weights.write(tmp_path / "model.safetensors", flat)
    assert_same_bits(pretrained.load_params(tmp_path, kind, tree), tree)
    weights.write(tmp_path / "model.safetensors", flat | nested)
    with pytest.raises(ValueError, match="twice in the weights"):
        pretrained.load_params(tmp_path, kind, tree)


def test_a_variant_is_read_when_asked_for_only(tmp_path):
    tree = tree_of("text_encoder", np.float16)
    pretrained.save_component(tmp_path, "", {}, tree, "text_encoder")
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    back = pretrained.load_params(
        tmp_path, "text_encoder", tree, dtype=None, variant="fp16"
    )
    assert_same_bits(back, tree)
    with pytest.raises(ValueError, match=r"no text_encoder weights; .*variant='fp16'"):
        pretrained.load_params(tmp_path, "text_encoder", tree)
    with pytest.raises(ValueError, match="of variant 'ema'"):
        pretrained.load_params(tmp_path, "text_encoder", tree, variant="ema")


def test_a_refused_load_of_a_shard_that_is_gone_names_it(tmp_path, write_shards):
    tree = tree_of("text_encoder")
    published = pretrained.to_published(tree, "text_encoder")
    write_shards(tmp_path / "model.safetensors", published, 1500)
    shard = sorted(tmp_path.glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name} is not a file"):
        pretrained.load_params(tmp_path, "text_encoder", tree)


@pytest.mark.parametrize("kind", ["tiny_autoencoder"])
def test_the_tiny_autoencoder_goes_to_diffusers_and_back(kind, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("torch")
    tree = tree_of(kind)
    pretrained.save_component(tmp_path, "vae", TINY.to_dict(), tree, kind)
    model = diffusers.AutoencoderTiny.from_pretrained(
        tmp_path / "vae", low_cpu_mem_usage=False
    )
    model.save_pretrained(tmp_path / "theirs")
    tower = backbones.load_autoencoder(tmp_path / "theirs")
    assert_same_bits(tower.params, tree)
    assert isinstance(tower.module, tiny_autoencoder.TinyAutoencoder)


@pytest.mark.parametrize("kind", MODELS)
def test_a_tree_of_the_flax_classes_loads(kind, tmp_path):
    # What those classes' save_pretrained writes is this call.
    tree = tree_of(kind)
    path = tmp_path / f"{pretrained.KINDS[kind].flax_stem}.msgpack"
    path.write_bytes(serialization.to_bytes(tree))
    assert_same_bits(pretrained.load_params(tmp_path, kind, tree, dtype=None), tree)


def test_torch_files_load_like_safetensors(tmp_path):
    torch = pytest.importorskip("torch")
    tree = tree_of("clip")
    state = {
        name: torch.from_numpy(value.copy())
        for name, value in pretrained.to_published(tree, "clip").items()
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same_bits(pretrained.load_params(tmp_path, "clip", tree), tree)
    weights.write(tmp_path / "model.safetensors", {"x": np.zeros(1)})
    with pytest.raises(ValueError, match=r"model\.safetensors: the weights are not"):
        pretrained.load_params(tmp_path, "clip", tree)  # safetensors come first
