import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.models import attention

FORMS = ("matmul", "lean", "fused")


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


@pytest.mark.parametrize("form", ("matmul", "fused"))
@pytest.mark.parametrize("shape", ((2, 3, 24, 17), (1, 1, 24, 17), (2, 1, 1, 17)))
def test_bias_is_added_to_the_logits(form, shape):
    query, key, value = draw(3)
    bias = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    out = attention.dot_product(query, key, value, bias, implementation=form)
    np.testing.assert_allclose(out, by_hand(query, key, value, bias), atol=2e-6)
    # Negative control: without it the result differs.
    plain = attention.dot_product(query, key, value, implementation=form)
    assert float(jnp.abs(out - plain).max()) > 0.05


def test_lean_equals_matmul_at_the_size_it_is_chosen_for():
    query, key, value = draw(5, 512, 512, 1, 1, 8)
    assert attention.choose("cpu", 512, 512, False) == "lean"
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


def test_choice_follows_backend_and_size():
    assert attention.choose("cpu", 197, 197, False) == "lean"
    assert attention.choose("cpu", 77, 77, False) == "matmul"
    assert attention.choose("cpu", 4096, 16, False) == "matmul"
    assert attention.choose("cpu", 1024, 1024, True) == "matmul"
    assert attention.choose("gpu", 1024, 1024, False) == "fused"
    assert attention.choose("tpu", 16, 16, True) == "fused"


def test_bad_arguments_say_what_to_change():
    query, key, value = draw(9)
    with pytest.raises(ValueError, match="unknown; use 'matmul'"):
        attention.dot_product(query, key, value, implementation="flash")
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
