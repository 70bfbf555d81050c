"""What is told of a checkpoint without reading its weights."""

import json
import math
import shutil

import numpy as np
import pytest

from jaxanom import record, trees
from jaxanom.models import backbones, networks
from jaxanom.models.checkpoints import checkup, sources
from jaxanom.models.checkpoints.formats import stored, weights
from jaxanom.models.checkpoints.names import layouts
from jaxanom.models.latent import vae


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


def autoencoder(**changes):
    """Stable Diffusion's."""
    return vae.VaeConfig(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, **changes
    ).to_dict()


@pytest.fixture
def lone_autoencoder(tmp_path):
    """(prefix) -> one file with a whole header; its values are a hole."""

    def write(prefix="", channels=4):
        shapes = networks.of("vae", autoencoder(latent_channels=channels)).shapes()
        leaves = {path: leaf.shape for path, leaf in trees.flatten(shapes).items()}
        header, end = {}, 0
        tensors = {"loss.logvar": (), "model_ema.decay": ()}
        for found in layouts.origins(leaves, "vae", "original").values():
            # Attention is stored as 1x1 convolutions, without a prefix the last.
            chosen = [o for o in found if o.name.startswith("first_stage_model.")][-1]
            name = prefix + chosen.name.removeprefix("first_stage_model.")
            tensors[name] = chosen.shape
        for name, shape in tensors.items():
            start, end = end, end + 2 * math.prod(shape)
            offsets = {"data_offsets": [start, end]}
            header[name] = {"dtype": "F16", "shape": shape} | offsets
        head = json.dumps(header).encode()
        path = tmp_path / "vae-ft.safetensors"
        with path.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.truncate(8 + len(head) + end)
        return path

    return write


def test_an_autoencoder_on_its_own_is_stable_diffusions(lone_autoencoder, unread):
    for prefix in ("first_stage_model.", ""):
        path = lone_autoencoder(prefix)
        assert checkup.parts(path) == [("", "vae")]
    part = checkup.examine(path, "", "vae", image_size=32)
    assert part.problems == () and part.layout == "original"
    assert part.num_params == 83_653_863  # as counted from the published weights
    assert "scaling_factor=0.18215" in part.assumed
    assert checkup.schedule(path) is None
    with pytest.raises(ValueError, match=r"autoencoder.*config\.model\.scheduler"):
        backbones.load_schedule(path)


def test_an_autoencoder_of_other_latents_wants_its_config(lone_autoencoder):
    path = lone_autoencoder(channels=16)
    for look in (checkup.parts, backbones.load_autoencoder):
        with pytest.raises(
            ValueError, match=r"\(512, 16, 3, 3\).*config\.json.*beside"
        ):
            look(path)
    config = autoencoder(latent_channels=16, scaling_factor=0.3)
    record.write_json(path.parent / "config.json", config)
    assert checkup.parts(path) == [("", "vae")]
    source = sources.find(path, ("vae", "."), "vae")
    assert source.config == config and source.assumed == ""


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
