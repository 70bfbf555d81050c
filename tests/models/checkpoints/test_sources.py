"""Backbones by hub name, by single file, by variant, onto a mesh."""

import fnmatch
import gzip
import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from jaxanom import record, trees
from jaxanom.models import backbones, networks
from jaxanom.models.checkpoints import checkup, pretrained, sources
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.checkpoints.names import original_stable_diffusion
from jaxanom.models.clip import tokenizer
from jaxanom.models.latent import tiny_autoencoder
from jaxanom.parallel import mesh

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def hub_name(tiny_backbone, tmp_path, monkeypatch):
    """A name under which the tiny backbone is in the hub's cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    folder = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_backbone, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return "someone/tiny"


@pytest.fixture
def hub_of(tmp_path, monkeypatch):
    """(directory) -> (name, snapshot) of a hub that has it, and of an empty cache.

    What is asked for is chosen by the hub's own matching of names.
    """
    utils = pytest.importorskip("huggingface_hub.utils")
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    folder = cache / "models--someone--far"
    snapshot = folder / "snapshots" / COMMIT

    def serve(directory):
        def snapshot_download(name, revision, allow_patterns, cache_dir):
            assert (name, revision, cache_dir) == ("someone/far", "main", cache)
            paths = [path for path in directory.rglob("*") if path.is_file()]
            names = [path.relative_to(directory).as_posix() for path in paths]
            for wanted in utils.filter_repo_objects(
                names, allow_patterns=allow_patterns
            ):
                (snapshot / wanted).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(directory / wanted, snapshot / wanted)
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs" / "main").write_text(COMMIT)
            return str(snapshot)

        library = types.SimpleNamespace(snapshot_download=snapshot_download)
        monkeypatch.setitem(sys.modules, "huggingface_hub", library)
        return "someone/far", snapshot

    return serve


@pytest.fixture
def sharded(tiny_backbone, tmp_path, write_shards):
    """A checkpoint with a UNet in shards, and much that no network needs."""
    folder = shutil.copytree(tiny_backbone, tmp_path / "sharded")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = weights.read(path)
    path.unlink()
    write_shards(path, tensors, 100_000)
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    for stray in ("vae/notes.json", "old/unet/config.json", "results.json"):
        record.write_json(folder / stray, {})
    return folder


def assert_same(first, second):
    first, second = trees.flatten(first), trees.flatten(second)
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(second[path]))


def test_every_part_loads_by_its_hub_name_offline(hub_name, tiny_backbone):
    for load in (
        backbones.load_unet,
        backbones.load_autoencoder,
        backbones.load_text_encoder,
        backbones.load_clip,
    ):
        assert_same(load(hub_name).params, load(tiny_backbone).params)
    here = backbones.load_tokenizer(tiny_backbone)
    assert backbones.load_tokenizer(hub_name).vocab_size == here.vocab_size
    np.testing.assert_array_equal(
        backbones.load_alphas(hub_name), backbones.load_alphas(tiny_backbone)
    )


def test_a_hub_name_that_lacks_a_part_says_what_to_install(hub_name, tmp_path):
    shutil.rmtree(tmp_path / "models--someone--tiny" / "snapshots" / COMMIT / "unet")
    backbones.load_autoencoder(hub_name)
    with pytest.raises(ImportError, match=r"'someone/tiny'.*jaxanom\[hf\]"):
        backbones.load_unet(hub_name)


def test_only_the_wanted_files_are_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(
        sources.hub, "_download", lambda name, wanted: asked.append(wanted) or tmp_path
    )
    with pytest.raises(ValueError, match="lacks what is wanted"):
        backbones.load_unet("someone/else")
    first = asked[0]
    assert "unet/diffusion_pytorch_model.safetensors" in first
    shard = "unet/diffusion_pytorch_model-00001-of-00002.safetensors"
    assert any(fnmatch.fnmatch(shard, pattern) for pattern in first)
    assert not [pattern for pattern in first if pattern.endswith(".bin")]
    assert "unet/diffusion_pytorch_model.bin" in asked[1]
    assert "unet/diffusion_flax_model.msgpack" in asked[2]


def test_every_part_of_a_hub_name_loads_on_an_empty_cache(sharded, hub_of):
    name, snapshot = hub_of(sharded)
    for load in (
        backbones.load_text_encoder,
        backbones.load_autoencoder,
        backbones.load_unet,
        backbones.load_clip,
    ):
        assert_same(load(name).params, load(sharded).params)
    found = backbones.load_text_encoder(name).tokenizer
    wanted = backbones.load_tokenizer(sharded)
    assert (found.vocab_size, found.pad_id) == (wanted.vocab_size, wanted.pad_id)
    np.testing.assert_array_equal(
        backbones.load_alphas(name), backbones.load_alphas(sharded)
    )
    fetched = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*")}
    assert not fetched & {"vae/notes.json", "old/unet/config.json", "results.json"}


def test_one_part_of_a_hub_name_fetches_no_weights_of_another(sharded, hub_of):
    name, snapshot = hub_of(sharded)
    backbones.load_autoencoder(name)
    weight_files = [path.parent.name for path in snapshot.rglob("*.safetensors*")]
    assert weight_files == ["vae"]
    # What tells of the others is there, so that a checkup knows of them.
    assert checkup.parts(name) == checkup.parts(sharded)
    assert checkup.schedule(name) == checkup.schedule(sharded)


@pytest.mark.parametrize(
    ("lost", "load"),
    [
        ("unet/*-00001-of-*.safetensors", backbones.load_unet),
        ("unet/*-of-*.safetensors", backbones.load_unet),
        ("unet/config.json", backbones.load_unet),
        ("tokenizer/merges.txt", backbones.load_text_encoder),
        ("tokenizer/vocab.json", backbones.load_text_encoder),
    ],
)
def test_an_interrupted_download_is_taken_up_again(sharded, hub_of, lost, load):
    name, snapshot = hub_of(sharded)
    wanted = load(name).params
    found = list(snapshot.glob(lost))
    assert found
    for path in found:
        path.unlink()
    assert_same(load(name).params, wanted)
    assert all(path.is_file() for path in found)


def test_a_clip_of_its_own_loads_by_its_hub_name(tiny_clip, tmp_path, hub_of):
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    record.write_json(folder / "preprocessor_config.json", {"image_mean": [0.5] * 3})
    record.write_json(folder / "deeper" / "config.json", {})
    name, snapshot = hub_of(folder)
    tower = backbones.load_clip(name)
    assert_same(tower.params, backbones.load_clip(folder).params)
    assert tower.module.config.vision_config.image_mean == (0.5, 0.5, 0.5)
    backbones.load_text_encoder(name)
    assert not (snapshot / "deeper").exists()


def test_a_variant_loads_when_it_is_named(tiny_backbone, tmp_path):
    copy = shutil.copytree(tiny_backbone, tmp_path / "b")
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(ValueError, match="variant='fp16'"):
        backbones.load_unet(copy)
    loading = sources.Loading(variant="fp16")
    found = backbones.load_unet(copy, loading).params
    assert_same(found, backbones.load_unet(tiny_backbone).params)


def test_weights_go_onto_a_mesh_in_the_wanted_dtype(tiny_backbone):
    loading = sources.Loading(dtype=jax.numpy.bfloat16, mesh=mesh.make_mesh())
    found = backbones.load_unet(tiny_backbone, loading).params
    for leaf in jax.tree.leaves(found):
        assert isinstance(leaf, jax.Array) and leaf.dtype == "bfloat16"
        assert leaf.sharding.mesh.axis_names == mesh.AXES
    here = backbones.load_unet(tiny_backbone).params
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(here))


def test_a_single_file_with_its_config_beside_it(tiny_backbone, tmp_path):
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(tiny_backbone / "unet" / name, tmp_path / name)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    found = backbones.load_unet(path).params
    assert_same(found, backbones.load_unet(tiny_backbone).params)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing.*'published'"):
        backbones.load_unet(path)


def test_a_single_stable_diffusion_file_tells_config_and_schedule(tmp_path):
    prefix = original_stable_diffusion.UNET
    probe = f"{prefix}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    first = np.zeros((320, 4, 3, 3), np.float16)
    path = tmp_path / "sd.safetensors"
    for width in (768, 1024):
        probes = {probe: np.zeros((320, width), np.float16)}
        weights.write(path, probes | {f"{prefix}input_blocks.0.0.weight": first})
        found = sources.find(path, ("unet", "."), "unet")
        assert found.config["cross_attention_dim"] == width
        assert found.weights == path
        if width == 768:
            schedule = backbones.load_schedule(path)
            assert schedule.prediction_type == "epsilon" and schedule.steps_offset == 1
        else:
            with pytest.raises(ValueError, match=r"noise or velocities.*scheduler"):
                backbones.load_schedule(path)
    with pytest.raises(ValueError, match="more"):
        backbones.load_unet(path)  # two tensors are no UNet: a long list is missing


def test_the_preprocessor_beside_a_tower_sets_mean_and_std(tiny_backbone, tmp_path):
    copy = shutil.copytree(tiny_backbone / "clip", tmp_path / "clip")
    record.write_json(
        copy / "preprocessor_config.json", {"image_mean": [0.5] * 3, "size": 1}
    )
    config = backbones.load_clip(copy).module.config.vision_config
    assert config.image_mean == (0.5, 0.5, 0.5)
    image = backbones.load_image_encoder(copy).module.config
    assert image.image_mean == (0.5, 0.5, 0.5)


def test_a_tokenizer_is_found_in_its_folder_or_beside_the_weights(
    tiny_backbone, tmp_path
):
    shutil.copytree(tiny_backbone / "tokenizer", tmp_path / "b")
    beside = backbones.load_tokenizer(tmp_path / "b")
    assert beside.vocab_size == backbones.load_tokenizer(tiny_backbone).vocab_size
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"tokenizer holds no tokenizer"):
        backbones.load_tokenizer(tmp_path / "c")
    lines = (tmp_path / "b" / "merges.txt").read_text()
    path = tmp_path / "c" / backbones.ORIGINAL_MERGES
    path.write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(ValueError, match="fewer than num_merges"):
        backbones.load_tokenizer(tmp_path / "c")


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
def test_a_pair_of_taesd_files_loads_in_each_format(tmp_path, suffix):
    config = tiny_autoencoder.TinyConfig(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    module = tiny_autoencoder.TinyAutoencoder(config)
    target = networks.shapes(module)
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), target)
    states = {"encoder": {}, "decoder": {}}
    for name, value in pretrained.to_published(tree, "tiny_autoencoder").items():
        part, _, index, *rest = name.split(".")
        # The authors count the soft clamp as the decoder's layer 0.
        number = int(index) + (part == "decoder")
        states[part][".".join([str(number), *rest])] = value
    for part, state in states.items():
        path = tmp_path / f"taesd_{part}.{suffix}"
        if suffix == "npz":
            np.savez(path, **state)
        elif suffix == "safetensors":
            weights.write(path, state)
        else:
            torch = pytest.importorskip("torch")
            tensors = {k: torch.from_numpy(v.copy()) for k, v in state.items()}
            torch.save(tensors, path)
    tower = backbones.load_autoencoder(tmp_path)
    assert tower.module.config == config
    assert_same(tower.params, tree)


def write_pair(folder, name, seed):
    """A smallest TAESD under original names; returns its states."""
    rng = np.random.default_rng(seed)

    def conv(index, rows, columns):
        return {
            f"{index}.weight": rng.normal(size=(rows, columns, 3, 3)).astype("f4"),
            f"{index}.bias": rng.normal(size=rows).astype("f4"),
        }

    states = {
        "encoder": conv(0, 8, 3) | conv(1, 4, 8),
        "decoder": conv(1, 8, 4) | conv(3, 3, 8),
    }
    for part, state in states.items():
        weights.write(folder / f"{name}{part}.safetensors", state)
    return states


def test_a_pair_of_taesd_files_is_of_one_name(tmp_path):
    states = write_pair(tmp_path, "taesd_", 0)
    wanted = tiny_autoencoder.from_state(states["encoder"], states["decoder"])[1]
    # Neither half of a pair: a text tower, and an encoder and a decoder left alone.
    for name in ("text_encoder", "a_encoder", "sd_decoder"):
        weights.write(tmp_path / f"{name}.safetensors", {"x": np.zeros(1, "f4")})
    assert_same(backbones.load_autoencoder(tmp_path).params, wanted)
    # The same pair in another format is no other pair.
    for part, state in states.items():
        np.savez(tmp_path / f"taesd_{part}.npz", **state)
    assert_same(backbones.load_autoencoder(tmp_path).params, wanted)


def test_one_of_several_taesd_pairs_is_not_taken_in_silence(tmp_path):
    for seed, name in enumerate(("taesd_", "taesdxl_")):
        write_pair(tmp_path, name, seed)
    message = r"several.*taesd_encoder.*taesd_decoder.*taesdxl_encoder.*taesdxl_decoder"
    for look in (backbones.load_autoencoder, checkup.parts):
        with pytest.raises(ValueError, match=message):
            look(tmp_path)


def test_an_encoder_and_a_decoder_of_two_names_are_no_pair(tmp_path):
    write_pair(tmp_path, "taesd_", 0)
    write_pair(tmp_path, "taesdxl_", 1)
    (tmp_path / "taesd_decoder.safetensors").unlink()
    (tmp_path / "taesdxl_encoder.safetensors").unlink()
    assert tiny_autoencoder.pair_of_files(tmp_path) is None


def test_the_whole_tokenizer_of_a_text_tower_is_checked(tiny_backbone, tmp_path):
    copy = shutil.copytree(tiny_backbone, tmp_path / "b")
    vocab = json.loads((copy / "tokenizer" / "vocab.json").read_text())
    assert len(vocab) == tokenizer.Tokenizer(copy / "tokenizer").vocab_size
    text = backbones.load_text_encoder(copy)
    assert text.tokenizer.vocab_size == text.module.config.vocab_size
