"""The residual image tower against a plain torch transcription of the paper's text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import trees
from jaxanom.models.clip import pair, resnet

CONFIG = resnet.ResNetConfig(
    layers=(2, 1, 1, 2), width=4, num_heads=4, projection_dim=6, image_size=64
)
EPS = CONFIG.norm_eps


def published(rng):
    """Random tensors under released names; norms off their initial values."""
    state = {}

    def conv(name, out, inside, size):
        scale = (inside * size * size) ** -0.5
        shape = (out, inside, size, size)
        state[f"{name}.weight"] = rng.normal(0, scale, shape)

    def norm(name, width):
        state[f"{name}.weight"] = rng.uniform(0.5, 1.5, width)
        state[f"{name}.bias"] = rng.normal(0, 0.2, width)
        state[f"{name}.running_mean"] = rng.normal(0, 0.2, width)
        state[f"{name}.running_var"] = rng.uniform(0.5, 1.5, width)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    def dense(name, out, inside):
        state[f"{name}.weight"] = rng.normal(0, inside**-0.5, (out, inside))
        state[f"{name}.bias"] = rng.normal(0, 0.1, out)

    width = CONFIG.width
    for i, (inside, out) in enumerate(((3, 2), (2, 2), (2, 4)), start=1):
        conv(f"visual.conv{i}", out, inside, 3)
        norm(f"visual.bn{i}", out)
    inside = width
    for stage, depth in enumerate(CONFIG.layers):
        planes = width * 2**stage
        for block in range(depth):
            name = f"visual.layer{stage + 1}.{block}"
            conv(f"{name}.conv1", planes, inside, 1)
            conv(f"{name}.conv2", planes, planes, 3)
            conv(f"{name}.conv3", 4 * planes, planes, 1)
            for i, channels in enumerate((planes, planes, 4 * planes), start=1):
                norm(f"{name}.bn{i}", channels)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * planes, inside, 1)
                norm(f"{name}.downsample.1", 4 * planes)
            inside = 4 * planes
    tokens = (CONFIG.image_size // 32) ** 2 + 1
    state["visual.attnpool.positional_embedding"] = rng.normal(0, 0.1, (tokens, inside))
    for name in ("q_proj", "k_proj", "v_proj"):
        dense(f"visual.attnpool.{name}", inside, inside)
    dense("visual.attnpool.c_proj", CONFIG.projection_dim, inside)
    return {name: np.asarray(v, np.float32) for name, v in state.items()}


def transcription(torch, state, pixels):
    """ModifiedResNet, written out: [B, 3, H, W] -> all tokens [B, 1 + N, K]."""
    functional = torch.nn.functional
    state = {name: torch.from_numpy(np.array(v)) for name, v in state.items()}

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def norm(x, name):
        leaves = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{name}.{k}"] for k in leaves))

    x = pixels
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = norm(conv(x, f"visual.conv{i}", stride), f"visual.bn{i}").relu()
    x = functional.avg_pool2d(x, 2)
    for stage, depth in enumerate(CONFIG.layers, start=1):
        for block in range(depth):
            name = f"visual.layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = norm(conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
            out = norm(conv(out, f"{name}.conv2"), f"{name}.bn2").relu()
            out = functional.avg_pool2d(out, stride) if stride > 1 else out
            out = norm(conv(out, f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                x = functional.avg_pool2d(x, stride) if stride > 1 else x
                x = norm(conv(x, f"{name}.downsample.0"), f"{name}.downsample.1")
            x = (out + x).relu()
    grid = x.flatten(2).permute(2, 0, 1)  # [N, B, C]
    tokens = torch.cat([grid.mean(0, keepdim=True), grid])
    pool = "visual.attnpool"
    tokens = tokens + state[f"{pool}.positional_embedding"][:, None]
    found, _ = functional.multi_head_attention_forward(
        tokens,
        tokens,
        tokens,
        tokens.shape[-1],
        CONFIG.num_heads,
        None,
        torch.cat(
            [state[f"{pool}.{name}.bias"] for name in ("q_proj", "k_proj", "v_proj")]
        ),
        None,
        None,
        False,
        0.0,
        state[f"{pool}.c_proj.weight"],
        state[f"{pool}.c_proj.bias"],
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
        q_proj_weight=state[f"{pool}.q_proj.weight"],
        k_proj_weight=state[f"{pool}.k_proj.weight"],
        v_proj_weight=state[f"{pool}.v_proj.weight"],
    )
    return found.permute(1, 0, 2).numpy()


@pytest.fixture(scope="module")
def state():
    return published(np.random.default_rng(0))


def test_all_tokens_equal_the_transcription(state):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(1).random((2, 64, 64, 3)).astype(np.float32)
    mean, std = (np.asarray(x) for x in (CONFIG.image_mean, CONFIG.image_std))
    pixels = ((image - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    wanted = transcription(torch, state, torch.from_numpy(pixels.copy()))
    module = resnet.ResNetTower(CONFIG)
    params = resnet.params_from_published(state)
    found = jax.jit(module.apply)({"params": params}, image)
    scale = np.abs(wanted).max()
    # Some dozen float32 layers: 1e-6 of the scale is seen.
    np.testing.assert_allclose(found.image_features, wanted[:, 0], atol=1e-5 * scale)
    np.testing.assert_allclose(found.patch_tokens, wanted[:, 1:], atol=1e-5 * scale)
    # Negative control: without the pools' positions the answer is another one.
    params["visual"]["attnpool"]["positional_embedding"] *= 0
    other = jax.jit(module.apply)({"params": params}, image).image_features
    assert np.abs(other - wanted[:, 0]).max() > 1e-2 * scale


def test_the_tree_of_a_released_file_is_that_of_the_module(state):
    module = resnet.ResNetTower(CONFIG)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    )["params"]
    trees.check_same_shapes(resnet.params_from_published(state), shapes, "here")
    assert resnet.recognises(state)
    assert resnet.config_from_published(state, num_heads=4) == CONFIG


def test_released_sizes_make_the_released_number_of_weights():
    module = resnet.ResNetTower(resnet.ResNetConfig())
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    )["params"]
    trunk = {k: v for k, v in trees.flatten(shapes).items() if "bn" not in k}
    norms = {k: v for k, v in trees.flatten(shapes).items() if "bn" in k}
    # RN50's image tower has 38,316,896 trained parameters; statistics come on top.
    trained = sum(v.size for v in trunk.values())
    trained += sum(v.size for k, v in norms.items() if k.endswith(("scale", "bias")))
    assert trained == 38_316_896


def test_features_of_a_residual_clip_are_normalised(state):
    module = resnet.ResNetTower(CONFIG)
    encode = pair.encoder(module)
    params = resnet.params_from_published(state)
    image = np.random.default_rng(1).random((2, 64, 64, 3)).astype(np.float32)
    pooled, patches = jax.jit(encode)(params, image)
    assert pooled.shape == (2, 6) and patches.shape == (2, 2, 2, 6)
    np.testing.assert_allclose(jnp.linalg.norm(pooled, axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"layers": (1, 1)}, {"image_size": 100}, {"num_heads": 7}]
)
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError):
        resnet.ResNetConfig(**wrong)


def test_foreign_tensors_and_images_are_refused(state):
    with pytest.raises(ValueError, match=r"visual\.proj"):
        resnet.params_from_published({**state, "visual.proj": np.zeros((2, 2))})
    module = resnet.ResNetTower(CONFIG)
    params = {"params": resnet.params_from_published(state)}
    with pytest.raises(ValueError, match="wanted"):
        module.apply(params, jnp.zeros((1, 32, 64, 3)))
    with pytest.raises(ValueError, match="float"):
        module.apply(params, jnp.zeros((1, 64, 64, 3), jnp.uint8))
