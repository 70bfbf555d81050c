"""What is told of a checkpoint without reading its weights."""

import shutil

import numpy as np
import pytest

from jaxanom import record, trees
from jaxanom.models import backbones, checkup, stored, weights


@pytest.fixture
def copy(tiny_backbone, tmp_path):
    return shutil.copytree(tiny_backbone, tmp_path / "backbone")


@pytest.fixture
def unread(monkeypatch):
    """Makes reading any value an error."""

    def refuse(*args, **keywords):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(stored, "read", refuse)


def stored_unet(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def change(folder, edit):
    """Rewrites the UNet's tensors."""
    path = stored_unet(folder)
    tensors = weights.read(path)
    edit(tensors)
    weights.write(path, tensors)


def test_a_pipeline_is_told_by_headers_alone(tiny_backbone, unread):
    assert checkup.parts(tiny_backbone) == [
        ("unet", "unet"),
        ("vae", "vae"),
        ("clip", "clip"),
    ]
    part = checkup.examine(tiny_backbone, "unet", "unet")
    assert part.problems == () and part.layout == "published"
    assert part.dtypes == {"float32": len(trees.flatten(part.shapes))}
    assert "channels 8/16" in part.architecture
    (call,) = part.calls
    assert call.name == "4x4 latents, 77 tokens" and call.count.total > 1e6


def test_the_parameter_count_is_that_of_the_loaded_tree(tiny_backbone):
    for folder, kind, load in (
        ("unet", "unet", backbones.load_unet),
        ("vae", "vae", backbones.load_autoencoder),
        ("clip", "clip", backbones.load_clip),
    ):
        part, params = (
            checkup.examine(tiny_backbone, folder, kind),
            load(tiny_backbone).params,
        )
        assert part.num_params == trees.num_params(params)
        trees.check_same_shapes(part.shapes, params, kind)


def test_a_model_of_its_own_is_told_by_its_class(tiny_backbone):
    for folder in ("unet", "vae", "clip"):
        assert checkup.parts(tiny_backbone / folder) == [("", folder)]
    assert checkup.examine(tiny_backbone / "vae", "", "vae").problems == ()


@pytest.mark.parametrize(
    ("edit", "lines"),
    [
        (lambda t: t.pop("conv_in.bias"), ["not in the weights: conv_in.bias (8,)"]),
        (
            lambda t: t.update(extra=np.zeros(3, np.float32)),
            ["not in the model: extra (3,)"],
        ),
        (
            lambda t: t.update({"conv_in.bias": np.zeros(5, np.float32)}),
            ["of another shape: conv_in.bias is (5,)"],
        ),
    ],
)
def test_what_does_not_fit_is_listed(copy, edit, lines):
    change(copy, edit)
    found = checkup.examine(copy, "unet", "unet").problems
    assert len(found) == len(lines)
    for line, wanted in zip(found, lines, strict=True):
        assert line.startswith(wanted)


def test_dtypes_are_those_of_the_file(copy):
    def halve(tensors):
        tensors["conv_in.bias"] = tensors["conv_in.bias"].astype(np.float16)

    change(copy, halve)
    dtypes = checkup.examine(copy, "unet", "unet").dtypes
    assert dtypes["float16"] == 1 and dtypes["float32"] > 50


def test_a_file_cut_short_is_an_error_that_names_it(copy):
    path = stored_unet(copy)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model\.safetensors"):
        checkup.examine(copy, "unet", "unet")


def test_a_class_that_is_not_known_is_named(copy):
    path = copy / "unet" / "config.json"
    record.write_json(path, record.read_json(path) | {"_class_name": "UNet3DModel"})
    with pytest.raises(ValueError, match=r"UNet3DModel; known are.*'AutoencoderKL'"):
        checkup.parts(copy)


def test_flax_names_of_a_class_are_the_same_class(copy):
    path = copy / "unet" / "config.json"
    config = record.read_json(path) | {"_class_name": "FlaxUNet2DConditionModel"}
    record.write_json(path, config)
    assert ("unet", "unet") in checkup.parts(copy)


def test_a_single_file_of_the_original_clip_tells_what_it_is(clip_file, unread):
    assert checkup.parts(clip_file) == [("", "clip")]
    part = checkup.examine(clip_file, "", "clip", image_size=32)
    assert part.problems == () and part.layout == "openai"
    sizes = [int(np.prod(shape)) for shape in weights.shapes(clip_file).values()]
    assert part.num_params == sum(sizes)
    assert [call.name for call in part.calls] == ["image of 32 px", "text of 24 tokens"]
    assert "quick_gelu" in part.assumed and "config.model.clip_act" in part.assumed


def test_nothing_is_assumed_of_a_clip_with_a_config(tiny_backbone):
    assert checkup.examine(tiny_backbone, "clip", "clip").assumed == ""


def test_a_file_that_does_not_tell_wants_a_config_beside_it(copy):
    path = stored_unet(copy)
    assert checkup.parts(path) == [("", "unet")]
    (copy / "unet" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json beside it"):
        checkup.parts(path)


def test_a_larger_image_takes_more_operations(tiny_backbone):
    small, large = (
        checkup.examine(tiny_backbone, "vae", "vae", image_size=size).calls
        for size in (16, 32)
    )
    for first, second in zip(small, large, strict=True):
        # Without attention, convolutions alone: four times the pixels.
        assert second.count.total == 4 * first.count.total


def test_the_schedule_is_told(copy):
    told = checkup.schedule(copy)
    assert "1000 noise levels" in told and "predicts epsilon" in told
    path = copy / "scheduler" / "scheduler_config.json"
    record.write_json(path, record.read_json(path) | {"prediction_type": "sample"})
    with pytest.raises(ValueError, match="'sample'"):
        checkup.schedule(copy)
    path.unlink()
    assert checkup.schedule(copy) is None
