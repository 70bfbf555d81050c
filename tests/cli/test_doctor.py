"""`jaxanom doctor`: what it tells, and its exit codes."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest

import jaxanom
from jaxanom import record
from jaxanom.cli import doctor, main


@pytest.fixture
def call(capsys):
    """Runs the command; returns (code, what it printed)."""

    def run(*words):
        code = main.main(["doctor", *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_without_weights_it_tells_the_machine(call, monkeypatch):
    code, said = call()
    assert code == 0
    for word in ("jax ", "devices ", "mesh ", "data=1", "extra hf", "compile cache"):
        assert word in said, word


def test_a_checkpoint_that_fits_is_described(call, tiny_backbone):
    code, said = call(f"--weights={tiny_backbone}", "--fsdp=2", "--image_size=32")
    assert code == 0 and "everything fits" in said and "DOES NOT FIT" not in said
    for word in (
        "KL autoencoder",
        "x float32; published names",
        "GFLOP, encode, 32 px",
        "GiB per device of fsdp=2, model=1",
        "predicts epsilon",
    ):
        assert word in said, word


def test_the_embedded_towers_fit(call):
    code, said = call("--weights=embedded")
    assert code == 0 and "everything fits" in said


def test_an_activation_that_no_tensor_tells_is_told_as_assumed(call, clip_file):
    code, said = call(f"--weights={clip_file}")
    assert code == 0 and "everything fits" in said
    assert "assumed" in said and "clip_act='gelu'" in said


def test_what_does_not_fit_is_told_with_exit_code_1(call, tiny_backbone, tmp_path):
    folder = shutil.copytree(tiny_backbone, tmp_path / "b")
    path = folder / "unet" / "config.json"
    record.write_json(path, record.read_json(path) | {"cross_attention_dim": 24})
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    code, said = call(f"--weights={folder}")
    assert code == 1 and "everything fits" not in said
    assert "DOES NOT FIT: unet: of another shape: down_blocks" in said
    assert "DOES NOT FIT: vae: " in said
    assert "CLIP, image tower" in said, "the rest is examined all the same"


def test_parameters_larger_than_the_device_do_not_fit(call, tiny_backbone, monkeypatch):
    monkeypatch.setattr(doctor, "_device_bytes", lambda: 10_000)
    code, said = call(f"--weights={tiny_backbone}/unet")
    assert code == 1 and "--fsdp" in said


def test_a_mesh_that_does_not_divide_the_weights_does_not_fit(call, tiny_backbone):
    code, said = call(f"--weights={tiny_backbone}/unet", "--model=5")
    assert code == 1 and "model=5" in said


def test_no_such_checkpoint_is_a_wrong_input(call):
    code, said = call("--weights=nowhere")
    assert code == 2 and said.splitlines()[-1].startswith("jaxanom doctor: no ")


def test_a_hub_name_that_cannot_be_fetched_names_the_package(
    call, monkeypatch, tmp_path
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, said = call("--weights=owner/model")
    assert code == 2 and "pip install" in said


def test_the_extras_are_those_of_the_installation(monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))
    root = Path(jaxanom.__file__).parent.parent
    monkeypatch.chdir(root)
    runpy.run_path(str(root / "setup.py"))
    for extra, names in doctor.EXTRAS.items():
        asked = " ".join(given["extras_require"][extra])
        assert all(name in asked for name in names), extra
    # Without those that choose jax's own build for a device.
    assert doctor.EXTRAS.keys() == given["extras_require"].keys() - {"cuda", "tpu"}


@pytest.mark.parametrize(("version", "has_flax"), [("4.57.6", True), ("5.17.0", False)])
def test_a_transformers_without_flax_classes_is_told(monkeypatch, version, has_flax):
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    told = dict(doctor._extras())["extra hf"].split(", ")[0]
    assert told.endswith("(without Flax classes)") != has_flax
