"""Which file of a component's directory holds its weights.

Directories of diffusers and transformers may hold the same weights in several formats,
in one file or in shards, and in variants (`model.fp16.safetensors`).
"""

from pathlib import Path
from typing import Any, NamedTuple

from jaxanom.errors import UserError

SHOWN = 20


class Kind(NamedTuple):
    """One published class: how its directory is laid out.

    Attributes:
      stem: The weight file's name without `.safetensors`.
      identity: What config.json must say for the class to be found; a config that
        says otherwise keeps its own words.
      torch_stem, flax_stem: The same for `.bin` and `.msgpack`.
    """

    stem: str
    identity: dict[str, Any]
    torch_stem: str = "diffusion_pytorch_model"
    flax_stem: str = "diffusion_flax_model"


def _transformers(model_type: str, architecture: str) -> Kind:
    identity = {"model_type": model_type, "architectures": [architecture]}
    return Kind("model", identity, "pytorch_model", "flax_model")


_DIFFUSERS = "diffusion_pytorch_model"
KINDS = {
    "unet": Kind(_DIFFUSERS, {"_class_name": "UNet2DConditionModel"}),
    "vae": Kind(_DIFFUSERS, {"_class_name": "AutoencoderKL"}),
    "tiny_autoencoder": Kind(_DIFFUSERS, {"_class_name": "AutoencoderTiny"}),
    "clip": _transformers("clip", "CLIPModel"),
    "text_encoder": _transformers("clip_text_model", "CLIPTextModel"),
    "image_encoder": _transformers(
        "clip_vision_model", "CLIPVisionModelWithProjection"
    ),
}


def kind_of(name: str) -> Kind:
    """Returns an entry of `KINDS`.

    Raises:
      UserError: there is none of this name.
    """
    if name not in KINDS:
        raise UserError(f"kind={name!r}; wanted one of {sorted(KINDS)}")
    return KINDS[name]


def formats(kind: str, variant: str | None = None) -> list[tuple[str, str]]:
    """Lists the (file, index of shards) a kind's weights may be in, the best first.

    Args:
      kind: A key of `KINDS`.
      variant: Such as "fp16"; None is the plain one.
    """
    layout = kind_of(kind)
    dotted = f".{variant}" if variant else ""
    return [
        (f"{stem}{dotted}{suffix}", f"{stem}{suffix}.index{dotted}.json")
        for stem, suffix in (
            (layout.stem, ".safetensors"),
            (layout.torch_stem, ".bin"),
            (layout.flax_stem, ".msgpack"),
        )
    ]


def candidates(kind: str, variant: str | None = None) -> list[str]:
    """Lists all names of `formats`, in order."""
    return [name for names in formats(kind, variant) for name in names]


def locate(path: Path, kind: str, variant: str | None = None) -> Path:
    """Finds the weight file, or index, of a component's directory.

    Args:
      path: The directory; a file stands for itself.
      kind, variant: As in `formats`.

    Raises:
      UserError: no weights are there; the message says what is.
    """
    names = candidates(kind, variant)
    for file in (path, *(path / name for name in names)):
        if file.is_file():
            return file
    which, hint = (
        (f"{kind} weights of variant {variant!r}", "the plain files are variant=''")
        if variant
        else (f"{kind} weights", "files like name.fp16.safetensors are variant='fp16'")
    )
    raise UserError(
        f"{path} holds no {which}; wanted {' or '.join(names)} there, or the path of a "
        f"weight file; {contents(path)}. With config.model.variant (--variant of "
        f"jaxanom doctor), {hint}"
    )


def contents(folder: Path) -> str:
    """Says what a folder holds, for a message."""
    if not folder.is_dir():
        return f"{folder} is not a directory"
    names = sorted(entry.name for entry in folder.iterdir())
    return f"it holds {names[:SHOWN] if names else 'nothing'}"
