"""Counts worked out by hand, and the published figures of two networks."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxanom import flops
from jaxanom.models import networks
from jaxanom.models.clip import towers
from jaxanom.models.latent import unet
from jaxanom.models.ops import attention


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def conv(image, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        image,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_a_matrix_product_is_two_operations_per_multiply_add():
    found = flops.count(jnp.matmul, shape(3, 5), shape(5, 7))
    assert found == flops.Count(matmul=2 * 3 * 5 * 7)
    batched = flops.count(
        lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b),
        shape(2, 3, 4, 5),
        shape(2, 7, 4, 5),
    )
    assert batched.matmul == 2 * (2 * 4 * 3 * 7) * 5


def test_a_convolution_counts_one_window_per_output_and_group():
    image = shape(2, 8, 6, 4)
    assert flops.count(conv, image, shape(3, 3, 4, 10)) == flops.Count(
        convolution=2 * (2 * 8 * 6 * 10) * (3 * 3 * 4)
    )
    strided = flops.count(lambda x, k: conv(x, k, stride=2), image, shape(3, 3, 4, 10))
    assert strided.total == 2 * (2 * 4 * 3 * 10) * (3 * 3 * 4)
    grouped = flops.count(lambda x, k: conv(x, k, groups=2), image, shape(3, 3, 2, 10))
    assert grouped.total == 2 * (2 * 8 * 6 * 10) * (3 * 3 * 2)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_each_gradient_of_a_convolution_costs_what_the_convolution_costs(
    stride, groups
):
    args = shape(2, 8, 8, 4), shape(3, 3, 4 // groups, 6)
    forward = flops.count(lambda x, k: conv(x, k, stride, groups), *args)
    both = flops.count(
        lambda x, k: jax.vjp(lambda *a: conv(*a, stride, groups), x, k)[1](
            jnp.ones((2, 8 // stride, 8 // stride, 6))
        ),
        *args,
    )
    # The primal's value is not asked for, and its convolution is traced all the same.
    assert both.convolution == 3 * forward.convolution


def test_training_costs_three_forward_passes_of_matrix_products():
    def loss(weights, rows):
        return jnp.sum(jnp.tanh(rows @ weights) ** 2)

    args = shape(5, 7), shape(3, 5)
    forward = flops.count(loss, *args)
    grads = flops.count(jax.grad(loss, argnums=(0, 1)), *args)
    assert grads.matmul == 3 * forward.matmul


def test_loops_count_their_turns_and_inner_loops_theirs():
    def inner(x, _):
        return x @ x, None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=3)[0], None

    once = 2 * 4**3
    assert flops.count(lambda x: inner(x, 0)[0], shape(4, 4)).total == once
    nested = flops.count(
        lambda x: jax.lax.scan(outer, x, None, length=5)[0], shape(4, 4)
    )
    assert nested.total == 15 * once and nested.unknown == ()
    fori = flops.count(
        lambda x: jax.lax.fori_loop(0, 6, lambda i, y: y @ y, x), shape(4, 4)
    )
    assert fori.total == 6 * once


def test_a_loop_whose_turns_depend_on_values_is_one_turn_and_named():
    found = flops.count(
        lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x),
        shape(4, 4),
    )
    assert found.total == 2 * 4**3
    assert len(found.unknown) == 1 and found.unknown[0].startswith("while")


def test_a_branch_counts_as_the_dearest():
    found = flops.count(
        lambda p, x: jax.lax.cond(p, lambda y: y @ y @ y, lambda y: y + 1, x),
        shape(dtype=bool),
        shape(4, 4),
    )
    assert found.total == 2 * 2 * 4**3


def test_jit_remat_and_custom_derivatives_change_no_count():
    @jax.custom_vjp
    def by_hand(x):
        return x @ x

    by_hand.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    plain = flops.count(lambda x: x @ x, shape(4, 4))
    for form in (by_hand, jax.jit(by_hand), jax.checkpoint(lambda x: x @ x)):
        assert flops.count(form, shape(4, 4)) == plain
    assert flops.count(jax.grad(lambda x: by_hand(x).sum()), shape(4, 4)).matmul == (
        3 * plain.matmul
    )


def test_rows_spread_over_devices_count_on_all_of_them():
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
    )
    args = shape(8, 5), shape(5, 3)
    assert flops.count(spread, *args).total == 2 * 8 * 5 * 3


def test_forms_of_attention_count_alike():
    args = (shape(2, 16, 3, 8),) * 3
    counts = {
        form: flops.count(
            lambda *a, form=form: attention.dot_product(*a, implementation=form), *args
        )
        for form in ("matmul", "lean")  # "flash": tests/models/test_flash.py
    }
    assert {found.total for found in counts.values()} == {2 * (2 * 2 * 3 * 16 * 16 * 8)}


def test_moving_values_is_free_and_arithmetic_is_counted_apart():
    moved = flops.count(lambda x: x.reshape(2, 8).T[::2].astype(int), shape(4, 4))
    assert moved == flops.Count()
    summed = flops.count(lambda x: jnp.sum(x * x), shape(4, 4))
    assert summed == flops.Count(other=16 + 16)


def forward(module, *inputs):
    params = networks.shapes(module)
    return flops.count(
        lambda params, *inputs: module.apply({"params": params}, *inputs),
        params,
        *inputs,
    )


def test_the_unet_of_stable_diffusion_takes_803_gflop():
    config = unet.UNetConfig(cross_attention_dim=768)
    found = forward(
        unet.UNet(config),
        shape(1, 64, 64, 4),
        shape(1, dtype=jnp.int32),
        shape(1, 77, 768),
    )
    assert found.unknown == ()
    assert found.total == pytest.approx(803e9, rel=0.01)  # the published figure


def test_the_large_clip_at_518_px_takes_1014_gflop():
    config = towers.VisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        projection_dim=768,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    found = forward(towers.ImageTower(config), shape(1, 518, 518, 3))
    assert found.unknown == ()
    assert found.total == pytest.approx(1014e9, rel=0.01)  # the published figure
