"""The published architectures, at their true sizes and small, in torch and in ours.

Weights are drawn, not trained: kernels with variance 1 / fan-in, so that activations
stay of order one through any depth, and no leaf at 0 or 1, so that one that is not read
shows.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

SEED = 0
TEXT_LENGTH = 77

Outputs = dict[str, Any]


class Call(NamedTuple):
    """One use of a network.

    Attributes:
      name: What is called: "encode", "image", ...
      size: Side of the input: pixels, or latent cells for the UNet and the decoder.
    """

    name: str
    size: int = 0


class Subject(NamedTuple):
    """One published architecture at one size.

    Attributes:
      kind: A key of `pretrained.KINDS`.
      config: config.json as far as it differs from the PyTorch class's defaults.
      calls: What is compared.
    """

    kind: str
    config: dict[str, Any]
    calls: tuple[Call, ...]


_TEXT = {"eos_token_id": 49407, "bos_token_id": 49406}
_LARGE_TEXT = _TEXT | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
_LARGE_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_SMALL_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_SMALL_TEXT = _SMALL_TOWER | {
    "vocab_size": 90,
    "bos_token_id": 88,
    "eos_token_id": 89,
    "pad_token_id": 0,
}
# Name -> kind, true config, small config, and (call, true side, small side).
_ARCHITECTURES = {
    "unet sd-1.5": (
        "unet",
        {"sample_size": 64, "cross_attention_dim": 768},
        {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "cross_attention_dim": 24,
        },
        (("predict", 64, 8),),
    ),
    "vae sd": (
        "vae",
        {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "sample_size": 512,
        },
        {
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            "sample_size": 16,
        },
        (("encode", 512, 16), ("decode", 64, 8)),
    ),
    "clip vit-l/14-336": (
        "clip",
        {
            "projection_dim": 768,
            "text_config": _LARGE_TEXT,
            "vision_config": _LARGE_VISION,
        },
        {
            "projection_dim": 24,
            "text_config": _SMALL_TEXT,
            "vision_config": _SMALL_TOWER | {"image_size": 28, "patch_size": 14},
        },
        (("image", 518, 42), ("image", 336, 28), ("text", 0, 0)),
    ),
    "clip vit-b/16": (
        "clip",
        {
            "projection_dim": 512,
            "text_config": _TEXT,
            "vision_config": {"patch_size": 16},
        },
        None,
        (("image", 224, 0), ("text", 0, 0)),
    ),
    "text tower sd-1": ("text_encoder", _LARGE_TEXT, _SMALL_TEXT, (("text", 0, 0),)),
}
TRUE = {
    name: Subject(kind, config, tuple(Call(call, side) for call, side, _ in calls))
    for name, (kind, config, _, calls) in _ARCHITECTURES.items()
}
SMALL = {
    name: Subject(kind, config, tuple(Call(call, side) for call, _, side in calls))
    for name, (kind, _, config, calls) in _ARCHITECTURES.items()
    if config is not None
}


def inputs(subject: Subject, call: Call) -> tuple[np.ndarray, ...]:
    """Draws the inputs of a call, as ours take them; the same in every process."""
    rng = np.random.default_rng(SEED)
    config, size = subject.config, call.size
    if call.name == "predict":
        context = (1, TEXT_LENGTH, config["cross_attention_dim"])
        return (
            rng.standard_normal((1, size, size, 4), np.float32),
            np.array([481], np.int32),
            rng.standard_normal(context, np.float32),
        )
    if call.name == "decode":
        return (rng.standard_normal((1, size, size, 4), np.float32),)
    if call.name in ("encode", "image"):
        return (rng.uniform(size=(1, size, size, 3)).astype(np.float32),)
    text = config.get("text_config", config)
    end = text["eos_token_id"]
    ids = rng.integers(1, text["bos_token_id"], (2, TEXT_LENGTH)).astype(np.int32)
    ids[:, 0] = text["bos_token_id"]
    ids[0, 9:], ids[1, -1] = end, end
    return (ids,)


def torch_model(subject: Subject) -> Any:
    """Builds the PyTorch class with drawn weights."""
    import diffusers
    import torch
    import transformers

    config = dict(subject.config)
    if subject.kind == "unet":
        model = diffusers.UNet2DConditionModel(**config)
    elif subject.kind == "vae":
        model = diffusers.AutoencoderKL(**config)
    elif subject.kind == "clip":
        model = transformers.CLIPModel(transformers.CLIPConfig(**config))
    else:
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = "norm" in name and name.endswith("weight")
            fan_in = math.prod(parameter.shape[1:])
            std = 1 / math.sqrt(fan_in) if parameter.ndim > 1 else 0.1
            parameter.normal_(1.0 if is_scale else 0.0, std, generator=generator)
            if name == "logit_scale":
                parameter.fill_(2.6)
    return model.eval()


def torch_call(model: Any, subject: Subject, call: Call) -> Callable[[], Outputs]:
    """Returns () -> outputs of the PyTorch class, in our layout and scaling."""
    import torch

    arrays = inputs(subject, call)
    nchw = [torch.from_numpy(np.moveaxis(arrays[0], -1, 1).copy())]
    nchw += [torch.from_numpy(array) for array in arrays[1:]]

    def last(tensor: Any) -> np.ndarray:
        return np.moveaxis(tensor.numpy(), 1, -1)

    def predict() -> Outputs:
        return {"noise_pred": last(model(*nchw).sample)}

    def encode() -> Outputs:
        posterior = model.encode(2 * nchw[0] - 1).latent_dist
        factor = model.config.scaling_factor
        return {
            "mean": last(posterior.mean) * factor,
            "log_variance": last(posterior.logvar) + 2 * math.log(factor),
        }

    def decode() -> Outputs:
        sample = model.decode(nchw[0] / model.config.scaling_factor).sample
        return {"image": last(sample) / 2 + 0.5}

    def image() -> Outputs:
        from jaxanom.models.clip import towers

        norms = towers.VisionConfig()
        mean, std = (
            torch.tensor(x)[:, None, None] for x in (norms.image_mean, norms.image_std)
        )
        outputs = model.vision_model(
            (nchw[0] - mean) / std, interpolate_pos_encoding=True
        )
        return {
            "image_features": model.visual_projection(outputs.pooler_output).numpy(),
            "pooled": outputs.pooler_output.numpy(),
            "patch_tokens": outputs.last_hidden_state[:, 1:].numpy(),
        }

    def text() -> Outputs:
        found = model.text_model(torch.from_numpy(arrays[0]))
        outputs = {
            "last_hidden_state": found.last_hidden_state.numpy(),
            "pooled": found.pooler_output.numpy(),
        }
        if subject.kind == "clip":
            features = model.text_projection(found.pooler_output)
            outputs["text_features"] = features.numpy()
        return outputs

    functions = {f.__name__: f for f in (predict, encode, decode, image, text)}
    return torch.no_grad()(functions[call.name])


def our_call(
    module: nn.Module, subject: Subject, call: Call
) -> Callable[..., Mapping[str, Any]]:
    """Returns (params, *inputs) -> outputs under the names of `torch_call`."""
    if call.name == "text":
        method = "encode_text" if subject.kind == "clip" else None
    else:
        method = {"image": "encode_image", "predict": None}.get(call.name, call.name)
    keywords = {"clip": False} if call.name == "decode" else {}

    def apply(params: Any, *arrays: Any) -> Mapping[str, Any]:
        output = module.apply({"params": params}, *arrays, method=method, **keywords)
        if call.name in ("predict", "decode"):
            return {{"predict": "noise_pred", "decode": "image"}[call.name]: output}
        fields = output._asdict()
        return {
            name: value
            for name, value in fields.items()
            if value is not None and name != "hidden_states"
        }

    return apply
