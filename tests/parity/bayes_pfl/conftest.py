"""Golden arrays of the released Bayes-PFL modules, and our modules on their weights.

All sizes come from the files, so the tests run on any set of the same format:
JAXANOM_PARITY_DIR names a folder with such a set in its subfolder `bayes_pfl`.
"""

import json
import os
import sys
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs.bayes_pfl import base
from jaxanom import trees
from jaxanom.methods import bayes_pfl
from jaxanom.methods.bayes_pfl import (
    distributions,
    features,
    model,
    released,
    sentences,
)
from jaxanom.methods.bayes_pfl import options as settings
from jaxanom.models.clip import towers as clip

sys.path.insert(0, str(Path(__file__).parent))
from to_released import to_released

SHIPPED = Path(__file__).resolve().parents[1] / "data"
DIRECTORY = Path(os.environ.get("JAXANOM_PARITY_DIR") or SHIPPED) / "bayes_pfl"

# Tolerances of the set's README, each relative to the largest magnitude of the array.
FORWARD = 1e-4  # float32 against another order of sums; observed 1e-5
GRADIENT = 1e-3  # observed 2.4e-5
CHANGE = 5e-3  # of a change by some Adam steps, which divide by small numbers


def close(found, wanted, tolerance=FORWARD, what=""):
    """Asserts |found - wanted| <= tolerance * max |wanted|."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape, (what, found.shape, wanted.shape)
    np.testing.assert_allclose(
        found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max(), err_msg=what
    )


class Golden:
    """One set of golden arrays."""

    forward, gradient, change = FORWARD, GRADIENT, CHANGE
    close = staticmethod(close)

    def __init__(self, directory):
        self.directory = directory

    def arrays(self, name):
        """All arrays of a file, by key."""
        with np.load(self.directory / f"{name}.npz") as file:
            return dict(file)

    def json(self, name):
        """A JSON file."""
        return json.loads((self.directory / f"{name}.json").read_text())

    @cached_property
    def sizes(self):
        """config.json with attribute access."""
        return SimpleNamespace(**self.json("config"))

    @cached_property
    def options(self):
        s = self.sizes
        return settings.read_options(base.config().bayes_pfl)._replace(
            num_prompts=s.B,
            num_context=s.P,
            num_states=s.Q,
            num_flow_steps=s.K,
            layers=tuple(s.features),
            draws_test=s.R,
            sigma=0.0,
        )

    @cached_property
    def clip_weights(self):
        return {
            name.removeprefix("clip/"): value
            for name, value in self.arrays("clip_weights").items()
        }

    @cached_property
    def towers(self):
        s, found = self.sizes, self.clip_weights
        vision = clip.VisionConfig(
            hidden_size=s.vision_width,
            intermediate_size=found[
                "visual.transformer.resblocks.0.mlp.c_fc.bias"
            ].shape[0],
            num_hidden_layers=s.vlayers,
            num_attention_heads=s.vheads,
            image_size=s.image,
            patch_size=s.patch,
        )
        text = clip.TextConfig(
            vocab_size=int(found["token_ids"].max()) + 1,
            hidden_size=s.D,
            intermediate_size=found["transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
            num_hidden_layers=s.tlayers,
            num_attention_heads=s.theads,
            max_position_embeddings=found["positional_embedding"].shape[0],
        )
        config = clip.ClipConfig(text, vision, projection_dim=s.D)
        return bayes_pfl.build_towers(config, self.options, "float32")

    def network(self, **changes):
        hidden = self.trainable["fuse.compress.weight"].shape[1]
        return model.Network(self.options._replace(**changes), self.sizes.D, hidden)

    @cached_property
    def trainable(self):
        return self.arrays("trainable_params")

    def params(self, tensors=None, **changes):
        """Our tree of released tensors."""
        network = self.network(**changes)
        target = model.init(network, self.sizes.vision_width, jax.random.key(0))
        return released.from_released(tensors or self.trainable, target)

    def by_name(self, tree):
        """Our tree under released names."""
        return to_released(jax.tree.map(np.asarray, tree))

    @cached_property
    def clip_params(self):
        return clip_tree(self.clip_weights)

    def names(self, token_ids, length=None):
        """Names of the sentences [start, placeholder, name..., end, 0...]."""
        ends = np.argmax(token_ids, axis=1)
        words = [row[2:end].tolist() for row, end in zip(token_ids, ends, strict=True)]
        special = SimpleNamespace(
            bos_id=int(token_ids[0, 0]), eos_id=int(token_ids.max()), pad_id=0
        )
        table = self.clip_params["text_model"]["embeddings"]["token_embedding"]
        num_vectors = self.sizes.P + self.sizes.Q
        return sentences.names(words, special, table["embedding"], num_vectors, length)

    def frozen(self, token_ids, length=None):
        return {
            "clip": self.clip_params,
            "names": self.names(token_ids, length)._asdict(),
        }

    @cached_property
    def _look(self):
        tower, layers = self.towers.image, self.options.layers
        return jax.jit(
            lambda params, image: features.look(tower, params, image, layers)
        )

    def features(self, image):
        """Frozen features of images in [0, 1]."""
        return self._look(self.clip_params, image)

    def images(self, normalised):
        """NCHW, normalised -> NHWC in [0, 1]."""
        config = self.towers.image.config
        image = np.moveaxis(normalised, -3, -1)
        return image * np.array(config.image_std, np.float32) + np.array(
            config.image_mean, np.float32
        )

    @staticmethod
    def noise(arrays, prefix="eps_", step=...):
        """Noise of rows [N, D] (or R draws of one image) as [N, 1, D]."""
        return distributions.Noise(
            *(
                arrays[f"{prefix}{name}"][step][:, None]
                for name in ("isd", "iad_normal", "iad_abnormal")
            )
        )


def clip_tree(found):
    """OpenAI's names -> our tree."""
    flat = {
        "visual_projection/kernel": found["visual.proj"],
        "text_projection/kernel": found["text_projection"],
        "vision_model/embeddings/class_embedding": found["visual.class_embedding"],
        "vision_model/embeddings/patch_embedding/kernel": found[
            "visual.conv1.weight"
        ].transpose(2, 3, 1, 0),
    }
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        flat[f"{tower}/embeddings/position_embedding/embedding"] = found[
            f"{prefix}positional_embedding"
        ]
        pre = f"{prefix}transformer.resblocks."
        blocks = [name.removeprefix(pre) for name in found if name.startswith(pre)]
        depth = 1 + max(int(name.split(".")[0]) for name in blocks)
        for i in range(depth):
            ours, theirs = f"{tower}/encoder/layers/{i}", f"{pre}{i}."
            weights = np.split(found[f"{theirs}attn.in_proj_weight"], 3)
            biases = np.split(found[f"{theirs}attn.in_proj_bias"], 3)
            for name, weight, bias in zip("qkv", weights, biases, strict=True):
                flat[f"{ours}/self_attn/{name}_proj/kernel"] = weight.T
                flat[f"{ours}/self_attn/{name}_proj/bias"] = bias
            for name, part in (
                ("self_attn/out_proj", "attn.out_proj"),
                ("mlp/fc1", "mlp.c_fc"),
                ("mlp/fc2", "mlp.c_proj"),
            ):
                flat[f"{ours}/{name}/kernel"] = found[f"{theirs}{part}.weight"].T
                flat[f"{ours}/{name}/bias"] = found[f"{theirs}{part}.bias"]
            for name, part in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2")):
                flat[f"{ours}/{name}/scale"] = found[f"{theirs}{part}.weight"]
                flat[f"{ours}/{name}/bias"] = found[f"{theirs}{part}.bias"]
    for ours, theirs in (
        ("vision_model/pre_layrnorm", "visual.ln_pre"),
        ("vision_model/post_layernorm", "visual.ln_post"),
        ("text_model/final_layer_norm", "ln_final"),
    ):
        flat[f"{ours}/scale"] = found[f"{theirs}.weight"]
        flat[f"{ours}/bias"] = found[f"{theirs}.bias"]
    ids, rows = found["token_ids"], found["token_rows"]
    table = np.zeros((int(ids.max()) + 1, rows.shape[1]), np.float32)
    table[ids] = rows
    flat["text_model/embeddings/token_embedding/embedding"] = table
    return trees.unflatten(flat)


@pytest.fixture(scope="session")
def golden():
    if not (DIRECTORY / "config.json").is_file():
        pytest.skip(f"no golden arrays in {DIRECTORY}")
    return Golden(DIRECTORY)


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield
