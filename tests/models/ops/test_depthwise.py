"""Both forms of the depthwise convolution are one convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.models.ops import depthwise


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("extent", [(8, 8), (9, 12), (2, 7)])
def test_a_sum_of_shifted_images_is_the_grouped_convolution(size, stride, extent):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((2, *extent, 6)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, 1, 6)), jnp.float32)
    expected = depthwise.grouped(hidden, kernel, stride)
    sums = depthwise.shifted_sum(hidden, kernel, stride)
    assert sums.shape == expected.shape
    # Sums of up to 25 products of order one, in another order.
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    # Negative control: the kernel is not symmetric, so turned it is another one.
    turned = depthwise.shifted_sum(hidden, kernel[::-1, ::-1], stride)
    assert np.abs(np.asarray(turned - expected)).max() > 0.1


@pytest.mark.parametrize(("platform", "form"), [("cpu", "add"), ("cuda", "conv")])
def test_the_machine_decides_the_form(monkeypatch, platform, form):
    monkeypatch.setattr(
        depthwise.attention, "fusing_platform", lambda platform=platform: platform
    )
    module = depthwise.DepthwiseConv(3, 1)
    image = jnp.ones((1, 4, 4, 2))
    params = module.init(jax.random.key(0), image)
    text = str(jax.make_jaxpr(module.apply)(params, image))
    assert ("conv_general_dilated" in text) == (form == "conv")
