"""Transformer and residual CLIPs behind one pair of feature functions."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxanom import record
from jaxanom.models import backbones
from jaxanom.models.checkpoints import sources
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.clip import pair as clip_pair
from jaxanom.models.clip import prompts, shared_prefix, tokenizer, towers

GOLDEN = Path(__file__).resolve().parents[2] / "parity/data/app/clip_tiny_weights.npz"
WIDTH, LENGTH = 64, 12  # released text towers have heads of 64 channels


def text_tensors(rng, vocabulary, joint):
    state = {
        "token_embedding.weight": (vocabulary, WIDTH),
        "positional_embedding": (LENGTH, WIDTH),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
        "text_projection": (WIDTH, joint),
    }
    block = "transformer.resblocks.0"
    state |= {
        f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
        f"{block}.attn.in_proj_bias": (3 * WIDTH,),
        f"{block}.attn.out_proj.weight": (WIDTH, WIDTH),
        f"{block}.attn.out_proj.bias": (WIDTH,),
        f"{block}.mlp.c_fc.weight": (4 * WIDTH, WIDTH),
        f"{block}.mlp.c_fc.bias": (4 * WIDTH,),
        f"{block}.mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
        f"{block}.mlp.c_proj.bias": (WIDTH,),
    }
    for name in ("ln_1", "ln_2"):
        state |= {f"{block}.{name}.{leaf}": (WIDTH,) for leaf in ("weight", "bias")}
    return {name: rng.normal(0, 0.1, shape) for name, shape in state.items()}


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A directory with one weight file under its authors' names, and a tokenizer."""
    folder = tmp_path_factory.mktemp("rn")
    words = tokenizer.train(["a red fox", "a brown bear"], 530, folder / "tokenizer")
    with np.load(GOLDEN) as file:
        state = {k: file[k] for k in file.files if k.startswith("visual.")}
        joint = file["text_projection"].shape[1]
        state["logit_scale"] = file["logit_scale"]
    state |= text_tensors(np.random.default_rng(0), words.vocab_size, joint)
    state = {name: np.asarray(v, np.float32) for name, v in state.items()}
    weights.write(folder / "model.safetensors", state)
    return folder


def features(pair, num_vectors=2):
    template = prompts.parse("{vectors} {name}", num_vectors, pair.tokenizer.words)
    names = pair.tokenizer.words(["red fox", "bear"])
    laid = prompts.make_layout(template, names, pair.tokenizer, num_vectors)
    vectors = np.zeros((1, num_vectors, pair.text_config.hidden_size), np.float32)
    return shared_prefix.text_features(
        pair.text_params, pair.text_config, shared_prefix.cut(laid), vectors
    )


def test_a_residual_clip_is_read_from_its_authors_names(residual):
    pair = clip_pair.load(residual)
    assert pair.text_config.num_hidden_layers == 1
    assert pair.text_config.hidden_size == WIDTH
    image = np.random.default_rng(1).random((2, 64, 64, 3)).astype(np.float32)
    pooled, patches = jax.jit(pair.encode_image)(pair.image_params, image)
    text = features(pair)
    assert pooled.shape[-1] == patches.shape[-1] == text.shape[-1] == pair.feature_width
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=-1), 1, rtol=1e-5)
    assert float(pair.logit_scale) == pytest.approx(np.log(100), rel=1e-6)


def test_the_text_tower_beside_it_is_the_module_on_the_same_weights(residual):
    pair = clip_pair.load(residual)
    ids = pair.tokenizer.encode(["red fox", "bear"], 8)
    module = towers.TextTower(pair.text_config)
    wanted = jax.jit(module.apply)({"params": pair.text_params}, ids).text_features
    layout = prompts.Layout(
        ids, np.full_like(ids, -1), (ids == pair.tokenizer.eos_id).argmax(1), 1
    )
    found = shared_prefix.text_features(
        pair.text_params,
        pair.text_config,
        shared_prefix.cut(layout),
        np.zeros((1, 1, WIDTH), np.float32),
    )
    np.testing.assert_allclose(found[0], wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_transformer_clip_has_the_same_two_functions(tiny_backbone):
    pair = clip_pair.load(tiny_backbone)
    image = np.random.default_rng(1).random((2, 16, 24, 3)).astype(np.float32)
    pooled, patches = jax.jit(pair.encode_image)(pair.image_params, image)
    assert patches.shape[:3] == (2, 2, 3)
    assert pooled.shape[-1] == features(pair).shape[-1] == pair.feature_width
    np.testing.assert_allclose(np.linalg.norm(patches, axis=-1), 1, rtol=1e-5)
    # The tower's own answers, none of them swapped or left unprojected.
    config = backbones.load_clip(tiny_backbone).module.config.towers()[1]
    tower, variables = towers.ImageTower(config), {"params": pair.image_params}
    output = tower.apply(variables, image)
    wanted = output.image_features
    wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
    np.testing.assert_allclose(pooled, wanted, atol=1e-5)
    for row, column in np.ndindex(2, 3):
        token = output.patch_tokens[:, 3 * row + column]
        wanted = tower.apply(variables, token, method="project_tokens")
        wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
        np.testing.assert_allclose(patches[:, row, column], wanted, atol=1e-5)
    spread = np.abs(patches - patches[:, :1, :1]).max(axis=(0, 3))
    assert np.sort(spread.ravel())[1] > 1e-2  # places differ, so their order shows


def test_one_file_is_computed_with_the_activation_asked_for(clip_file, tmp_path):
    """As if a config.json beside it said so; by default with OpenAI's."""
    image = np.random.default_rng(1).random((2, 16, 16, 3)).astype(np.float32)

    def answers(path, hidden_act=""):
        pair = clip_pair.load(path, loading=sources.Loading(hidden_act=hidden_act))
        return features(pair), pair.encode_image(pair.image_params, image)[0]

    beside = shutil.copytree(clip_file.parent, tmp_path / "told") / clip_file.name
    config = sources.find(clip_file, (".",), "clip").config
    for name in ("gelu", "quick_gelu"):
        for tower in ("text_config", "vision_config"):
            config[tower]["hidden_act"] = name
        record.write_json(beside.parent / "config.json", config)
        for found, wanted in zip(
            answers(clip_file, name), answers(beside), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)
    for found, wanted, other in zip(
        answers(clip_file),
        answers(clip_file, "quick_gelu"),
        answers(clip_file, "gelu"),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)
        assert np.abs(found - other).max() > 1e-3


def test_a_residual_clip_has_the_activation_asked_for(residual):
    for name in ("", "gelu"):
        pair = clip_pair.load(residual, loading=sources.Loading(hidden_act=name))
        assert pair.text_config.hidden_act == (name or "quick_gelu")


def test_a_tokenizer_of_another_tower_is_refused(residual, tiny_backbone, tmp_path):
    path = tmp_path / "rn"
    path.mkdir()
    (path / "model.safetensors").symlink_to(residual / "model.safetensors")
    (path / "tokenizer").symlink_to(Path(tiny_backbone) / "tokenizer")
    with pytest.raises(ValueError, match=r"has \d+ ids and its text tower \d+"):
        clip_pair.load(path)
