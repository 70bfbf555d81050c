"""EfficientNet-Lite: the published table, and parity with the PyTorch class."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.errors import UserError
from jaxanom.models.features import efficientnet_lite

LITE = efficientnet_lite.VARIANTS


def installed(name):
    """Loads a variant; the test is skipped where its weights are not installed."""
    pytest.importorskip(LITE[name].package)
    return efficientnet_lite.load(name)


@pytest.mark.parametrize(
    ("name", "counts", "channels"),
    [
        ("efficientnet_lite0", [1, 2, 2, 3, 3, 4, 1], [16, 24, 40, 80, 112, 192, 320]),
        ("efficientnet_lite1", [1, 3, 3, 4, 4, 5, 1], [16, 24, 40, 80, 112, 192, 320]),
        ("efficientnet_lite2", [1, 3, 3, 4, 4, 5, 1], [16, 24, 48, 88, 120, 208, 352]),
    ],
)
def test_stages_have_the_published_depths_and_widths(name, counts, channels):
    rows = efficientnet_lite.blocks(LITE[name])
    widths = [row.features for row in rows]
    assert [widths.count(width) for width in channels] == counts
    assert widths == sorted(widths)


def test_taps_are_named_by_kind_and_stride():
    assert efficientnet_lite.taps(LITE["efficientnet_lite0"]) == (
        *("p2", "e2", "p4", "e4", "p8", "e8", "p16", "e16", "p32"),
    )
    with pytest.raises(UserError, match=r"\['p3'\]"):
        efficientnet_lite.check_taps("efficientnet_lite0", ["p4", "p3"])


def reference_taps(net, image):
    """{tap: [B, h, w, C]} of the PyTorch class, through hooks on its blocks."""
    torch = pytest.importorskip("torch")
    outputs, strides, stride = {}, [], 2
    hooks = []
    for number, block in enumerate(net._blocks):
        step = block._block_args.stride
        stride *= step[0] if isinstance(step, list | tuple) else step
        strides.append(stride)
        if hasattr(block, "_bn0"):
            hooks.append(
                block._bn0.register_forward_hook(
                    lambda _, __, out, n=number: outputs.__setitem__(
                        ("e", n), torch.nn.functional.relu6(out)
                    )
                )
            )
        hooks.append(
            block.register_forward_hook(
                lambda _, __, out, n=number: outputs.__setitem__(("p", n), out)
            )
        )
    with torch.no_grad():
        net.extract_features(
            (255 * torch.tensor(image).permute(0, 3, 1, 2) - 127) / 128
        )
    for hook in hooks:
        hook.remove()
    taps = {}
    for stride in sorted(set(strides)):
        last = max(number for number, out in enumerate(strides) if out == stride)
        taps[f"p{stride}"] = outputs["p", last]
        if last + 1 < len(strides):
            taps[f"e{stride}"] = outputs["e", last + 1]
    return {name: tap.permute(0, 2, 3, 1).numpy() for name, tap in taps.items()}


@pytest.mark.parametrize("side", [224, 260])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_every_tap_equals_the_pytorch_class(name, side):
    published = pytest.importorskip("efficientnet_lite_pytorch")
    torch = pytest.importorskip("torch")
    module, params = installed(name)
    # The class pads for the size it is built for; None pads for the one that comes.
    net = published.EfficientNet.from_name(
        name.replace("_lite", "-lite"), image_size=None
    )
    path = efficientnet_lite.weight_file(name)
    net.load_state_dict(torch.load(path, weights_only=True))
    net.eval()
    image = np.random.default_rng(0).random((1, side, side, 3), np.float32)
    expected = reference_taps(net, image)
    taps = efficientnet_lite.taps(LITE[name])
    assert set(taps) == set(expected)
    features = jax.jit(lambda p, x: module.apply({"params": p}, x, taps))(params, image)
    for tap, array in zip(taps, features, strict=True):
        # float32 through up to 60 layers; 2e-5 of the largest value measured.
        limit = 1e-4 * np.abs(expected[tap]).max()
        np.testing.assert_allclose(array, expected[tap], atol=limit, err_msg=tap)


def test_blocks_beyond_the_last_tap_are_not_computed():
    module = efficientnet_lite.EfficientNetLite(LITE["efficientnet_lite0"])
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros(image.shape), ("p8",))
    )
    assert (
        max(int(name.split("_")[1]) for name in variables["params"] if "blocks" in name)
        == 4
    )
    (features,) = jax.eval_shape(
        lambda v, x: module.apply(v, x, ("p8",)), variables, image
    )
    assert features.shape == (1, 8, 12, 40)  # any aspect ratio


def test_weights_of_another_variant_are_refused():
    path = efficientnet_lite.weight_file
    pytest.importorskip(LITE["efficientnet_lite0"].package)
    from jaxanom.models.checkpoints.formats import weights

    file = path("efficientnet_lite0")
    state = weights.read(file)
    with pytest.raises(
        UserError, match=r"_blocks\.3\._depthwise_conv\.weight should be"
    ):
        efficientnet_lite.folded(state, "efficientnet_lite2", file)
    with pytest.raises(UserError, match="'extra'"):
        efficientnet_lite.folded(
            {**state, "extra": np.zeros(1)}, "efficientnet_lite0", file
        )


def test_weights_are_found_without_running_their_package(tmp_path, monkeypatch):
    package = tmp_path / LITE["efficientnet_lite1"].package
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it was run')")
    (package / "models" / "weights.pth").write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    path = efficientnet_lite.weight_file("efficientnet_lite1")
    assert path == package / "models" / "weights.pth"
    with pytest.raises(RuntimeError, match="it was run"):
        importlib.import_module(package.name)
