"""The published weights against their stored reference; skipped where absent."""

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.models.features import mobilenet_v2
from jaxanom.models.ops import depthwise


def test_the_graph_has_the_published_layers_in_order():
    layers = mobilenet_v2.graph()
    names = [layer.name for layer in layers]
    assert [n for n in names if n[0] == "L"] == [f"L{i:02d}" for i in range(52)]
    assert [n for n in names if n[0] == "A"] == [f"A{i:02d}" for i in range(10)]
    by_name = {layer.name: layer for layer in layers}
    # Rows of the published list of layers.
    assert names.index("A00") == names.index("L08") + 1
    assert by_name["A00"].adds == "L05" and by_name["A01"].adds == "L11"
    assert by_name["A09"].adds == "A08" and by_name["A02"].adds == "A01"
    assert by_name["L19"].stride == 2 and by_name["L19"].features == 192
    assert by_name["L40"].stride == 2 and by_name["L51"].features == 1280
    assert not by_name["L05"].activation and by_name["L06"].activation


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="L99"):
        mobilenet_v2.check_layers(["A02", "L99"])


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"uint8\.npz is missing"):
        mobilenet_v2.load(tmp_path)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "extent"), [(3, (8, 8)), (3, (7, 10)), (1, (5, 6))])
def test_shifted_images_are_a_grouped_convolution(size, extent, stride):
    hidden = jax.random.normal(jax.random.key(0), (2, *extent, 5))
    shifted = depthwise.DepthwiseConv(size, stride)
    variables = shifted.init(jax.random.key(1), hidden)
    variables["params"]["bias"] = jnp.arange(5.0)
    grouped = nn.Conv(5, (size, size), (stride, stride), feature_group_count=5)
    wanted = grouped.apply(variables, hidden)
    # float32 sums of up to nine terms of size 1, in another order
    np.testing.assert_allclose(shifted.apply(variables, hidden), wanted, atol=1e-5)
    # Negative control: channels with each other's kernels are another convolution.
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    swapped = {"params": {"kernel": kernel[..., ::-1], "bias": bias}}
    assert not np.allclose(shifted.apply(swapped, hidden), wanted, atol=1e-5)


def archive() -> bytes:
    stored = io.BytesIO()
    np.savez_compressed(stored, **{"L00.codes": np.arange(999)})
    return stored.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        archive()[:-30],
        archive().replace(archive()[200:210], bytes(10)),
    ],
    ids=["empty", "page", "cut off", "damaged"],
)
def test_damaged_weights_are_named(content, tmp_path):
    (tmp_path / mobilenet_v2.WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match=r"uint8\.npz is cut off, damaged or no NumPy"):
        mobilenet_v2.load(tmp_path)


def test_weights_of_other_layers_are_refused(tmp_path):
    (tmp_path / mobilenet_v2.WEIGHTS).write_bytes(archive())
    with pytest.raises(ValueError, match=r"holds layers \['L00'\]"):
        mobilenet_v2.load(tmp_path)


def test_pooled_features_and_logits_equal_the_reference(shared_data):
    directory = shared_data("mobilenet_v2")
    tower = mobilenet_v2.load(directory)
    with np.load(directory / "reference.npz") as stored:
        image = stored["image_uint8_nhwc"]
        wanted = {name: stored[name] for name in ("pooled", "logits")}
    apply = jax.jit(
        lambda params, x: tower.module.apply({"params": params}, x, ("A02",), True)
    )
    output = apply(tower.params, jnp.asarray(image, jnp.float32) / 255)
    assert output.layers[0].shape == (2, 28, 28, 32)
    for name in wanted:
        found = np.asarray(getattr(output, name))
        # float32 through 53 layers: some 1e-5 of the largest value.
        limit = 1e-4 * np.abs(wanted[name]).max()
        np.testing.assert_allclose(found, wanted[name], atol=limit)
    # Negative control: blue for red is far off.
    swapped = apply(tower.params, jnp.asarray(image[..., ::-1], jnp.float32) / 255)
    difference = np.abs(np.asarray(swapped.logits) - wanted["logits"]).max()
    assert difference > 1e-2 * np.abs(wanted["logits"]).max()
