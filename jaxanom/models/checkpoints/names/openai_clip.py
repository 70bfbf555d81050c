"""The names that CLIP's authors gave its weights, which OpenCLIP kept.

Queries, keys and values are one tensor, `attn.in_proj_weight` [3 D, D]; the two maps
into the joint space multiply from the right, [D, K].
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxanom.errors import UserError

ASSUMED = (
    "quick_gelu, as in OpenAI's own weights; most of OpenCLIP's have gelu, which no "
    "tensor tells: set clip_act='gelu' (config.model.clip_act, "
    "config.bayes_pfl.clip_act)"
)
_BLOCKS = "transformer.resblocks."
_WHOLE = {
    "logit_scale": "logit_scale",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_FUSED = {f"self_attn.{name}_proj": i for i, name in enumerate("qkv")}
# Sizes and the causal mask, which released files hold among the weights.
_CONSTANTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_TEXT = (
    r"transformer\.resblocks\..*",
    r"token_embedding\.weight",
    "positional_embedding",
    r"ln_final\..*",
    "text_projection",
)


class Place(NamedTuple):
    """A tensor, the run of its rows, and whether it is [inputs, outputs]."""

    name: str
    part: tuple[int, int] = (0, 1)
    input_first: bool = False


def recognises(names: Collection[str]) -> bool:
    """Says whether a file's tensor names are these."""
    return any(
        re.match(r"(visual\.)?transformer\.resblocks\.\d+\.", name) for name in names
    )


def place(published: str) -> Place:
    """Returns where the tensor of a published name lies.

    Args:
      published: A name in transformers' CLIPModel.

    Raises:
      UserError: the model has no such tensor.
    """
    if published in _WHOLE:
        projection = published.endswith("_projection.weight")
        return Place(_WHOLE[published], input_first=projection)
    parts = _LAYER.fullmatch(published)
    if parts is None:
        raise UserError(f"{published} has no name in the original CLIP")
    tower, number, module, leaf = parts.groups()
    block = f"{'visual.' if tower == 'vision' else ''}{_BLOCKS}{number}."
    if module in _FUSED:
        return Place(f"{block}attn.in_proj_{leaf}", (_FUSED[module], 3))
    return Place(f"{block}{_IN_LAYER[module]}.{leaf}")


def left_out(kind: str) -> list[str]:
    """Returns patterns of what a file of both towers holds beside one of them."""
    patterns = list(_CONSTANTS)
    if kind == "text_encoder":
        patterns += [r"visual\..*", "logit_scale", "text_projection"]
    if kind == "image_encoder":
        patterns += [*_TEXT, "logit_scale"]
    return patterns


def config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the sizes of both towers off the shapes, as a transformers config.json.

    Their activation is what `ASSUMED` says.

    Args:
      shapes: {original name: shape} of a whole file.

    Raises:
      UserError: a tensor that tells a size is missing.
    """
    if "visual.layer1.0.conv1.weight" in shapes:
        raise UserError("the image tower is a ResNet; only the ViT towers are here")
    needed = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")
    needed += ("token_embedding.weight", "positional_embedding", "ln_final.weight")
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise UserError(f"{missing} are missing; wanted both towers of a CLIP")
    width, _, patch, _ = shapes["visual.conv1.weight"]
    side = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    vision = _tower(shapes, "visual.", width)
    return {
        "projection_dim": shapes["visual.proj"][1],
        "text_config": text_config(shapes),
        "vision_config": {**vision, "patch_size": patch, "image_size": side * patch},
    }


def text_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the sizes of the text tower alone; see `config`."""
    vocabulary, width = shapes["token_embedding.weight"]
    return {
        **_tower(shapes, "", width),
        "vocab_size": vocabulary,
        "max_position_embeddings": shapes["positional_embedding"][0],
        # Start and end of text are the last two of CLIP's vocabulary.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


def _tower(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, width: int
) -> dict[str, Any]:
    first = f"{prefix}{_BLOCKS}0.mlp.c_fc.weight"
    numbers = {
        int(name.removeprefix(f"{prefix}{_BLOCKS}").split(".")[0])
        for name in shapes
        if name.startswith(f"{prefix}{_BLOCKS}")
    }
    if first not in shapes:
        raise UserError(f"{first} is missing; wanted both towers of a CLIP")
    if width % 64 or width == 1280:
        # ViT-H of OpenCLIP has heads of 80, ViT-g of 88: no shape says so.
        raise UserError(
            f"the number of heads of a tower of width {width} cannot be told from its "
            "weights; put a config.json of transformers' CLIPModel beside them"
        )
    return {
        "hidden_size": width,
        "intermediate_size": shapes[first][0],
        "num_hidden_layers": len(numbers),
        "num_attention_heads": width // 64,
        "hidden_act": "quick_gelu",
    }
