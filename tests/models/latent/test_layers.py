"""Layers shared by the UNet and the autoencoders, and fresh parameters for them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxanom import trees
from jaxanom.models.latent import layers
from jaxanom.models.ops import initialise


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _randomised(module, *inputs, **keywords):
    """Parameters with no leaf at 0 or 1, so a leaf that is not read shows."""
    rng = np.random.default_rng(0)
    params = initialise.parameters(module, jax.random.key(0), *inputs, **keywords)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0, 0.2, leaf.shape).astype("f4"),
        params,
    )


def test_timestep_embedding_is_cosine_then_sine_of_geometric_frequencies():
    embedding = layers.sinusoidal_embedding(jnp.array([0, 7]), 8)
    angles = 7 * 10000.0 ** (-np.arange(4) / 4)
    wanted = np.stack([[1] * 4 + [0] * 4, [*np.cos(angles), *np.sin(angles)]])
    np.testing.assert_allclose(embedding, wanted, atol=1e-6)  # float32 angles up to 7


def test_timestep_embedding_can_put_sines_first_and_shift_frequencies():
    embedding = layers.sinusoidal_embedding(
        jnp.array([2]), 6, flip_sin_to_cos=False, freq_shift=1
    )
    angles = 2 * 10000.0 ** (-np.arange(3) / 2)
    wanted = np.concatenate([np.sin(angles), np.cos(angles)])[None]
    np.testing.assert_allclose(embedding, wanted, atol=1e-6)  # float32


def test_timestep_embedding_refuses_an_odd_width():
    with pytest.raises(ValueError, match="even"):
        layers.sinusoidal_embedding(jnp.array([1]), 5)


def test_group_norm_equals_its_definition_in_float64():
    inputs = np.random.default_rng(1).normal(3, 2, (2, 3, 5, 6)).astype(np.float32)
    scale, bias = np.arange(1.0, 7), np.arange(6.0)
    groups = inputs.astype(np.float64).reshape(2, 15, 3, 2)
    mean = groups.mean((1, 3), keepdims=True)
    variance = groups.var((1, 3), keepdims=True)
    wanted = ((groups - mean) / np.sqrt(variance + 1e-2)).reshape(inputs.shape)
    ours = layers.group_norm(jnp.asarray(inputs), scale, bias, 3, 1e-2)
    np.testing.assert_allclose(ours, wanted * scale + bias, atol=2e-5)  # values to 20


def test_group_norm_survives_a_mean_four_thousand_times_the_spread():
    inputs = 4000 + _normal(2, 1, 8, 8, 4)
    ours = layers.group_norm(inputs, jnp.ones(4), jnp.zeros(4), 2, 1e-6)
    wanted = np.asarray(inputs, np.float64).reshape(64, 2, 2)
    wanted = (wanted - wanted.mean((0, 2), keepdims=True)) / wanted.std(
        (0, 2), keepdims=True
    )
    # float32 resolves 2e-4 at 4000; the one-pass variance below is off by percents.
    np.testing.assert_allclose(ours.reshape(64, 2, 2), wanted, atol=2e-3)
    group = inputs.reshape(64, 2, 2)[:, 0]
    one_pass = jnp.mean(group**2) - jnp.mean(group) ** 2
    assert abs(one_pass / np.asarray(group, np.float64).var() - 1) > 1e-2


def test_group_norm_statistics_stay_float32_for_bfloat16_input():
    inputs = (300 + 10 * _normal(3, 1, 16, 16, 4)).astype(jnp.bfloat16)
    ours = layers.group_norm(inputs, jnp.ones(4), jnp.zeros(4), 1, 1e-6)
    assert ours.dtype == jnp.float32
    assert abs(float(ours.mean())) < 1e-4  # float32 mean of 1024 values near 300
    assert abs(float(ours.std()) - 1) < 1e-4


def test_group_norm_refuses_groups_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="norm_num_groups=4"):
        layers.group_norm(jnp.ones((1, 2, 2, 6)), jnp.ones(6), jnp.ones(6), 4, 1e-6)


def test_enlarge_repeats_every_pixel():
    inputs = _normal(4, 2, 3, 2, 5)
    wanted = np.repeat(np.repeat(inputs, 2, axis=1), 2, axis=2)
    np.testing.assert_array_equal(layers.enlarge(inputs), wanted)


def test_pointwise_conv_equals_a_convolution():
    inputs = _normal(5, 2, 4, 3, 5)
    module = layers.PointwiseConv(7)
    params = _randomised(module, inputs)
    wanted = jax.lax.conv_general_dilated(
        inputs,
        params["kernel"],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    ours = module.apply({"params": params}, inputs)
    np.testing.assert_allclose(ours, wanted + params["bias"], atol=1e-5)  # float32 sums


def test_gate_is_the_exact_gelu():
    inputs = _normal(6, 1, 50, 4)
    module = layers.GatedGelu(3)
    params = _randomised(module, inputs)
    dense = inputs @ params["proj"]["kernel"] + params["proj"]["bias"]
    linear, gate = np.split(np.asarray(dense, np.float64), 2, axis=-1)
    exact = linear * gate * special.ndtr(gate)
    ours = module.apply({"params": params}, inputs)
    np.testing.assert_allclose(ours, exact, atol=1e-5)  # float32 at values to 10
    tanh = linear * np.asarray(jax.nn.gelu(gate, approximate=True))
    assert np.abs(tanh - exact).max() > 1e-4  # the form of diffusers' Flax class


def _attention(num_tokens=6, num_context=5, channels=8, width=7):
    module = layers.Attention(num_heads=2)
    tokens, context = _normal(7, 2, num_tokens, channels), _normal(8, 2, 5, width)
    return module, _randomised(module, tokens, context, None), tokens, context


def test_a_blocking_bias_equals_two_softmaxes_chosen_per_query():
    module, params, tokens, context = _attention()
    inside = jnp.array([True, False, True, True, False, False])[None, :, None]
    in_group = jnp.array([True, True, False, False, False])[None, None, :]
    bias = jnp.where(inside == in_group, 0.0, -1e9)
    ours = module.apply({"params": params}, tokens, context, bias)
    first = module.apply({"params": params}, tokens, context[:, :2], None)
    second = module.apply({"params": params}, tokens, context[:, 2:], None)
    wanted = jnp.where(inside, first, second)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)  # float32
    unbiased = module.apply({"params": params}, tokens, context, None)
    assert jnp.abs(unbiased - wanted).max() > 1e-2  # the bias does the work


def test_the_other_text_does_not_reach_a_blocked_query():
    module, params, tokens, context = _attention()
    bias = jnp.where(jnp.arange(5) < 2, 0.0, -1e9) * jnp.ones((1, 6, 1))
    other = context.at[:, 2:].set(9.0)
    ours = module.apply({"params": params}, tokens, context, bias)
    np.testing.assert_array_equal(
        ours, module.apply({"params": params}, tokens, other, bias)
    )


def test_spatial_transformer_names_the_key_when_heads_do_not_divide():
    module = layers.SpatialTransformer(num_heads=3, num_layers=1, num_groups=2)
    with pytest.raises(ValueError, match="attention_head_dim"):
        module.init(
            jax.random.key(0), jnp.ones((1, 2, 2, 8)), jnp.ones((1, 3, 4)), None
        )


def test_fresh_parameters_have_the_tree_of_linen_init():
    module = layers.ResidualBlock(16, num_groups=4, epsilon=1e-5)
    inputs, embedding = jnp.ones((1, 4, 4, 8)), jnp.ones((1, 32))
    ours = initialise.parameters(module, jax.random.key(3), inputs, embedding)
    linen = jax.eval_shape(module.init, jax.random.key(3), inputs, embedding)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, linen)
    for path, leaf in trees.flatten(ours).items():
        name = path.rsplit("/", 1)[-1]
        if name == "kernel":
            # 128 to 2304 draws: three standard errors are at most 20 %.
            fan_in = np.prod(leaf.shape[:-1])
            assert np.isclose(leaf.std() * np.sqrt(fan_in), 1, rtol=0.2), path
        else:
            assert jnp.all(leaf == {"scale": 1, "bias": 0}[name]), path


def test_kernels_are_cut_at_two_deviations_of_variance_one_over_fan_in():
    kernel = initialise.lecun_normal(np.random.default_rng(0), (3, 3, 50, 200))
    # 90000 draws: standard error of the standard deviation 0.24 %.
    assert np.isclose(kernel.std() * np.sqrt(450), 1, rtol=0.01)
    assert np.abs(kernel).max() <= 2 / (0.8796 * np.sqrt(450))


def test_fresh_parameters_depend_on_key_and_path_only():
    small = layers.ResidualBlock(8, num_groups=4, epsilon=1e-5)
    inputs, embedding = jnp.ones((1, 4, 4, 8)), jnp.ones((1, 6))

    def draw(seed, *args):
        key = jax.random.key(seed)
        return trees.flatten(initialise.parameters(small, key, *args))

    with_time, without_time = draw(0, inputs, embedding), draw(0, inputs)
    for path, leaf in without_time.items():
        np.testing.assert_array_equal(leaf, with_time[path])
    assert jnp.any(draw(1, inputs)["conv1/kernel"] != without_time["conv1/kernel"])
    assert jnp.any(without_time["conv2/kernel"] != without_time["conv1/kernel"])


def test_overrides_replace_the_rule_and_must_match_something():
    module, inputs = layers.PointwiseConv(4), jnp.ones((1, 2, 2, 3))

    def draw(pattern):
        overrides = {pattern: initialise.constant(2.0)}
        return initialise.parameters(
            module, jax.random.key(0), inputs, overrides=overrides
        )

    assert jnp.all(draw("kernel")["kernel"] == 2)
    assert jnp.all(draw("kernel")["bias"] == 0)
    with pytest.raises(ValueError, match="conv_out"):
        draw("conv_out/.*")


def test_a_parameter_without_a_rule_is_an_error():
    class Odd(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, inputs):
            return inputs * self.param("gain", layers.nn.initializers.ones, ())

    with pytest.raises(ValueError, match="'gain'"):
        initialise.parameters(Odd(), jax.random.key(0), jnp.ones(2))
