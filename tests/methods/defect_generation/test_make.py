"""What the config decides when the method is made, and how it refuses."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import record, trees
from jaxanom.data import pools
from jaxanom.jobs import prepare
from jaxanom.methods import by_name, defect_generation
from jaxanom.models import backbones


@pytest.fixture(scope="module")
def dataset(generation_config):
    """The training part of the tiny folder."""
    whole, division = prepare.open_data(generation_config())
    return pools.training_part(whole, division)


@pytest.fixture
def make(generation_config, dataset):
    return lambda **changes: by_name.make(generation_config(**changes), dataset)


def test_both_phases_minimise_one_loss_and_train_everything(make):
    method = make()
    assert tuple(phase.name for phase in method.phases) == defect_generation.PHASES
    assert method.phases[0].loss_fn is method.phases[1].loss_fn
    params, frozen = method.init(jax.random.key(0))
    assert sorted(params) == ["unet"]
    assert sorted(frozen) == ["contexts", "latent_bank", "vae"]
    assert method.predict is None and method.generate is not None


def test_a_new_unet_predicts_no_noise_and_a_loaded_one_is_as_stored(
    make, tiny_backbone
):
    scratch, _ = make().init(jax.random.key(0))
    assert not np.any(scratch["unet"]["conv_out"]["kernel"])
    loaded, _ = make(model__unet="").init(jax.random.key(0))
    stored = backbones.load_unet(tiny_backbone).params
    jax.tree.map(np.testing.assert_array_equal, loaded["unet"], stored)


def test_with_lora_the_update_alone_is_trained_and_starts_at_nothing(make):
    method = make(model__unet="", defect_generation__lora_rank=2)
    params, frozen = method.init(jax.random.key(0))
    assert sorted(params) == ["lora"] and "unet" in frozen
    assert trees.num_params(params) < trees.num_params(frozen["unet"]) / 2
    for path, leaf in trees.flatten(params["lora"]).items():
        assert np.any(leaf) == path.endswith("/down"), path


def test_encoding_keeps_what_the_loss_needs(make, dataset):
    method = make()
    _, frozen = method.init(jax.random.key(0))
    mask = np.zeros((2, 16, 16), np.float32)
    mask[0, 5, 6] = 1
    batch = {
        "image": jnp.full((2, 16, 16, 3), 0.5),
        "mask": jnp.asarray(mask),
        "label": jnp.asarray([1, 0]),
        "category_id": jnp.zeros(2, jnp.int32),
        "defect_id": jnp.asarray([1, 0]),
        "index": jnp.arange(2),
        "valid": jnp.ones(2, bool),
    }
    found = method.encode(frozen, batch)
    assert found["latents"].shape == (2, 4, 4, 4)
    wanted = np.zeros((2, 4, 4))
    wanted[0, 1, 1] = 1
    np.testing.assert_array_equal(found["latent_mask"], wanted)
    assert sorted(found) == [
        "category_id",
        "defect_id",
        "label",
        "latent_mask",
        "latents",
        "valid",
    ]


def test_prompts_name_defects_and_categories(make, dataset, monkeypatch):
    said = []
    encode = backbones.TextEncoder.encode
    monkeypatch.setattr(
        backbones.TextEncoder,
        "encode",
        lambda self, texts: said.extend(texts) or encode(self, texts),
    )
    method = make(
        defect_generation__defect_prompt="a {defect} here",
        defect_generation__hole_prompt="nothing",
    )
    assert said == ["nothing", "a dent here", "a scratch here", "a photo of a bolt"]
    contexts = method.init(jax.random.key(0))[1]["contexts"]
    assert contexts["defect"].shape[0] == 3 and contexts["background"].shape[0] == 1
    assert np.any(contexts["defect"][0] != contexts["defect"][1])


def test_masks_that_vanish_on_the_grid_leave_the_bank(generation_config, dataset):
    """One mask of one pixel, not at a cell's corner: nearest pooling loses it."""
    first = next(r for r in dataset.records if r.defect_type != "good")

    def load(item):
        image, mask = dataset.load(item)
        if item == first:
            mask = np.zeros_like(mask)
            mask[5, 5] = 1
        return image, mask

    def bank(**changes):
        config = generation_config(**changes)
        method = by_name.make(config, dataset._replace(load=load))
        return np.asarray(method.init(jax.random.key(0))[1]["latent_bank"])

    assert len(bank()) == 4
    fewer = bank(defect_generation__latent_pooling="nearest")
    assert len(fewer) == 3 and fewer.any((1, 2)).all()


def test_a_dataset_whose_masks_all_vanish_is_refused(generation_config, dataset):
    def load(item):
        image, mask = dataset.load(item)
        small = np.zeros_like(mask)
        small[5, 5] = mask.any()
        return image, small

    config = generation_config(defect_generation__latent_pooling="area")
    with pytest.raises(ValueError, match=r"vanishes.*latent_pooling='max'"):
        by_name.make(config, dataset._replace(load=load))


@pytest.mark.parametrize(
    "key, value",
    [
        ("defect_generation.background_input", "none"),
        ("defect_generation.latent_pooling", "mean"),
        ("defect_generation.attention_pooling", "mean"),
        ("defect_generation.defect_prompt", "a {thing}"),
        ("defect_generation.background_prompt", "a {"),
        ("model.dtype", "float8"),
        ("generate.background", "paste"),
        ("generate.start", "zero"),
        ("generate.spacing", "log"),
        ("generate.solver", "heun"),
        ("generate.inversion_time", "now"),
        ("generate.eta", -0.5),
    ],
)
def test_a_wrong_option_names_its_key(make, key, value):
    with pytest.raises(ValueError, match=rf"config\.{key}"):
        make(**{key: value})


@pytest.mark.parametrize("section", ["defect_generation", "generate"])
def test_a_section_without_one_of_its_keys_is_refused(
    section, generation_config, dataset
):
    config = generation_config()
    key = next(iter(config[section]))
    with config.unlocked():
        del config[section][key]
    with pytest.raises(ValueError, match=rf"config\.{section} lacks.*{key}"):
        by_name.make(config, dataset)


def test_a_negative_rank_is_refused(make):
    with pytest.raises(ValueError, match="lora_rank"):
        make(defect_generation__lora_rank=-1).init(jax.random.key(0))


def test_an_image_that_does_not_divide_is_refused(make, dataset, generation_config):
    with pytest.raises(ValueError, match=r"config\.data\.image_size"):
        by_name.make(generation_config(), dataset._replace(image_size=(18, 16)))


def other_backbone(tiny_backbone, folder, component, **changes):
    """A copy of the backbone with another config.json; its weights do not matter."""
    copy = shutil.copytree(tiny_backbone, folder)
    path = copy / component / "config.json"
    record.write_json(path, record.read_json(path) | changes)
    return str(copy)


def zeros(path, kind, target, *rest):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), target)


def test_a_unet_of_another_autoencoder_is_refused(
    make, tiny_backbone, tmp_path, monkeypatch
):
    other = other_backbone(tiny_backbone, tmp_path / "b", "unet", in_channels=9)
    monkeypatch.setattr(backbones.sources.pretrained, "load_params", zeros)
    with pytest.raises(ValueError, match=r"9 latent channels.*config\.model"):
        make(model__unet=other)


def test_a_text_tower_of_another_width_is_refused(
    make, tiny_backbone, tmp_path, monkeypatch
):
    other = other_backbone(
        tiny_backbone, tmp_path / "b", "unet", cross_attention_dim=24
    )
    monkeypatch.setattr(backbones.sources.pretrained, "load_params", zeros)
    with pytest.raises(ValueError, match=r"16 wide.*24.*config\.model\.text_encoder"):
        make(model__unet=other)


def test_another_prediction_type_is_refused(make, tiny_backbone, tmp_path):
    copy = shutil.copytree(tiny_backbone, tmp_path / "b")
    path = copy / "scheduler" / "scheduler_config.json"
    record.write_json(path, record.read_json(path) | {"prediction_type": "sample"})
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        make(model__scheduler=str(copy))
