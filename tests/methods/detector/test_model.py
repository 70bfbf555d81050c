import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import trees
from jaxanom.methods.detector import model
from jaxanom.models.ops import initialise

SIZE = (8, 12)


def images(seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(size=(3, *size, 3)), jnp.float32)


@functools.cache
def network(dtype=jnp.float32):
    """(jitted apply, params) of a small segmenter, compiled once for all tests."""
    module = model.Segmenter(width=8, depth=1, dtype=dtype)
    params = initialise.parameters(module, jax.random.key(0), images())
    # Norm weights too: at their initial 1 and 0 they would hide a mix-up.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), params
    )
    return jax.jit(
        lambda params, image: module.apply({"params": params}, image)
    ), params


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_pixel_gets_two_float32_logits(dtype):
    apply, params = network(dtype)
    logits = apply(params, images())
    assert logits.shape == (3, *SIZE, 2)
    assert logits.dtype == jnp.float32
    assert bool(jnp.isfinite(logits).all()) and float(logits.std()) > 0.1


def test_bfloat16_logits_are_the_float32_ones_rounded():
    logits = [
        network(dtype)[0](network()[1], images())
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    # Eight bits of mantissa through seven layers; logits are of order one.
    np.testing.assert_allclose(logits[1], logits[0], atol=0.15)
    assert not np.array_equal(logits[1], logits[0])


def test_width_and_depth_decide_the_channels():
    def kernels(width, depth):
        module = model.Segmenter(width=width, depth=depth)
        shapes = jax.eval_shape(
            module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
        )["params"]
        flat = trees.flatten(shapes)
        return {k: v.shape for k, v in flat.items() if k.endswith("kernel")}

    shapes = kernels(8, 5)
    downs = [shapes[f"down_{level}_conv2/kernel"][-1] for level in range(6)]
    assert downs == [8, 16, 32, 64, 64, 64]  # DRAEM: doubling, at most eight times.
    assert len(shapes) == 2 * 6 + 3 * 5 + 1
    assert shapes["down_0_conv1/kernel"] == (3, 3, 3, 8)
    assert shapes["up_0_conv1/kernel"] == (3, 3, 8 + 8, 8)  # Resized and skip.
    assert shapes["logits/kernel"] == (3, 3, 8, 2)
    assert len(kernels(8, 2)) == 2 * 3 + 3 * 2 + 1


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch():
    apply, params = network()
    image = images()
    others = image.at[1:].set(1000.0)
    # The same compiled program on the same row: equal to the bit.
    np.testing.assert_array_equal(apply(params, others)[0], apply(params, image)[0])

    def batch_normed(image):
        """Negative control: one statistic taken over the batch."""
        return apply(params, image - image.mean((0, 1, 2)) + 0.5)

    difference = batch_normed(image)[0] - batch_normed(others)[0]
    assert float(jnp.abs(difference).max()) > 0.1


def test_pixels_reach_the_network_centred_on_grey():
    """Grey is zero inside, so the first kernel cannot change what grey gives."""
    apply, params = network()
    grey = jnp.full((3, *SIZE, 3), 0.5)
    flat = trees.flatten(params)
    path = "down_0_conv1/kernel"
    other = trees.unflatten({**flat, path: 2 * flat[path] + 1})
    np.testing.assert_array_equal(apply(params, grey), apply(other, grey))
    changed = apply(params, images()) - apply(other, images())
    assert float(jnp.abs(changed).max()) > 0.1


def test_every_weight_gets_a_gradient():
    apply, params = network()
    target = images(seed=5)[..., :2]
    gradient = jax.jit(
        jax.grad(lambda params: jnp.mean((apply(params, images()) - target) ** 2))
    )(params)
    for path, leaf in trees.flatten(gradient).items():
        assert float(jnp.abs(leaf).max()) > 0, path


def test_a_size_the_depth_does_not_divide_is_refused():
    apply, params = network()
    with pytest.raises(ValueError, match=r"image_size=\(8, 11\).*2\*\*depth=2"):
        apply(params, images(size=(8, 11)))
    model.check_size((16, 20), 2)
    with pytest.raises(ValueError, match=r"image_size=\(16, 20\).*2\*\*depth=8"):
        model.check_size((16, 20), 3)
