"""Networks made of published configs: sizes of the published models."""

import pytest

from jaxanom import trees
from jaxanom.models import networks

# config.json of the published models, as far as it differs from the classes' defaults.
CLIP_LARGE = {
    "projection_dim": 768,
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}
PUBLISHED = {
    "Stable Diffusion 1.5, UNet": (
        "unet",
        {"sample_size": 64, "cross_attention_dim": 768},
        859_520_964,
    ),
    "Stable Diffusion, autoencoder": (
        "vae",
        {
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "sample_size": 512,
        },
        83_653_863,
    ),
    "ViT-L/14 at 336 px": ("clip", CLIP_LARGE, 427_944_193),
    "ViT-B/16": ("clip", {"vision_config": {"patch_size": 16}}, 149_620_737),
    "Stable Diffusion 1, text tower": (
        "text_encoder",
        CLIP_LARGE["text_config"],
        123_060_480,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_number_of_parameters(name):
    kind, config, wanted = PUBLISHED[name]
    assert trees.num_params(networks.of(kind, config).shapes()) == wanted


@pytest.mark.parametrize(
    ("name", "has_projection"),
    [("CLIPVisionModel", False), ("CLIPVisionModelWithProjection", True)],
)
def test_the_class_name_tells_whether_there_is_a_projection(name, has_projection):
    config = {"num_hidden_layers": 1, "architectures": [name]}
    shapes = networks.of("image_encoder", config).shapes()
    assert ("visual_projection" in shapes) == has_projection
    config["architectures"] = [name.replace("Vision", "Text")]
    shapes = networks.of("text_encoder", config).shapes()
    assert ("text_projection" in shapes) == (has_projection)


def test_calls_follow_the_size_of_the_image():
    config = PUBLISHED["Stable Diffusion 1.5, UNet"][1]
    ((title, _), inputs) = next(iter(networks.of("unet", config).calls.items()))
    assert title == "64x64 latents, 77 tokens" and inputs[0].shape == (1, 64, 64, 4)
    calls = networks.of("unet", config, image_size=768).calls
    assert next(iter(calls))[0] == "96x96 latents, 77 tokens"
