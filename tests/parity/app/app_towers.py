"""The tiny CLIP of the golden arrays on our parameter trees."""

from typing import NamedTuple

import app_goldens as goldens
import jax.numpy as jnp
import numpy as np

from jaxanom import trees
from jaxanom.models.clip import prompts, resnet
from jaxanom.models.clip import towers as clip


class Towers(NamedTuple):
    """Everything but the particles and the prior network."""

    text_config: clip.TextConfig
    text_params: dict
    image_config: resnet.ResNetConfig
    image_params: dict
    layout: prompts.Layout
    logit_scale: float


def load(dtype) -> Towers:
    said, state = goldens.settings(), goldens.load("clip_tiny_weights")
    state = {name: np.asarray(value, dtype) for name, value in state.items()}
    image_config = resnet.config_from_published(
        state,
        num_heads=max(1, said["vwidth"] * 32 // 64),
        image_mean=tuple(goldens.load("batches")["pixel_mean"].tolist()),
        image_std=tuple(goldens.load("batches")["pixel_std"].tolist()),
    )
    text_config = clip.TextConfig(
        vocab_size=said["V"],
        hidden_size=said["width"],
        intermediate_size=4 * said["width"],
        projection_dim=said["embed"],
        num_hidden_layers=said["layers"],
        num_attention_heads=said["heads"],
        max_position_embeddings=said["L"],
        bos_token_id=said["V"] - 2,
        eos_token_id=said["V"] - 1,
        pad_token_id=0,
    )
    return Towers(
        text_config,
        _text_params(state, said["layers"]),
        image_config,
        resnet.params_from_published(state),
        layout(said["n_ctx"]),
        state["logit_scale"],
    )


def layout(num_vectors: int) -> prompts.Layout:
    """Of the C sentences, from their tokens: the vectors follow the start token."""
    arrays = goldens.load("prompt_learner_init")
    ids = arrays["tokenized_prompts"][: len(arrays["name_lens"])]
    slots = np.full_like(ids, -1)
    slots[:, 1 : 1 + num_vectors] = np.arange(num_vectors)
    return prompts.Layout(
        input_ids=ids,
        slots=slots,
        eos_positions=ids.argmax(1).astype(np.int32),
        num_vectors=num_vectors,
    )


def _text_params(state, num_layers):
    flat = {
        "text_model/embeddings/token_embedding/embedding": state[
            "token_embedding.weight"
        ],
        "text_model/embeddings/position_embedding/embedding": state[
            "positional_embedding"
        ],
        "text_model/final_layer_norm/scale": state["ln_final.weight"],
        "text_model/final_layer_norm/bias": state["ln_final.bias"],
        "text_projection/kernel": state["text_projection"],
    }
    for number in range(num_layers):
        block = f"transformer.resblocks.{number}"
        layer = f"text_model/encoder/layers/{number}"
        for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2")):
            flat[f"{layer}/{ours}/scale"] = state[f"{block}.{theirs}.weight"]
            flat[f"{layer}/{ours}/bias"] = state[f"{block}.{theirs}.bias"]
        for ours, theirs in (
            ("self_attn/out_proj", "attn.out_proj"),
            ("mlp/fc1", "mlp.c_fc"),
            ("mlp/fc2", "mlp.c_proj"),
        ):
            flat[f"{layer}/{ours}/kernel"] = state[f"{block}.{theirs}.weight"].T
            flat[f"{layer}/{ours}/bias"] = state[f"{block}.{theirs}.bias"]
        kernels = np.split(state[f"{block}.attn.in_proj_weight"], 3)
        biases = np.split(state[f"{block}.attn.in_proj_bias"], 3)
        for name, kernel, bias in zip("qkv", kernels, biases, strict=True):
            flat[f"{layer}/self_attn/{name}_proj/kernel"] = kernel.T
            flat[f"{layer}/self_attn/{name}_proj/bias"] = bias
    return trees.unflatten(flat)


def pixels(dtype) -> np.ndarray:
    """[nb, b, H, W, 3]: normalised in float32, then cast, as the reference does."""
    arrays = goldens.load("batches")
    found = arrays["images_u8"].astype(np.float32) / np.float32(255)
    found = np.moveaxis(found, 2, -1)
    return ((found - arrays["pixel_mean"]) / arrays["pixel_std"]).astype(dtype)


def image_features(towers: Towers, dtype):
    """[nb, HW + 1, b, v], token 0 pooled, as the golden file has them."""
    module = resnet.ResNetTower(towers.image_config, dtype)
    batches = pixels(dtype)
    flat = batches.reshape(-1, *batches.shape[2:])
    found = module.apply({"params": towers.image_params}, flat, method="encode")
    tokens = jnp.concatenate(
        [found.image_features[:, None], found.patch_tokens], axis=1
    )
    tokens = tokens.reshape(*batches.shape[:2], *tokens.shape[1:])
    return jnp.swapaxes(tokens, 1, 2)
