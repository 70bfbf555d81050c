import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.models.ops import attention
from jaxanom.parallel import mesh as meshes

FORMS = ("matmul", "lean")  # those that a CPU runs; "flash": test_flash.py


def draw(seed, num_query=24, num_key=17, num_batch=2, num_heads=3, width=8):
    rng = np.random.default_rng(seed)
    shapes = [(num_batch, size, num_heads, width) for size in (num_query, num_key)]
    query = rng.normal(size=shapes[0])
    key, value = rng.normal(size=(2, *shapes[1]))
    return tuple(jnp.asarray(x, jnp.float32) for x in (query, key, value))


def by_hand(query, key, value, bias=0.0):
    """Equation 1 of arXiv 1706.03762 in float64 numpy."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits + bias)
    weights = weights / weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, value)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_the_formula(form):
    query, key, value = draw(0)
    out = attention.dot_product(query, key, value, implementation=form)
    # float32 rounding of sums over 17 keys of order-one values.
    np.testing.assert_allclose(out, by_hand(query, key, value), atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_gradient_of_matmul(form):
    query, key, value = draw(1)
    target = draw(2)[0]

    def loss(form, *args):
        return jnp.sum(attention.dot_product(*args, implementation=form) * target)

    wanted = jax.grad(loss, argnums=(1, 2, 3))("matmul", query, key, value)
    got = jax.jit(jax.grad(lambda *a: loss(form, *a), argnums=(0, 1, 2)))(
        query, key, value
    )
    for one, other in zip(got, wanted, strict=True):
        assert float(jnp.abs(other).max()) > 0.1  # otherwise equality means nothing
        np.testing.assert_allclose(one, other, atol=1e-5)  # float32, 24-term sums


@pytest.mark.parametrize("shape", ((2, 3, 24, 17), (1, 1, 24, 17), (2, 1, 1, 17)))
def test_bias_is_added_to_the_logits(shape):
    query, key, value = draw(3)
    bias = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    out = attention.dot_product(query, key, value, bias)
    np.testing.assert_allclose(out, by_hand(query, key, value, bias), atol=2e-6)
    # Negative control: without it the result differs.
    plain = attention.dot_product(query, key, value)
    assert float(jnp.abs(out - plain).max()) > 0.05


def test_lean_equals_matmul_at_the_size_it_is_chosen_for():
    query, key, value = draw(5, 512, 512, 1, 1, 8)
    assert attention.choose(query, key, False, "cpu") == "lean"
    forms = [
        attention.dot_product(query, key, value, implementation=form)
        for form in ("lean", "matmul")
    ]
    np.testing.assert_allclose(*forms, atol=2e-6)


@pytest.mark.parametrize("num_query, num_key", [(24, 18), (24, 17), (25, 16)])
def test_blocks_of_rows_change_neither_output_nor_gradients(
    num_query, num_key, monkeypatch
):
    inputs = draw(11, num_query, num_key)
    compiled = []

    def both(size):
        monkeypatch.setattr(attention, "BLOCK_SIZE", size)

        def total(*args):
            out = attention.dot_product(*args, implementation="lean")
            return jnp.sum(jnp.sin(out)), out

        gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
        compiled.append(str(jax.make_jaxpr(gradient)(*inputs)).count("scan["))
        return jax.tree.leaves(gradient(*inputs))

    for found, wanted in zip(both(64), both(2**20), strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-6)  # of order one, float32
    assert compiled[0] > compiled[1], "the small size did make blocks"


def test_lean_vmaps_over_a_leading_axis():
    query, key, value = (jnp.stack([x, 2 * x]) for x in draw(6))

    def attend(form):
        return jax.vmap(
            lambda *args: attention.dot_product(*args, implementation=form)
        )(query, key, value)

    np.testing.assert_allclose(attend("lean"), attend("matmul"), atol=5e-6)


@pytest.mark.parametrize("form", FORMS)
def test_huge_logits_stay_finite(form):
    query, key, value = draw(7)
    out = attention.dot_product(1e4 * query, key, value, implementation=form)
    assert bool(jnp.isfinite(out).all())


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_in_bfloat16_out_within_its_resolution(form):
    query, key, value = draw(8)
    half = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    out = attention.dot_product(*half, implementation=form)
    assert out.dtype == jnp.bfloat16
    # bfloat16 has 8 significant bits; the values are of order one.
    np.testing.assert_allclose(
        out.astype(jnp.float32),
        by_hand(*[x.astype(jnp.float32) for x in half]),
        atol=0.03,
    )


@pytest.mark.parametrize(
    "platform, num_query, num_key, width, dtype, wanted",
    [
        ("cpu", 197, 197, 64, "float32", "lean"),
        ("cpu", 77, 77, 64, "float32", "matmul"),
        ("cpu", 4096, 16, 40, "float32", "matmul"),
        ("cuda", 4096, 4096, 40, "bfloat16", "cudnn"),
        ("cuda", 1370, 1370, 64, "float16", "cudnn"),
        ("cuda", 4096, 4096, 40, "float32", "matmul"),
        ("cuda", 4096, 77, 40, "bfloat16", "matmul"),
        ("cuda", 4096, 4096, 160, "bfloat16", "matmul"),
        ("cuda", 4096, 4096, 36, "bfloat16", "matmul"),
        ("tpu", 4096, 4096, 40, "bfloat16", "flash"),
        ("tpu", 1370, 1370, 64, "float32", "flash"),
        ("tpu", 4096, 4096, 512, "bfloat16", "flash"),
        ("tpu", 4096, 4096, 160, "bfloat16", "matmul"),
        ("tpu", 4096, 77, 40, "bfloat16", "matmul"),
        ("other", 4096, 4096, 40, "bfloat16", "matmul"),
    ],
)
def test_choice_follows_platform_and_size(
    platform, num_query, num_key, width, dtype, wanted
):
    query, key = (
        jax.ShapeDtypeStruct((2, size, 8, width), dtype)
        for size in (num_query, num_key)
    )
    assert attention.choose(query, key, False, platform) == wanted
    assert attention.choose(query, key, True, platform) == "matmul", "with a bias"


def device(platform, version="", capability=""):
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(
        platform=platform, client=client, compute_capability=capability
    )


@pytest.mark.parametrize(
    "found, wanted",
    [
        (device("cpu"), "cpu"),
        (device("tpu"), "tpu"),
        (device("gpu", "cuda 12090", "9.0"), "cuda"),
        (device("gpu", "cuda 12090", "10.3"), "cuda"),
        (device("gpu", "cuda 12090", "7.5"), "other"),
        (device("gpu", "rocm 60400", "gfx90a"), "other"),
        (device("metal"), "other"),
    ],
)
def test_kernels_are_those_of_the_machine(monkeypatch, found, wanted):
    monkeypatch.setattr(jax, "devices", lambda: [found])
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert attention.fusing_platform() == wanted


def test_a_mesh_decides_over_the_machine(monkeypatch):
    class Mesh(NamedTuple):
        devices: np.ndarray

    def asked():
        return attention.fusing_platform()

    assert asked() == "cpu"
    tpus = Mesh(np.array([device("tpu")] * 4))
    assert meshes.bound(asked, tpus)() == "tpu"
    assert asked() == "cpu", "it does not stay"
    # Nobody told for which of the TPUs: a kernel could not be split.
    monkeypatch.setattr(jax, "devices", lambda: [device("tpu")] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert asked() == "other"


def test_cudnn_takes_what_is_chosen_for_it(monkeypatch):
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda wanted: False)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda wanted: False)

    def loss(*args):
        return jnp.sum(attention.dot_product(*args).astype(jnp.float32) ** 2)

    shape = jax.ShapeDtypeStruct((2, 1370, 8, 40), jnp.bfloat16)

    def products(platform):
        monkeypatch.setattr(attention, "fusing_platform", lambda: platform)
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(shape, shape, shape)
        lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
        return lowered.count("dot_general")

    assert products("cuda") == 0, "all of it is one kernel"
    assert products("other") > 3


def test_bad_arguments_say_what_to_change():
    query, key, value = draw(9)
    with pytest.raises(ValueError, match="unknown; use 'matmul', 'lean', 'cudnn'"):
        attention.dot_product(query, key, value, implementation="fused")
    with pytest.raises(ValueError, match="takes no bias"):
        attention.dot_product(
            query, key, value, jnp.zeros((1, 1, 24, 17)), implementation="lean"
        )
    with pytest.raises(AssertionError):
        attention.dot_product(query, key, value[:, :-1])


def test_gradients_of_narrow_products_are_those_of_wide_ones_rounded():
    query, key, _ = (x.astype(jnp.bfloat16) for x in draw(12))
    target = jnp.asarray(
        np.random.default_rng(13).normal(size=(2, 3, 24, 17)), jnp.float32
    )

    def gradients(query, key):
        def loss(query, key):
            logits = attention.products("bqhd,bkhd->bhqk", query, key)
            assert logits.dtype == jnp.float32
            return jnp.sum(logits * target)

        return jax.grad(loss, (0, 1))(query, key)

    found = gradients(query, key)
    wanted = gradients(query.astype(jnp.float32), key.astype(jnp.float32))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == jnp.bfloat16 and float(jnp.abs(other).max()) > 5
        # The gradient of the logits and each sum are rounded to 8 bits: 2^-8 of either.
        np.testing.assert_allclose(one, other, atol=2**-8 * 2 * jnp.abs(other).max())
