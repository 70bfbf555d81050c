"""The latent UNet: the same function as diffusers' classes, and what the bias does."""

import dataclasses

import diffusers_twins
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import trees
from jaxanom.models.latent import layers, unet
from jaxanom.models.ops import initialise

TINY = unet.UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=32,
    cross_attention_dim=12,
    attention_head_dim=(2, 4),
)
LENGTH = 6
SIDE = 8


def _abstract(config, side=SIDE):
    shape = jax.ShapeDtypeStruct
    return (
        shape((1, side, side, config.in_channels), jnp.float32),
        shape((1,), jnp.int32),
        shape((1, LENGTH, config.cross_attention_dim), jnp.float32),
    )


def _inputs(config, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((batch, SIDE, SIDE, config.in_channels), np.float32)
    context = rng.standard_normal(
        (batch, LENGTH, config.cross_attention_dim), np.float32
    )
    timesteps = np.array([981, 3, 250, 0][:batch], np.int32)
    return jnp.asarray(latents), jnp.asarray(timesteps), jnp.asarray(context)


def _params(config, seed=0):
    """Random parameters with no leaf at 0 or 1, so a leaf that is not read shows."""
    rng = np.random.default_rng(seed)
    params = initialise.parameters(
        unet.UNet(config), jax.random.key(seed), *_abstract(config)
    )

    def moved(leaf):  # in numpy: jax would compile once per shape
        noise = 0.2 * rng.standard_normal(leaf.shape, np.float32)
        return np.asarray(leaf) + (noise if leaf.ndim == 1 else 0.0)

    return jax.tree.map(moved, params)


@pytest.fixture(scope="module")
def tiny():
    """(apply, params, inputs): one compilation with and one without a bias."""
    apply = jax.jit(
        lambda params, *inputs: unet.UNet(TINY).apply({"params": params}, *inputs)
    )
    return apply, _params(TINY), _inputs(TINY)


def _bias(value_of_grid, batch=2, length=LENGTH):
    return {
        h * w: jnp.broadcast_to(value_of_grid(h, w), (batch, h * w, length))
        for h, w in unet.attention_resolutions(TINY, SIDE, SIDE)
    }


def _torch_unet(config):
    return diffusers_twins.torch_model(
        "UNet2DConditionModel", config, "num_attention_heads"
    )


def _run_torch(model, latents, timesteps, context):
    import torch

    with torch.no_grad():
        noise = model(
            torch.from_numpy(np.array(latents).transpose(0, 3, 1, 2)),
            torch.from_numpy(np.array(timesteps)),
            torch.from_numpy(np.array(context)),
        ).sample
    return noise.numpy().transpose(0, 2, 3, 1)


PARITY_CONFIGS = {
    "stable diffusion 1": TINY,
    "stable diffusion 2": dataclasses.replace(
        TINY,
        use_linear_projection=True,
        norm_num_groups=8,
        layers_per_block=2,
        attention_head_dim=4,
        transformer_layers_per_block=(1, 2),
    ),
    "three levels, all flags": dataclasses.replace(
        TINY,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        norm_eps=1e-3,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        attention_head_dim=(2, 4, 8),
        only_cross_attention=(False, True, False),
        flip_sin_to_cos=False,
        freq_shift=1,
        in_channels=9,
        out_channels=5,
    ),
}


@pytest.mark.parametrize("name", PARITY_CONFIGS)
def test_equals_diffusers_torch_unet(name):
    config = PARITY_CONFIGS[name]
    model = _torch_unet(config)
    params, inputs = (
        diffusers_twins.to_our_tree(model, _params(config)),
        _inputs(config),
    )
    apply = jax.jit(
        lambda *args: unet.UNet(config).apply({"params": args[0]}, *args[1:])
    )
    ours = apply(params, *inputs)
    wanted = _run_torch(model, *inputs)
    assert np.abs(wanted).max() > 0.3
    # Sums in another order: 1e-6 to 3e-6 measured in float32.
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    later = apply(params, inputs[0], inputs[1] + 5, inputs[2])
    assert np.abs(later - wanted).max() > 1e-3  # the comparison sees the timestep
    other = apply(params, *inputs[:2], inputs[2] + 0.1)
    assert np.abs(other - wanted).max() > 1e-3  # and the context


def test_differs_from_diffusers_flax_unet_by_its_two_constants_only(tiny, monkeypatch):
    pytest.importorskip("torch")
    flax_unet = pytest.importorskip("diffusers.models.unets.unet_2d_condition_flax")
    reference = flax_unet.FlaxUNet2DConditionModel(
        **{
            field.name: getattr(TINY, field.name)
            for field in dataclasses.fields(TINY)
            if field.name not in ("act_fn", "norm_num_groups", "norm_eps")
        }
    )
    apply, params, (latents, timesteps, context) = tiny
    wanted = jax.jit(lambda params, *inputs: reference.apply(params, *inputs).sample)(
        {"params": params}, latents.transpose(0, 3, 1, 2), timesteps, context
    ).transpose(0, 2, 3, 1)
    ours = apply(params, latents, timesteps, context)
    # The tanh form of GELU and a group-norm epsilon of 1e-5 in its transformers: both
    # move the output by less than 1e-3 here, and by more than rounding.
    np.testing.assert_allclose(ours, wanted, atol=1e-3)
    assert np.abs(ours - wanted).max() > 1e-5

    exact_gelu, norm = layers.nn.gelu, layers.group_norm
    monkeypatch.setattr(
        layers.nn, "gelu", lambda x, approximate: exact_gelu(x, approximate=True)
    )
    monkeypatch.setattr(
        layers, "group_norm", lambda *args: norm(*args[:4], max(args[4], 1e-5))
    )
    same = jax.jit(lambda params, *inputs: unet.UNet(TINY).apply(params, *inputs))(
        {"params": params}, latents, timesteps, context
    )
    np.testing.assert_allclose(same, wanted, atol=1e-5)  # float32 sums reordered


def test_zero_bias_equals_no_bias(tiny):
    apply, params, inputs = tiny
    biased = apply(params, *inputs, _bias(lambda h, w: jnp.zeros((1, 1, 1))))
    # The logits are equal; the attention may pick another form without a bias.
    np.testing.assert_allclose(biased, apply(params, *inputs), atol=1e-5)


def test_a_bias_equal_for_all_tokens_changes_nothing(tiny):
    apply, params, inputs = tiny
    biased = apply(params, *inputs, _bias(lambda h, w: jnp.full((1, 1, 1), 3.0)))
    np.testing.assert_allclose(biased, apply(params, *inputs), atol=1e-5)  # softmax


def test_blocking_tokens_equals_dropping_them(tiny):
    apply, params, (latents, timesteps, context) = tiny
    dropped = jnp.arange(LENGTH) >= 4
    blocked = _bias(lambda h, w: jnp.where(dropped, -1e9, 0.0)[None, None])
    ours = apply(params, latents, timesteps, context, blocked)
    short = apply(params, latents, timesteps, context[:, :4])
    np.testing.assert_allclose(ours, short, atol=1e-5)  # softmax sums reordered
    assert jnp.abs(ours - apply(params, latents, timesteps, context)).max() > 1e-3


@pytest.mark.parametrize("side", [8, 4])
def test_the_bias_of_every_grid_is_read(tiny, side):
    apply, params, inputs = tiny
    plain = apply(params, *inputs)
    tilt = jnp.linspace(-2, 2, LENGTH)[None, None]
    biased = apply(params, *inputs, _bias(lambda h, w: tilt * (h == side)))
    assert jnp.abs(biased - plain).max() > 1e-4


def test_a_bias_moves_only_the_example_it_belongs_to(tiny):
    apply, params, inputs = tiny
    tilt = (
        jnp.linspace(-2, 2, LENGTH)[None, None] * jnp.array([0.0, 1.0])[:, None, None]
    )
    plain = apply(params, *inputs, _bias(lambda h, w: jnp.zeros((1, 1, 1))))
    biased = apply(params, *inputs, _bias(lambda h, w: tilt))
    np.testing.assert_array_equal(biased[0], plain[0])
    assert jnp.abs(biased[1] - plain[1]).max() > 1e-3


def test_a_missing_grid_is_named(tiny):
    apply, params, inputs = tiny
    bias = _bias(lambda h, w: jnp.zeros((1, 1, 1)))
    del bias[16]
    with pytest.raises(ValueError, match="no entry 16 for the 4x4"):
        jax.eval_shape(apply, params, *inputs, bias)


def test_a_bias_of_another_length_is_refused(tiny):
    apply, params, inputs = tiny
    bias = _bias(lambda h, w: jnp.zeros((1, 1, 1)), length=LENGTH + 1)
    with pytest.raises(ValueError, match=r"wanted \(2 or 1, 64, 6\)"):
        jax.eval_shape(apply, params, *inputs, bias)


def test_examples_of_a_batch_do_not_mix(tiny):
    apply, params, (latents, timesteps, context) = tiny
    first = apply(params, latents, timesteps, context)[0]
    other = apply(params, latents.at[1].set(7.0), timesteps.at[1].set(9), context)
    np.testing.assert_array_equal(other[0], first)


def test_remat_changes_neither_values_nor_gradients():
    config = dataclasses.replace(
        TINY,
        block_out_channels=(16,),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=2,
    )
    params, inputs = _params(config), _inputs(config)
    bias = {64: jnp.ones((1, 64, 1)) * jnp.linspace(-1, 1, LENGTH)}

    def loss_and_grads(remat):
        model = unet.UNet(config, remat=remat)

        def loss(params):
            return jnp.mean(model.apply({"params": params}, *inputs, bias) ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    plain, recomputed = loss_and_grads("none"), loss_and_grads("full")
    assert jnp.isclose(plain[0], recomputed[0], rtol=1e-5)  # fused another way
    plain, recomputed = jax.device_get((plain[1], recomputed[1]))
    recomputed = trees.flatten(recomputed)
    for path, grads in trees.flatten(plain).items():
        # Gradients are 0.01 to 1; float32 sums fused another way.
        np.testing.assert_allclose(grads, recomputed[path], atol=1e-5, err_msg=path)
        assert np.abs(grads).max() > 0, path


def test_bfloat16_computes_near_float32_and_returns_float32(tiny):
    apply, params, inputs = tiny
    wanted = apply(params, *inputs)
    model = unet.UNet(TINY, dtype=jnp.bfloat16)
    ours = jax.jit(lambda p: model.apply({"params": p}, *inputs))(params)
    assert ours.dtype == jnp.float32
    # 8 bits of mantissa through about 30 layers.
    assert jnp.sqrt(jnp.mean((ours - wanted) ** 2)) < 0.05 * jnp.std(wanted)
    assert jnp.any(ours != wanted)


def test_zeroed_output_convolution_predicts_zero_noise(tiny):
    apply, _, inputs = tiny
    params = initialise.parameters(
        unet.UNet(TINY),
        jax.random.key(0),
        *_abstract(TINY),
        overrides={"conv_out/.*": initialise.zeros},
    )
    assert not jnp.any(apply(params, *inputs))
    assert jnp.any(params["conv_in"]["kernel"])


@pytest.mark.parametrize(
    ("config", "leaves", "values"),
    [
        # Published Stable Diffusion 1.5 and 2.1 UNets.
        (unet.UNetConfig(cross_attention_dim=768), 686, 859_520_964),
        (
            unet.UNetConfig(
                cross_attention_dim=1024,
                attention_head_dim=(5, 10, 20, 20),
                use_linear_projection=True,
            ),
            686,
            865_910_724,
        ),
    ],
)
def test_default_config_has_the_size_of_stable_diffusion(config, leaves, values):
    params = jax.eval_shape(
        unet.UNet(config).init, jax.random.key(0), *_abstract(config)
    )["params"]
    assert len(jax.tree.leaves(params)) == leaves
    assert trees.num_params(params) == values


def test_attention_grids_follow_the_blocks_with_cross_attention():
    assert unet.attention_resolutions(unet.UNetConfig(), 64, 32) == (
        (64, 32),
        (32, 16),
        (16, 8),
        (8, 4),
    )
    plain = dataclasses.replace(
        TINY, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
    )
    assert unet.attention_resolutions(plain, 8, 8) == ((4, 4),)


def test_attention_grids_are_exactly_those_the_network_asks_for():
    config = PARITY_CONFIGS["three levels, all flags"]
    asked = set()

    class Recorder(dict):
        def __contains__(self, num_queries):
            asked.add(num_queries)
            return True

        def __getitem__(self, num_queries):
            return jnp.zeros((1, num_queries, LENGTH))

    jax.eval_shape(
        lambda *inputs: unet.UNet(config).init(
            jax.random.key(0), *inputs, context_bias=Recorder()
        ),
        *_abstract(config),
    )
    assert asked == {h * w for h, w in unet.attention_resolutions(config, SIDE, SIDE)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": (2, 7, 8, 4)}, "multiples of 2"),
        ({"latents": (2, 8, 8, 3)}, "in_channels=4"),
        ({"context": (2, 6, 11)}, "cross_attention_dim=12"),
        ({"context": (1, 6, 12)}, "batch axis"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    shapes = {"latents": (2, 8, 8, 4), "context": (2, 6, 12), **change}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda latents, context: unet.UNet(TINY).init(
                jax.random.key(0), latents, jnp.zeros(2, jnp.int32), context
            ),
            jax.ShapeDtypeStruct(shapes["latents"], jnp.float32),
            jax.ShapeDtypeStruct(shapes["context"], jnp.float32),
        )


def test_config_survives_the_round_trip_through_json_types():
    config = PARITY_CONFIGS["stable diffusion 2"]
    assert unet.UNetConfig.from_dict(config.to_dict()) == config


def test_config_reads_what_diffusers_writes():
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    fields = TINY.to_dict()
    fields.pop("_class_name")
    written = dict(diffusers.UNet2DConditionModel(**fields).config)
    assert unet.UNetConfig.from_dict(written) == TINY


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_embed_type", "timestep"),
        ("addition_embed_type", "text_time"),
        ("resnet_time_scale_shift", "scale_shift"),
        ("dual_cross_attention", True),
        ("down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("act_fn", "gelu"),
        ("layers_per_block", [1, 2]),
        ("attention_head_dim", [2, 4, 8]),
        ("some_new_key", 1),
    ],
)
def test_config_names_the_key_it_cannot_honour(key, value):
    with pytest.raises(ValueError, match=key):
        unet.UNetConfig.from_dict({**TINY.to_dict(), key: value})


def test_config_ignores_bookkeeping():
    extra = {"_diffusers_version": "0.6.0", "_name_or_path": "x", "upcast_attention": 1}
    assert unet.UNetConfig.from_dict({**TINY.to_dict(), **extra}) == TINY
