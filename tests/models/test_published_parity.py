"""Files that the libraries and CLIP's authors write, through our loaders, to the same
numbers as their PyTorch classes: the whole way, at small sizes.

Tolerance everywhere: 1e-4 of the largest magnitude; float32 sums in another order give
1e-6 to 1e-5.
"""

import jax
import numpy as np
import pytest

from jaxanom import record, trees
from jaxanom.models import backbones, networks
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.checkpoints.names import original_stable_diffusion
from jaxanom.models.clip import towers
from jaxanom.models.latent import unet, vae

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SD2_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    # One width per head at every resolution, as in Stable Diffusion 2.
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
}
TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
    "hidden_act": "gelu",
    "bos_token_id": 58,
    "eos_token_id": 59,
    "pad_token_id": 0,
}
# Heads of 20: OpenCLIP-H's image tower has 16 of 80 where others have 64.
VISION = {
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "hidden_act": "gelu",
}


def shaken(model):
    """Moves every parameter off 0 and 1, so that a leaf that is not read shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def assert_close(ours, theirs):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    largest = np.abs(theirs).max()
    assert largest > 0.05
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * largest


def nchw(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def second_unet(tmp_path_factory):
    """(torch model, directory) of a small Stable Diffusion 2 that predicts velocity."""
    diffusers = pytest.importorskip("diffusers")
    model = shaken(diffusers.UNet2DConditionModel(**SD2_UNET))
    folder = tmp_path_factory.mktemp("sd2")
    model.save_pretrained(folder / "unet")
    diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
    ).save_pretrained(folder / "scheduler")
    return model, folder


def test_stable_diffusion_2_with_its_velocity_read_as_noise(second_unet):
    model, folder = second_unet
    tower = backbones.load_unet(folder)
    assert tower.module.config.num_heads == (2, 4)
    latents, context = drawn(2, 8, 8, 4), drawn(2, 5, 24, seed=1)
    timesteps = np.array([901, 11], np.int32)
    apply = jax.jit(backbones.noise_apply(tower.module, folder))
    ours = apply(tower.params, latents, timesteps, context)
    with torch.no_grad():
        velocity = model(
            nchw(latents), torch.from_numpy(timesteps), torch.from_numpy(context)
        ).sample.numpy()
    velocity = velocity.transpose(0, 2, 3, 1)
    alphas = backbones.load_alphas(folder)[timesteps][:, None, None, None]
    # arXiv 2202.00512, appendix D: noise = sqrt(alpha) v + sqrt(1 - alpha) x.
    noise = np.sqrt(alphas) * velocity + np.sqrt(1 - alphas) * latents
    assert_close(ours, noise.astype(np.float32))
    assert np.abs(noise - velocity).max() > 0.1
    schedule = backbones.load_schedule(folder)
    assert schedule.levels(10)[-1] == 901 and schedule.final_alpha == "first"


def original_file(path, kind, state, generation_prefix=None):
    """Writes a torch state under latent-diffusion's names."""
    names = original_stable_diffusion.names(state, kind)
    prefix = original_stable_diffusion.prefixes(kind)[0]
    arrays = {prefix + names[name]: value.numpy() for name, value in state.items()}
    for name, value in arrays.items():
        if ".attn_1." in name and value.ndim == 2:
            arrays[name] = value[:, :, None, None]
    arrays["betas"] = np.zeros(3, np.float32)
    weights.write(path, arrays)
    return path


def same(first, second):
    first, second = trees.flatten(first), trees.flatten(second)
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[path], err_msg=path)


def test_a_unet_in_the_original_layout_is_the_one_in_diffusers(second_unet, tmp_path):
    model, folder = second_unet
    config = unet.UNetConfig.from_dict(pretrained.load_config(folder, "unet"))
    target = networks.shapes(unet.UNet(config))
    path = original_file(tmp_path / "sd.safetensors", "unet", model.state_dict())
    same(
        pretrained.load_params(path, "unet", target),
        pretrained.load_params(folder / "unet", "unet", target),
    )


def test_an_autoencoder_in_the_original_layout_is_the_one_in_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    model = shaken(model)
    model.save_pretrained(tmp_path / "vae")
    tower = backbones.load_autoencoder(tmp_path / "vae")
    path = original_file(tmp_path / "sd.safetensors", "vae", model.state_dict())
    same(pretrained.load_params(path, "vae", tower.params), tower.params)
    # The same network alone, as fine-tuned autoencoders are published.
    lone = {
        name.removeprefix("first_stage_model."): value
        for name, value in weights.read(path).items()
    }
    weights.write(tmp_path / "lone.safetensors", lone)
    same(
        pretrained.load_params(tmp_path / "lone.safetensors", "vae", tower.params),
        tower.params,
    )
    assert isinstance(tower.module, vae.AutoencoderKL)


def test_openclip_in_transformers_format(tmp_path):
    config = transformers.CLIPConfig(
        text_config=TEXT, vision_config=VISION, projection_dim=24
    )
    model = shaken(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    tower = backbones.load_clip(tmp_path)
    ids = np.random.default_rng(0).integers(1, 58, (3, 9)).astype(np.int32)
    ids[:, 0], ids[0, 5], ids[1:, 8] = 58, 59, 59
    image = np.random.default_rng(1).uniform(size=(2, 28, 28, 3)).astype(np.float32)
    vision = tower.module.config.vision_config
    pixels = (image - np.float32(vision.image_mean)) / np.float32(vision.image_std)
    found = jax.jit(tower.module.apply)({"params": tower.params}, ids, image)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids).long(), nchw(pixels))
    assert_close(found.logits_per_image, wanted.logits_per_image)
    assert_close(
        found.text.text_features, model.get_text_features(torch.from_numpy(ids).long())
    )
    assert_close(found.text.last_hidden_state, wanted.text_model_output[0])
    assert_close(found.image.patch_tokens, wanted.vision_model_output[0][:, 1:])
    # The image tower alone, and the text tower without projection, of the same file.
    image_tower = backbones.load_image_encoder(tmp_path)
    same(
        image_tower.params,
        {k: tower.params[k] for k in ("vision_model", "visual_projection")},
    )
    text = towers.TextTower(tower.module.config.text_config, projection=False)
    shapes = networks.shapes(text)
    with pytest.raises(ValueError, match="in the weights but not in the model"):
        pretrained.load_params(tmp_path, "text_encoder", shapes)


class Block(torch.nn.Module):
    """One layer as CLIP's authors wrote it: torch's own fused attention."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Sequential()
        self.mlp.add_module("c_fc", torch.nn.Linear(width, hidden))
        self.mlp.add_module("gelu", torch.nn.GELU())
        self.mlp.add_module("c_proj", torch.nn.Linear(hidden, width))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        width, hidden = config["hidden_size"], config["intermediate_size"]
        layers = [
            Block(width, config["num_attention_heads"], hidden)
            for _ in range(config["num_hidden_layers"])
        ]
        self.resblocks = torch.nn.ModuleList(layers)

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(torch.nn.Module):
    def __init__(self, joint):
        super().__init__()
        width, patch = VISION["hidden_size"], VISION["patch_size"]
        num = 1 + (VISION["image_size"] // patch) ** 2
        self.class_embedding = torch.nn.Parameter(torch.randn(width))
        self.positional_embedding = torch.nn.Parameter(torch.randn(num, width))
        self.proj = torch.nn.Parameter(torch.randn(width, joint))
        self.conv1 = torch.nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.transformer = Tower(VISION)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class Original(torch.nn.Module):
    """A small CLIP under the names of its authors' release."""

    def __init__(self, joint=24):
        super().__init__()
        width, length = TEXT["hidden_size"], TEXT["max_position_embeddings"]
        self.visual = Visual(joint)
        self.transformer = Tower(TEXT)
        self.token_embedding = torch.nn.Embedding(TEXT["vocab_size"], width)
        self.positional_embedding = torch.nn.Parameter(torch.randn(length, width))
        self.ln_final = torch.nn.LayerNorm(width)
        self.text_projection = torch.nn.Parameter(torch.randn(width, joint))
        self.logit_scale = torch.nn.Parameter(torch.tensor(1.5))

    def states(self, ids, layers=None):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        for block in self.transformer.resblocks[:layers]:
            x = block(x, mask)
        return self.ln_final(x)

    def text(self, ids):
        x = self.states(ids)
        return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(3)
    return shaken(Original())


def sentences():
    ids = np.random.default_rng(0).integers(1, 58, (3, 9))
    ids[:, 0], ids[0, 5:], ids[1:, 8] = 58, 0, 59
    ids[0, 5] = 59
    return ids


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_names_of_clips_authors_with_fused_attention(original, tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    state = original.state_dict()
    if suffix == "pt":
        torch.save(state, path)
    else:
        weights.write(path, {name: value.numpy() for name, value in state.items()})
    config = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 24}
    record.write_json(tmp_path / "config.json", config)
    tower = backbones.load_clip(path)
    image = np.random.default_rng(1).uniform(size=(2, 28, 28, 3)).astype(np.float32)
    vision = tower.module.config.vision_config
    pixels = (image - np.float32(vision.image_mean)) / np.float32(vision.image_std)
    ids = sentences()
    found = jax.jit(tower.module.apply)(
        {"params": tower.params}, ids.astype(np.int32), image
    )
    with torch.no_grad():
        assert_close(found.image.image_features, original.visual(nchw(pixels)))
        assert_close(found.text.text_features, original.text(torch.from_numpy(ids)))


def test_the_text_tower_of_stable_diffusion_2_ends_before_openclips_last_layer(
    original, tmp_path
):
    prefix = original_stable_diffusion.OPEN_TEXT
    arrays = {
        prefix + name: value.numpy()
        for name, value in original.state_dict().items()
        if not name.startswith("visual.")
    }
    path = weights.write(tmp_path / "sd.safetensors", arrays)
    config = towers.TextConfig.from_dict(TEXT | {"num_hidden_layers": 1})
    module = towers.TextTower(config, projection=False)
    ids = sentences()
    shapes = networks.shapes(module)
    params = pretrained.load_params(path, "text_encoder", shapes)
    found = jax.jit(module.apply)({"params": params}, ids.astype(np.int32))
    with torch.no_grad():
        wanted = original.states(torch.from_numpy(ids), layers=1)
    assert_close(found.last_hidden_state, wanted)
    # Two layers early is another tower: an error.
    deeper = {
        name.replace("resblocks.1.", "resblocks.2."): value
        for name, value in arrays.items()
        if "resblocks.1." in name
    }
    weights.write(path, arrays | deeper)
    with pytest.raises(ValueError, match=r"resblocks\.2\."):
        pretrained.load_params(path, "text_encoder", shapes)


def test_sizes_of_the_authors_vit_are_told_from_its_shapes(tmp_path):
    shapes = {
        "visual.conv1.weight": (768, 3, 16, 16),
        "visual.positional_embedding": (197, 768),
        "visual.proj": (768, 512),
        "token_embedding.weight": (49408, 512),
        "positional_embedding": (77, 512),
        "ln_final.weight": (512,),
    }
    for prefix, width in (("", 512), ("visual.", 768)):
        for i in range(12):
            name = f"{prefix}transformer.resblocks.{i}.mlp.c_fc.weight"
            shapes[name] = (4 * width, width)
    found = towers.ClipConfig.from_dict(backbones.sources.openai_clip.config(shapes))
    published = {"text_config": {}, "vision_config": {"patch_size": 16}}
    assert found == towers.ClipConfig.from_dict(published | {"projection_dim": 512})
    for change, message in (
        ({"visual.layer1.0.conv1.weight": (1,)}, "ResNet"),
        ({"visual.conv1.weight": (1280, 3, 14, 14)}, "cannot be told"),
    ):
        with pytest.raises(ValueError, match=message):
            backbones.sources.openai_clip.config(shapes | change)
    del shapes["visual.proj"]
    with pytest.raises(ValueError, match=r"visual\.proj.* missing"):
        backbones.sources.openai_clip.config(shapes)
