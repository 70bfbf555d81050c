"""Published models at full size, on shapes alone: nothing here holds a weight.

The names and shapes are those that the libraries' own classes have for the published
configs, built on torch's meta device.
"""

import collections
import functools

import numpy as np
import pytest

from jaxanom import trees
from jaxanom.models import networks
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.checkpoints.names import layouts, original_stable_diffusion
from jaxanom.models.clip import towers
from jaxanom.models.latent import tiny_autoencoder, unet, vae

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
SD1_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": DOWN,
    "up_block_types": UP,
    "block_out_channels": [320, 640, 1280, 1280],
}
SD2_UNET = SD1_UNET | {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SD_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
SD1_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
OPEN_H_TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
VIT_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
CLIPS = {
    "CLIP ViT-L/14-336": {
        "text_config": SD1_TEXT,
        "vision_config": VIT_L | {"image_size": 336},
        "projection_dim": 768,
    },
    "CLIP ViT-B/16": {
        "text_config": {},
        "vision_config": {"patch_size": 16},
        "projection_dim": 512,
    },
    "OpenCLIP ViT-H/14": {
        "text_config": OPEN_H_TEXT | {"num_hidden_layers": 24},
        "vision_config": VIT_L
        | {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "hidden_act": "gelu",
        },
        "projection_dim": 1024,
    },
}
# Parameters as counted from the published weights.
COUNTS = {
    "SD1.5 UNet": 859_520_964,
    "SD2 UNet": 865_910_724,
    "SD VAE": 83_653_863,
    "TAESD": 2_445_063,
    "SD1 text": 123_060_480,
    "SD2 text": 340_387_840,
    "CLIP ViT-L/14-336": 427_944_193,
    "CLIP ViT-B/16": 149_620_737,
    "OpenCLIP ViT-H/14": 986_109_441,
}


@functools.cache
def theirs(name):
    """{name: shape} of the library's class, built without memory."""
    with torch.device("meta"):
        model = _theirs(name)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _theirs(name):
    if name in CLIPS:
        return transformers.CLIPModel(transformers.CLIPConfig(**CLIPS[name]))
    if name in ("SD1 text", "SD2 text"):
        raw = SD1_TEXT if name == "SD1 text" else OPEN_H_TEXT
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**raw))
    diffusers = pytest.importorskip("diffusers")
    if name == "TAESD":
        return diffusers.AutoencoderTiny()
    if name == "SD VAE":
        return diffusers.AutoencoderKL(**SD_VAE)
    raw = SD1_UNET if name == "SD1.5 UNet" else SD2_UNET
    return diffusers.UNet2DConditionModel(**raw)


@functools.cache
def ours(name):
    """(kind, parameter shapes) of our module."""
    if name in CLIPS:
        config = towers.ClipConfig.from_dict(CLIPS[name])
        return "clip", networks.shapes(towers.CLIP(config))
    if name in ("SD1 text", "SD2 text"):
        raw = SD1_TEXT if name == "SD1 text" else OPEN_H_TEXT
        module = towers.TextTower(towers.TextConfig.from_dict(raw), projection=False)
        return "text_encoder", networks.shapes(module)
    if name == "TAESD":
        module = tiny_autoencoder.TinyAutoencoder(tiny_autoencoder.TinyConfig())
        return "tiny_autoencoder", networks.shapes(module)
    if name == "SD VAE":
        module = vae.AutoencoderKL(vae.VaeConfig.from_dict(SD_VAE))
        return "vae", networks.shapes(module)
    config = unet.UNetConfig.from_dict(SD1_UNET if name == "SD1.5 UNet" else SD2_UNET)
    return "unet", networks.shapes(unet.UNet(config))


def assert_each_read_once(shapes, target, kind, ignored=0):
    """Every tensor is read exactly once, and every leaf is filled by it."""
    found = pretrained.compare(shapes, target, kind)
    assert not (found.unread or found.missing or found.doubled or found.differing)
    parts = collections.defaultdict(list)
    for origin in found.origins.values():
        parts[origin.name].append(origin.part)
    for name, used in parts.items():
        assert sorted(used) == [(i, len(used)) for i in range(len(used))], name
    assert len(shapes) - len(parts) == ignored
    assert found.origins.keys() == trees.flatten(target).keys()
    values = sum(int(np.prod(shapes[name], dtype=np.int64)) for name in parts)
    assert values == trees.num_params(target)


@pytest.mark.parametrize("name", COUNTS)
def test_every_published_key_is_read_exactly_once(name):
    kind, target = ours(name)
    shapes = theirs(name)
    assert trees.num_params(target) == COUNTS[name]
    buffers = [key for key in shapes if key.endswith("position_ids")]
    assert_each_read_once(shapes, target, kind, ignored=len(buffers))
    # Negative controls: a key too many, one too few, one of another shape.
    first = next(iter(shapes))
    for wrong in (
        shapes | {"extra.weight": (1,)},
        {key: shape for key, shape in shapes.items() if key != first},
        shapes | {first: (*shapes[first], 2)},
    ):
        with pytest.raises(ValueError, match=r"extra\.weight|" + first):
            pretrained.match(wrong, target, kind)


def test_another_architecture_is_refused():
    kind, target = ours("SD1.5 UNet")
    with pytest.raises(ValueError, match="of another shape") as caught:
        pretrained.match(theirs("SD2 UNet"), target, kind)
    assert "attn2.to_k" in str(caught.value) and "(320, 1024)" in str(caught.value)


SINGLE = {
    "unet": ("SD1.5 UNet", "SD2 UNet"),
    "vae": ("SD VAE", "SD VAE"),
    "text_encoder": ("SD1 text", "SD2 text"),
}


def original_checkpoint(generation):
    """{original name: shape} of a whole Stable Diffusion 1 or 2 file."""
    found = {
        "betas": (1000,),
        "sqrt_alphas_cumprod": (1000,),
        "model_ema.decay": (),
        "model_ema.num_updates": (),
        "first_stage_model.loss.logvar": (),
    }
    for kind in ("unet", "vae"):
        shapes = theirs(SINGLE[kind][generation - 1])
        renamed = original_stable_diffusion.names(shapes, kind)
        prefix = original_stable_diffusion.prefixes(kind)[0]
        found |= {prefix + renamed[name]: shape for name, shape in shapes.items()}
    # The autoencoder's attention is written as 1x1 convolutions.
    for name in list(found):
        if ".attn_1." in name and name.endswith("weight") and ".norm." not in name:
            found[name] = (*found[name], 1, 1)
    if generation == 1:
        text = theirs("SD1 text")
        prefix = original_stable_diffusion.TEXT
        ids = {f"{prefix}text_model.embeddings.position_ids": (1, 77)}
        nested = {
            f"{prefix}text_model.{name.removeprefix('text_model.')}": shape
            for name, shape in text.items()
        }
        return found | ids | nested
    text = {
        f"text_model.{name.removeprefix('text_model.')}": shape
        for name, shape in theirs("OpenCLIP ViT-H/14").items()
        if name.startswith("text_model.")
    }
    prefix = original_stable_diffusion.OPEN_TEXT
    fused = original_clip(text | {"logit_scale": ()})
    fused["text_projection"] = (1024, 1024)
    return found | {prefix + name: shape for name, shape in fused.items()}


def original_clip(shapes):
    """{name of CLIP's authors: shape} of the library's names, written out by hand."""
    found = {}
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            continue
        name = name.replace(
            "vision_model.encoder.layers", "visual.transformer.resblocks"
        )
        name = name.replace("text_model.encoder.layers", "transformer.resblocks")
        name = name.replace("vision_model.embeddings.patch_embedding", "visual.conv1")
        name = name.replace("vision_model.embeddings.class_", "visual.class_")
        name = name.replace("text_model.embeddings.token_", "token_")
        name = name.replace("text_model.final_layer_norm", "ln_final")
        for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
            position = f"{tower}.embeddings.position_embedding.weight"
            name = name.replace(position, f"{prefix}positional_embedding")
        name = name.replace("vision_model.pre_layrnorm", "visual.ln_pre")
        name = name.replace("vision_model.post_layernorm", "visual.ln_post")
        name = name.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2")
        name = name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        if "projection" in name:
            name = {"text": "text_projection", "visual": "visual.proj"}[
                name.split("_")[0]
            ]
            shape = shape[::-1]
        if "self_attn.out_proj" in name:
            name = name.replace("self_attn", "attn")
        if "self_attn" in name:
            block, _, leaf = name.partition(".self_attn.")
            name = f"{block}.attn.in_proj_{leaf.split('.')[1]}"
            shape = (3 * shape[0], *shape[1:])
        found[name] = shape
    return found


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("kind", SINGLE)
def test_every_key_of_a_single_file_checkpoint_is_read_exactly_once(kind, generation):
    shapes = original_checkpoint(generation)
    _, target = ours(SINGLE[kind][generation - 1])
    found = pretrained.compare(shapes, target, kind)
    assert found.layout == "original"
    own = original_stable_diffusion.prefixes(kind)[0]
    spare = len([name for name in shapes if not name.startswith(own)])
    if kind == "vae":
        spare += 1  # the discriminator's
    if kind == "text_encoder":
        # position_ids; or OpenCLIP's last layer, its projection and its temperature.
        spare += 1 if generation == 1 else 12 + 2
    assert_each_read_once(shapes, target, kind, ignored=spare)
    extra = shapes | {f"{own}extra.weight": (1,)}
    with pytest.raises(ValueError, match=r"extra\.weight"):
        pretrained.match(extra, target, kind)
    with pytest.raises(ValueError, match=r"unknown\.weight"):
        pretrained.match(shapes | {"unknown.weight": (1,)}, target, kind)


@pytest.mark.parametrize("generation", [1, 2])
def test_the_configs_of_a_single_file_are_told_from_its_shapes(generation):
    found = original_stable_diffusion.configs(original_checkpoint(generation))
    unet_raw = SD1_UNET if generation == 1 else SD2_UNET
    text_raw = SD1_TEXT if generation == 1 else OPEN_H_TEXT
    wanted = unet.UNetConfig.from_dict(unet_raw | {"sample_size": None})
    assert unet.UNetConfig.from_dict(found["unet"]) == wanted
    assert vae.VaeConfig.from_dict(found["vae"]) == vae.VaeConfig.from_dict(SD_VAE)
    text = towers.TextConfig.from_dict(found["text_encoder"])
    assert text == towers.TextConfig.from_dict(text_raw)
    with pytest.raises(ValueError, match="only Stable Diffusion 1"):
        original_stable_diffusion.configs({"model.diffusion_model.x": (1,)})


@pytest.mark.parametrize("name", CLIPS)
def test_every_key_of_the_authors_own_clip_is_read_exactly_once(name):
    _, target = ours(name)
    shapes = original_clip(theirs(name))
    assert "visual.transformer.resblocks.11.attn.in_proj_weight" in shapes
    constants = {"input_resolution": (), "context_length": (), "vocab_size": ()}
    assert_each_read_once(shapes | constants, target, "clip", ignored=3)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        pretrained.match(shapes | {"extra.weight": (1,)}, target, "clip")
    # One tower alone, out of the file of both.
    for kind, part in (("text_encoder", "text_model"), ("image_encoder", "vision")):
        tower = {
            path: leaf
            for path, leaf in trees.flatten(target).items()
            if path.startswith(part) or (part == "vision" and "visual" in path)
        }
        pretrained.match(shapes, trees.unflatten(tower), kind)


def test_flax_trees_are_read_path_by_path():
    kind, target = ours("SD VAE")
    leaves = {path: tuple(leaf.shape) for path, leaf in trees.flatten(target).items()}
    assert layouts.detect(leaves) == "flax"
    assert_each_read_once(leaves, target, kind)


@pytest.mark.parametrize("generation", [1, 2])
def test_diffusers_own_converter_agrees_with_every_original_name(generation):
    name = "diffusers.loaders.single_file_utils"
    converter = pytest.importorskip(name, exc_type=ImportError)
    # Shapes on the meta device; the marks are the names that the tensors came from.
    for kind, convert, raw in (
        (
            "unet",
            converter.convert_ldm_unet_checkpoint,
            SD1_UNET | {"layers_per_block": 2},
        ),
        ("vae", converter.convert_ldm_vae_checkpoint, SD_VAE),
    ):
        published = theirs(SINGLE[kind][generation - 1])
        renamed = original_stable_diffusion.names(published, kind)
        prefix = original_stable_diffusion.prefixes(kind)[0]
        checkpoint, marks = {}, {}
        for key, shape in published.items():
            tensor = torch.empty(shape, device="meta")
            checkpoint[prefix + renamed[key]] = tensor
            marks[id(tensor)] = key
        settings = raw | {"class_embed_type": None, "addition_embed_type": None}
        found = convert(dict(checkpoint), settings)
        assert found.keys() == published.keys()
        for key, tensor in found.items():
            assert marks[id(tensor)] == key
