"""Without torch: names, layouts, errors. With it: files that torch wrote and reads."""

import tempfile
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import record, trees
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.checkpoints.formats import stored, weights
from jaxanom.models.checkpoints.names import layouts
from jaxanom.models.clip import towers
from jaxanom.models.latent import unet, vae

UNET = unet.UNetConfig(
    sample_size=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=12,
    attention_head_dim=2,
)
LINEAR_UNET = unet.UNetConfig(**{**vars(UNET), "use_linear_projection": True})
VAE = vae.VaeConfig(block_out_channels=(8, 16), norm_num_groups=4)
TEXT = towers.TextConfig(
    vocab_size=30,
    hidden_size=8,
    intermediate_size=20,
    projection_dim=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=9,
    bos_token_id=28,
    eos_token_id=29,
)
VISION = towers.VisionConfig(
    hidden_size=12,
    intermediate_size=20,
    projection_dim=6,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=8,
    patch_size=4,
)
IDS, IMAGE = jnp.zeros((1, 9), jnp.int32), jnp.zeros((1, 8, 8, 3))
LATENTS = (jnp.zeros((1, 8, 8, 4)), jnp.zeros((1,), jnp.int32), jnp.zeros((1, 3, 12)))
CASES = {
    "unet": ("unet", unet.UNet(UNET), LATENTS),
    "unet, linear projection": ("unet", unet.UNet(LINEAR_UNET), LATENTS),
    "vae": ("vae", vae.AutoencoderKL(VAE), (IMAGE,)),
    "clip": (
        "clip",
        towers.CLIP(towers.ClipConfig(TEXT, VISION, projection_dim=6)),
        (IDS, IMAGE),
    ),
    "text tower": ("text_encoder", towers.TextTower(TEXT, projection=False), (IDS,)),
    "image tower": ("image_encoder", towers.ImageTower(VISION), (IMAGE,)),
}


def abstract(case):
    """(kind, parameter shapes of our module)."""
    kind, module, inputs = CASES[case]
    return kind, jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def drawn(target, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), target
    )


def assert_same(first, second):
    first, second = trees.flatten(first), trees.flatten(second)
    assert first.keys() == second.keys()
    for path in first:
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)
        assert first[path].dtype == second[path].dtype


NAMES = [
    ("unet", "conv_in/kernel", "conv_in.weight"),
    ("unet", "time_embedding/linear_1/bias", "time_embedding.linear_1.bias"),
    (
        "unet",
        "down_blocks_0/attentions_1/transformer_blocks_0/attn1/to_q/kernel",
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight",
    ),
    (
        "unet",
        "up_blocks_3/attentions_2/transformer_blocks_0/attn2/to_out_0/bias",
        "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0.bias",
    ),
    (
        "unet",
        "mid_block/attentions_0/transformer_blocks_0/ff/net_0/proj/kernel",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
    ),
    (
        "unet",
        "mid_block/attentions_0/transformer_blocks_10/ff/net_2/kernel",
        "mid_block.attentions.0.transformer_blocks.10.ff.net.2.weight",
    ),
    (
        "unet",
        "down_blocks_0/downsamplers_0/conv/kernel",
        "down_blocks.0.downsamplers.0.conv.weight",
    ),
    (
        "unet",
        "up_blocks_0/resnets_1/conv_shortcut/kernel",
        "up_blocks.0.resnets.1.conv_shortcut.weight",
    ),
    ("unet", "conv_norm_out/scale", "conv_norm_out.weight"),
    (
        "vae",
        "encoder/mid_block/attentions_0/proj_attn/kernel",
        "encoder.mid_block.attentions.0.to_out.0.weight",
    ),
    (
        "vae",
        "decoder/mid_block/attentions_0/query/bias",
        "decoder.mid_block.attentions.0.to_q.bias",
    ),
    (
        "vae",
        "decoder/mid_block/attentions_0/group_norm/scale",
        "decoder.mid_block.attentions.0.group_norm.weight",
    ),
    ("vae", "quant_conv/kernel", "quant_conv.weight"),
    ("clip", "logit_scale", "logit_scale"),
    (
        "clip",
        "text_model/embeddings/token_embedding/embedding",
        "text_model.embeddings.token_embedding.weight",
    ),
    (
        "clip",
        "text_model/encoder/layers/11/self_attn/q_proj/kernel",
        "text_model.encoder.layers.11.self_attn.q_proj.weight",
    ),
    (
        "clip",
        "vision_model/embeddings/class_embedding",
        "vision_model.embeddings.class_embedding",
    ),
    ("clip", "vision_model/pre_layrnorm/scale", "vision_model.pre_layrnorm.weight"),
    ("clip", "visual_projection/kernel", "visual_projection.weight"),
]


@pytest.mark.parametrize(("kind", "path", "name"), NAMES)
def test_a_leaf_has_the_published_name(kind, path, name):
    assert layouts.published_names(path, kind)[0] == name


def test_linear_is_transposed_and_convolution_moves_its_axes():
    rng = np.random.default_rng(0)
    linear, conv = rng.normal(size=(3, 5)), rng.normal(size=(3, 5, 2, 4))
    published = {"fc.weight": linear, "conv.weight": conv, "norm.weight": linear[0]}
    target = {
        "fc": {"kernel": np.zeros((5, 3))},
        "conv": {"kernel": np.zeros((2, 4, 5, 3))},
        "norm": {"scale": np.zeros(5)},
    }
    tree = from_published(published, target, "unet", dtype=None)
    features, pixels = rng.normal(size=5), rng.normal(size=(2, 4, 5))
    np.testing.assert_allclose(
        features @ tree["fc"]["kernel"], linear @ features, rtol=1e-12
    )
    # One output pixel of a convolution, written in either layout.
    np.testing.assert_allclose(
        np.einsum("hwi,hwio->o", pixels, tree["conv"]["kernel"]),
        np.einsum("hwi,oihw->o", pixels, conv),
        rtol=1e-12,  # float64 sums of 40 terms in another order.
    )
    np.testing.assert_array_equal(tree["norm"]["scale"], linear[0])


@pytest.mark.parametrize("case", CASES)
def test_export_then_import_is_bit_exact_and_loses_no_name(case):
    kind, target = abstract(case)
    tree = drawn(target)
    published = pretrained.to_published(tree, kind)
    assert len(published) == len(jax.tree.leaves(tree))
    assert all("/" not in name for name in published)
    assert_same(from_published(published, target, kind), tree)


@pytest.mark.parametrize("case", CASES)
def test_a_component_directory_round_trips(case, tmp_path):
    kind, target = abstract(case)
    tree = drawn(target)
    pretrained.save_component(tmp_path, "part", {"a": 1}, tree, kind)
    config = pretrained.load_config(tmp_path, "part")
    assert config == {**pretrained.KINDS[kind].identity, "a": 1}
    assert_same(pretrained.load_params(tmp_path / "part", kind, target), tree)
    (file,) = (tmp_path / "part").glob("*.safetensors")
    assert_same(pretrained.load_params(file, kind, target), tree)


def test_a_config_keeps_its_own_class_name(tmp_path):
    kind, target = abstract("text tower")
    own = {"architectures": ["CLIPTextModelWithProjection"]}
    pretrained.save_component(tmp_path, "", own, drawn(target), kind)
    config = pretrained.load_config(tmp_path)
    assert config["architectures"] == own["architectures"]
    assert config["model_type"] == "clip_text_model"


def test_half_precision_files_load_as_float32(tmp_path):
    kind, target = abstract("text tower")
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16), drawn(target))
    pretrained.save_component(tmp_path, "te", {}, rounded, kind)
    loaded = pretrained.load_params(tmp_path / "te", kind, target)
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded))
    kept = pretrained.load_params(tmp_path / "te", kind, target, dtype=None)
    assert_same(kept, rounded)


def test_a_sharded_component_loads_like_a_single_file(tmp_path, write_shards):
    kind, target = abstract("text tower")
    tree = drawn(target)
    published = pretrained.to_published(tree, kind)
    index = write_shards(tmp_path / "model.safetensors", published, 2000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(pretrained.load_params(tmp_path, kind, target), tree)
    assert_same(pretrained.load_params(index, kind, target), tree)


def test_both_generations_of_vae_attention_names_load():
    kind, target = abstract("vae")
    tree = drawn(target)
    published = pretrained.to_published(tree, kind)
    older_names = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    older = {}
    for name, value in published.items():
        for new, old in older_names.items():
            name = name.replace(new, old)
        older[name] = value
    assert len(older.keys() - published.keys()) == 2 * 4 * 2
    assert_same(from_published(older, target, kind), tree)
    with pytest.raises(
        ValueError, match=r"16 twice in the weights:\n.*to_k.* and .*key"
    ):
        from_published({**older, **published}, target, kind)
    # The UNet's attention never had the older names.
    assert layouts.published_names("attentions_0/query/bias", "unet") == (
        "attentions.0.query.bias",
    )


def from_published(published, target, kind, dtype=np.float32, ignore=()):
    """Reads arrays under published names, by way of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = weights.write(Path(folder) / "w.safetensors", published)
        return pretrained.load_params(path, kind, target, dtype, ignore)


def small():
    target = {"fc": {"kernel": np.zeros((5, 3)), "bias": np.zeros(3)}}
    published = {"fc.weight": np.ones((3, 5)), "fc.bias": np.ones(3)}
    return published, target


def test_a_matching_set_is_accepted():
    published, target = small()
    assert_same(
        from_published(published, target, "clip"),
        {"fc": {"kernel": np.ones((5, 3), "f4"), "bias": np.ones(3, "f4")}},
    )


def test_a_tensor_nobody_wants_is_an_error_with_name_and_shape():
    published, target = small()
    published["extra.weight"] = np.ones((2, 7))
    with pytest.raises(
        ValueError,
        match=r"1 in the weights but not in the model:\n"
        r"  extra\.weight \(2, 7\)$",
    ):
        from_published(published, target, "clip")
    tree = from_published(published, target, "clip", ignore=("extra.*",))
    assert list(tree) == ["fc"]
    # The pattern covers whole names: a part of one does not hide a leftover.
    with pytest.raises(ValueError, match="extra"):
        from_published(published, target, "clip", ignore=("extra",))


def test_a_leaf_nobody_fills_is_an_error_with_name_and_shape():
    published, target = small()
    del published["fc.weight"]
    with pytest.raises(
        ValueError,
        match=r"1 in the model but not in the weights:\n"
        r"  fc\.weight \(3, 5\) for fc/kernel",
    ):
        from_published(published, target, "clip")


def test_a_transposed_shape_is_an_error_with_both_shapes():
    published, target = small()
    published["fc.weight"] = published["fc.weight"].T
    with pytest.raises(
        ValueError,
        match=r"1 of another shape:\n  fc\.weight is "
        r"\(5, 3\), fc/kernel wants \(3, 5\)",
    ):
        from_published(published, target, "clip")


def test_all_faults_are_listed_and_a_long_list_is_cut():
    published, target = small()
    published = {f"t{i}": np.ones(1) for i in range(30)} | {"fc.bias": np.ones(4)}
    with pytest.raises(ValueError) as caught:
        from_published(published, target, "clip")
    message = str(caught.value)
    assert "30 in the weights" in message and "... and 10 more" in message
    assert "fc.weight (3, 5)" in message and "fc.bias is (4,)" in message


def test_position_ids_are_the_only_leftover_that_is_no_error():
    published, target = small()
    published["text_model.embeddings.position_ids"] = np.arange(77)[None]
    from_published(published, target, "clip")
    published["text_model.embeddings.position_ids.weight"] = np.arange(77)
    with pytest.raises(ValueError, match=r"position_ids\.weight"):
        from_published(published, target, "clip")


def test_a_kernel_of_three_axes_is_refused():
    with pytest.raises(ValueError, match=r"fc/kernel has 3 axes"):
        pretrained.to_published({"fc": {"kernel": np.zeros((1, 2, 3))}}, "unet")


def test_an_unknown_kind_is_refused():
    published, target = small()
    for call in (
        lambda: from_published(published, target, "bert"),
        lambda: pretrained.to_published(target, "bert"),
        lambda: pretrained.load_params("nowhere", "bert", target),
    ):
        with pytest.raises(ValueError, match=r"kind='bert'; wanted one of \['clip'"):
            call()


def test_a_wrong_file_is_refused_before_any_weight_is_read(tmp_path, monkeypatch):
    kind, target = abstract("text tower")
    pretrained.save_component(tmp_path, "", {}, drawn(target), kind)
    target["text_model"]["final_layer_norm"].pop("bias")
    monkeypatch.setattr(stored, "read", lambda *_: pytest.fail("read weights"))
    with pytest.raises(
        ValueError,
        match=r"model\.safetensors: .*\n.*\n  text_model\."
        r"final_layer_norm\.bias \(8,\)",
    ):
        pretrained.load_params(tmp_path, kind, target)


def test_missing_parts_are_errors_that_name_the_wanted_files(tmp_path):
    _, target = small()
    with pytest.raises(
        ValueError,
        match=r"unet/config\.json is missing; wanted it and a \.safetensors.*is not a "
        "directory",
    ):
        pretrained.load_config(tmp_path, "unet")
    (tmp_path / "unet").mkdir()
    with pytest.raises(ValueError, match="it holds nothing"):
        pretrained.load_config(tmp_path, "unet")
    (tmp_path / "unet" / "other_pytorch_model.bin").touch()
    with pytest.raises(
        ValueError,
        match=r"no unet weights; wanted diffusion_pytorch_model\.safetensors or "
        r"diffusion_pytorch_model\.safetensors\.index\.json.*pytorch_model\.bin",
    ):
        pretrained.load_params(tmp_path / "unet", "unet", target)
    record.write_json(tmp_path / "unet" / "config.json", [])
    with pytest.raises(ValueError, match="holds list, wanted a JSON object"):
        pretrained.load_config(tmp_path, "unet")


# From here on against the libraries themselves.


def torch_model(case):
    """The PyTorch class with our sizes; every value, norms too, drawn at random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if case.startswith(("unet", "vae")):
        diffusers = pytest.importorskip("diffusers")
        config = CASES[case][1].config
        name = "UNet2DConditionModel" if "unet" in case else "AutoencoderKL"
        build = getattr(diffusers, name)
        settings = {k: v for k, v in config.to_dict().items() if k[0] != "_"}
        model = build(**settings)
    else:
        text, vision = dict(vars(TEXT)), dict(vars(VISION))
        model = {
            "clip": lambda: transformers.CLIPModel(
                transformers.CLIPConfig(
                    text_config=text, vision_config=vision, projection_dim=6
                )
            ),
            "text tower": lambda: transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**text)
            ),
            "image tower": lambda: transformers.CLIPVisionModelWithProjection(
                transformers.CLIPVisionConfig(**vision)
            ),
        }[case]()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def by_the_library(kind, state, target):
    """The Flax tree that the library's own converter makes of a torch state."""
    if kind in ("unet", "vae"):
        name = "diffusers.models.modeling_flax_pytorch_utils"
        shim = types.SimpleNamespace(init_weights=lambda key: target)
    else:
        name = "transformers.modeling_flax_pytorch_utils"
        shim = types.SimpleNamespace(params=target, base_model_prefix="none")
    converter = pytest.importorskip(name, exc_type=ImportError)
    return jax.device_get(converter.convert_pytorch_state_dict_to_flax(state, shim))


@pytest.mark.parametrize("case", CASES)
def test_a_torch_directory_loads_as_the_library_converts_it(case, tmp_path):
    model = torch_model(case)
    model.save_pretrained(tmp_path / "part")
    kind, target = abstract(case)
    tree = pretrained.load_params(tmp_path / "part", kind, target)
    assert trees.num_params(tree) == sum(p.numel() for p in model.parameters())
    expected = by_the_library(kind, dict(model.state_dict()), target)
    assert_same(tree, expected)


@pytest.mark.parametrize("case", CASES)
def test_an_exported_directory_opens_in_torch_bit_for_bit(case, tmp_path):
    model = torch_model(case)
    model.save_pretrained(tmp_path / "theirs")
    kind, target = abstract(case)
    tree = pretrained.load_params(tmp_path / "theirs", kind, target)
    config = pretrained.load_config(tmp_path, "theirs")
    pretrained.save_component(tmp_path, "ours", config, tree, kind)
    again = type(model).from_pretrained(tmp_path / "ours")
    assert same_state(model, again)
    # Negative control: one value off in one tensor is seen.
    with_fault = dict(again.state_dict())
    next(iter(with_fault.values())).view(-1)[0] += 1e-3
    assert not same_state(model, again)


def same_state(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(
        bool((first[name] == second[name]).all()) for name in first
    )


@pytest.mark.parametrize("case", ["unet", "vae"])
def test_our_own_config_and_weights_open_in_diffusers(case, tmp_path):
    model = torch_model(case)
    kind, target = abstract(case)
    tree, config = drawn(target), CASES[case][1].config
    pretrained.save_component(tmp_path, "ours", config.to_dict(), tree, kind)
    again = type(model).from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    state = {name: value.numpy() for name, value in again.state_dict().items()}
    assert_same(from_published(state, target, kind), tree)
