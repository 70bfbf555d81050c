"""Keys that say how published weights are read, of every method that reads any."""

import shutil

import jax
import numpy as np
import pytest

from jaxanom.jobs import config_file, prepare
from jaxanom.methods.adp import model
from jaxanom.methods.app import parts
from jaxanom.models.checkpoints.formats import weights

SMALL = {
    "adp/foundry.py": {
        "adp.feature_layers": (0, 1),
        "adp.windows": (1, 2),
        "adp.map_size": 4,
    },
    "app/foundry.py": {"app.num_vectors": 2},
    "bayes_pfl/foundry.py": {"bayes_pfl.layers": (1,), "data.held_out": ()},
    "defect_generation/foundry.py": {},
    "pretraining/unet.py": {
        "pretraining.block_out_channels": (8,),
        "pretraining.num_heads": 2,
    },
}


def config_of(recipe, directory, **keys):
    config = config_file.load(f"configs/{recipe}:smoke")
    for key, value in SMALL[recipe].items():
        section, name = key.split(".")
        config[section][name] = value
    config.data.image_size = 16
    config.data.categories = ("pill",)
    if "model" in config:
        section = config.model
        section.directory = str(directory)
    else:
        section = config.pretraining
        section.autoencoder = section.text_encoder = str(directory)
    for key, value in keys.items():
        assert key in section
        section[key] = value
    return config


@pytest.fixture(scope="module")
def halves(tiny_backbone, tmp_path_factory):
    """The tiny backbone in float16, under the names of that variant alone."""
    folder = tmp_path_factory.mktemp("fp16") / "backbone"
    shutil.copytree(tiny_backbone, folder)
    for path in folder.rglob("*.safetensors"):
        half = path.with_suffix(".fp16.safetensors")
        whole = weights.read(path).items()
        weights.write(half, {name: leaf.astype(np.float16) for name, leaf in whole})
        path.unlink()
    return folder


@pytest.mark.parametrize("recipe", SMALL)
def test_a_checkpoint_of_half_precision_is_read_by_its_variant(recipe, halves):
    with pytest.raises(ValueError, match=r"config\.model\.variant.*variant='fp16'"):
        prepare.prepare(config_of(recipe, halves))
    prepare.prepare(config_of(recipe, halves, variant="fp16"))


@pytest.mark.parametrize(
    ("recipe", "read"),
    [
        ("defect_generation/foundry.py", lambda frozen: frozen["contexts"]["defect"]),
        ("pretraining/unet.py", lambda frozen: frozen["states"]),
    ],
)
def test_contexts_are_encoded_with_the_activation_asked_for(
    recipe, read, tiny_backbone
):
    states = []
    for name in ("", "gelu"):
        config = config_of(recipe, tiny_backbone, clip_act=name)
        method = prepare.prepare(config).method
        states.append(read(method.init(jax.random.key(0))[1]))
    assert np.abs(states[1] - states[0]).max() > 1e-4


def test_towers_of_app_have_the_activation_asked_for(clip_file):
    image = np.random.default_rng(0).random((1, 16, 16, 3)).astype(np.float32)
    features = []
    for name in ("", "gelu"):
        config = config_of("app/foundry.py", clip_file, clip_act=name)
        pair = parts.assemble(config, prepare.prepare(config).dataset).pair
        assert pair.text_config.hidden_act == (name or "quick_gelu")
        features.append(jax.jit(pair.encode_image)(pair.image_params, image)[0])
    assert np.abs(features[1] - features[0]).max() > 1e-3


def test_towers_of_adp_have_the_activation_asked_for(tiny_backbone):
    config = config_of("adp/foundry.py", tiny_backbone, clip_act="gelu")
    towers, _ = model.load(config.model, 0)
    for tower in (towers.clip_image, towers.clip_text, towers.text):
        assert tower.config.hidden_act == "gelu"


def test_an_activation_that_is_not_known_is_named_with_its_key(tiny_backbone):
    config = config_of("app/foundry.py", tiny_backbone, clip_act="relu")
    with pytest.raises(ValueError, match=r"config\.model\.clip_act='relu'.*'gelu'"):
        prepare.prepare(config)
