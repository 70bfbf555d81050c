"""The names of latent-diffusion's own checkpoints: one file, all networks.

`model.diffusion_model.` is the UNet, `first_stage_model.` the autoencoder and
`cond_stage_model.` the text tower: in Stable Diffusion 1 under transformers' names, in
2 under OpenCLIP's. The networks number their blocks in one list; diffusers nests them
by resolution.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from jaxanom.errors import UserError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT, OPEN_TEXT = "cond_stage_model.transformer.", "cond_stage_model.model."
_PREFIXES = {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model."}
_VAE_ENTRY = (512, 4, 3, 3)
_VAE_CONFIG = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
ASSUMED = (
    "scaling_factor=0.18215 of Stable Diffusion 1 and 2, which no tensor tells; for "
    "SDXL's autoencoder, of the same shapes, put its config.json beside the file"
)
# What training left beside the networks: averages, noise levels, discriminators.
_TRAINING = (
    r"model_ema\..*",
    r"(first_stage_model\.)?loss\..*",
    r"(first_stage_model\.)?model_ema\..*",
    r"(betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_.*|posterior_.*)",
    r"(lvlb_weights|logvar|scale_factor|global_step)",
)
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)")
_VAE_WORDS = (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    (".group_norm.", ".norm."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
    (".resnets.", ".block."),
)


def recognises(names: Collection[str]) -> bool:
    """Says whether a file's tensor names are these; a lone autoencoder counts too."""
    lone = "encoder.down.0.block.0.norm1.weight"
    return lone in names or any(
        name.startswith(tuple(_PREFIXES.values())) for name in names
    )


def prefixes(kind: str) -> tuple[str, ...]:
    """Returns the prefixes a network's names may have in such a file."""
    if kind not in _PREFIXES:
        raise UserError(
            f"a Stable Diffusion checkpoint has no {kind}; it has {[*_PREFIXES]}"
        )
    return (_PREFIXES[kind], "") if kind == "vae" else (_PREFIXES[kind],)


def names(published: Collection[str], kind: str) -> dict[str, str]:
    """Returns {published name: original name} of a whole network, without prefix.

    Args:
      published: Every name of the network; how many blocks it has is read off them.
      kind: "unet", "vae" or "text_encoder"; the last keeps its names here.

    Raises:
      UserError: the checkpoint has no such network.
    """
    prefixes(kind)
    if kind == "unet":
        return _unet_names(published)
    if kind == "vae":
        last = max(_numbers(published, r"encoder\.down_blocks\.(\d+)\."), default=0)
        return {name: _vae_name(name, last) for name in published}
    return {name: name for name in published}


def left_out(kind: str, leaves: Collection[str]) -> list[str]:
    """Returns patterns of what a checkpoint holds beside one network.

    Stable Diffusion 2 conditions on the states before OpenCLIP's last layer. diffusers
    drops that layer; where the tower wanted ends one layer early, it is left out here.
    """
    others = [prefix for name, prefix in _PREFIXES.items() if name != kind]
    patterns = [*_TRAINING, *(re.escape(prefix) + ".*" for prefix in others)]
    if kind == "text_encoder":
        numbers = _numbers(leaves, r"text_model/encoder/layers/(\d+)/")
        unused = max(numbers, default=-1) + 1
        text = re.escape(OPEN_TEXT)
        patterns += [
            rf"{text}transformer\.resblocks\.{unused}\..*",
            rf"{text}(text_projection|logit_scale|attn_mask)",
            r"cond_stage_model\.logit_scale",
        ]
    return patterns


def is_lone_autoencoder(names: Collection[str]) -> bool:
    """Says whether a file of these names holds neither a UNet nor a text tower."""
    others = (_PREFIXES["unet"], _PREFIXES["text_encoder"])
    return not any(name.startswith(others) for name in names)


def configs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """Tells Stable Diffusion 1 from 2 by shapes and returns their config.json dicts.

    Args:
      shapes: {original name: shape} of a whole checkpoint, or of an autoencoder.

    Returns:
      {"unet": ..., "vae": ..., "text_encoder": ...}; of an autoencoder "vae" alone,
      and what `ASSUMED` says.

    Raises:
      UserError: it is neither; the message says what was found.
    """
    if is_lone_autoencoder(shapes):
        name = "decoder.conv_in.weight"
        entry = shapes.get(name, shapes.get(VAE + name))
        if entry != _VAE_ENTRY:
            raise UserError(
                f"{name} is {entry}; of autoencoders on their own only Stable "
                f"Diffusion's, {_VAE_ENTRY}, is known. Put the config.json of "
                "diffusers' AutoencoderKL beside the file"
            )
        return {"vae": _VAE_CONFIG}
    probe = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    context, entry = shapes.get(probe), shapes.get(f"{UNET}input_blocks.0.0.weight")
    if context not in ((320, 768), (320, 1024)) or entry is None:
        raise UserError(
            f"{probe} is {context}; only Stable Diffusion 1 (320, 768) and 2 "
            "(320, 1024) are known as single files. Convert others to a diffusers "
            "directory"
        )
    width = context[1]
    second = width == 1024
    unet = {
        "in_channels": entry[1],
        "cross_attention_dim": width,
        # diffusers' misnomer: this is the number of heads.
        "attention_head_dim": [5, 10, 20, 20] if second else 8,
        "use_linear_projection": second,
    }
    text = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 64,
        "num_hidden_layers": 23 if second else 12,
        "hidden_act": "gelu" if second else "quick_gelu",
        "projection_dim": 512 if second else 768,
    }
    return {"unet": unet, "vae": _VAE_CONFIG, "text_encoder": text}


def scheduler(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the scheduler_config.json that Stable Diffusion 1 was trained with.

    Args:
      shapes: As in `configs`.

    Raises:
      UserError: it is Stable Diffusion 2, of which one half predicts noise and the
        other velocities: no shape tells which. Or it is an autoencoder.
    """
    if is_lone_autoencoder(shapes):
        raise UserError(
            "an autoencoder on its own has no noise levels; set config.model.scheduler "
            "to a folder with scheduler_config.json"
        )
    if configs(shapes)["unet"]["cross_attention_dim"] == 1024:
        raise UserError(
            "a Stable Diffusion 2 file does not say whether it predicts noise or "
            "velocities; set config.model.scheduler to a folder with "
            "scheduler_config.json that says prediction_type"
        )
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
    }


def _unet_names(published: Collection[str]) -> dict[str, str]:
    numbers = _numbers(published, r"down_blocks\.0\.resnets\.(\d+)\.")
    per_block = max(numbers, default=0) + 1
    attending = set(_numbers(published, r"up_blocks\.(\d+)\.attentions\."))
    renamed = {}
    for name in published:
        block = _BLOCK.fullmatch(name)
        if block is None:
            stem = next((end for end in _UNET_ENDS if name.startswith(f"{end}.")), "")
            rest = _in_residual(name.removeprefix(f"{stem}."))
            renamed[name] = f"{_UNET_ENDS[stem]}.{rest}" if stem else name
            continue
        way, level, part, index, rest = block.groups()
        place = int(level) * (per_block + 1) + int(index)
        slot = 1 if part == "attentions" else 0
        if way == "down":
            place += 1
            if part == "downsamplers":
                place += per_block
                rest = f"op.{rest.partition('.')[2]}"
        elif part == "upsamplers":
            place += per_block
            slot = 2 if int(level) in attending else 1
        if part == "resnets":
            rest = _in_residual(rest)
        side = "input" if way == "down" else "output"
        renamed[name] = f"{side}_blocks.{place}.{slot}.{rest}"
    return renamed


def _in_residual(rest: str) -> str:
    module, _, leaf = rest.partition(".")
    return f"{_UNET_RESIDUAL[module]}.{leaf}" if module in _UNET_RESIDUAL else rest


def _vae_name(name: str, last: int) -> str:
    for word, original in _VAE_WORDS:
        name = name.replace(word, original)
    name = re.sub(r"\bdown_blocks\.", "down.", name)
    return re.sub(r"\bup_blocks\.(\d+)", lambda n: f"up.{last - int(n[1])}", name)


def _numbers(names: Collection[str], pattern: str) -> list[int]:
    return [int(found[1]) for name in names if (found := re.match(pattern, name))]
