import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.parallel import mesh


def test_one_device_is_a_mesh_of_one():
    found = mesh.make_mesh(devices=jax.devices()[:1])
    assert dict(found.shape) == {"data": 1, "fsdp": 1, "model": 1, "particle": 1}
    assert mesh.num_batch_shards(found) == 1


@pytest.mark.parametrize(
    ("sizes", "num_devices", "wanted"),
    [
        ((-1, 1, 1, 1), 8, (8, 1, 1, 1)),
        ((-1, 2, 2, 1), 8, (2, 2, 2, 1)),
        ((2, 2, 1, -1), 8, (2, 2, 1, 2)),
        ((4, 1, 1, 2), 8, (4, 1, 1, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(sizes, num_devices, wanted):
    assert mesh._resolve(sizes, num_devices) == wanted


@pytest.mark.parametrize(
    "sizes", [(3, 1, 1, 1), (-1, 3, 1, 1), (-1, -1, 1, 1), (0, 1, 1, 1), (-2, 1, 1, 1)]
)
def test_sizes_that_do_not_fit_name_the_config_keys(sizes):
    with pytest.raises(ValueError, match=rf"config\.mesh\.data={sizes[0]}"):
        mesh._resolve(sizes, 8)


def of(platform):
    device = types.SimpleNamespace(platform=platform)
    return types.SimpleNamespace(devices=np.array([device]))


def precision(function):
    (product,) = jax.make_jaxpr(function)(jnp.ones((2, 2))).eqns
    return product.params["precision"]


def test_what_is_traced_knows_for_which_devices():
    tpus, seen = of("tpu"), []
    assert mesh.traced_for() is None
    mesh.bound(lambda: seen.append(mesh.traced_for()), tpus)()
    assert seen == [tpus] and mesh.traced_for() is None


def test_float32_products_are_float32_on_accelerators_too():
    def square(x):
        return x @ x

    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert precision(mesh.bound(square, of("tpu"))) == highest
    assert precision(mesh.bound(square, of("gpu"))) == highest
    # A CPU knows nothing else, and some of its convolutions are slower when asked.
    assert precision(mesh.bound(square, of("cpu"))) is None
    assert precision(mesh.bound(square)) is None
    # Negative control: left alone, a TPU rounds to bfloat16.
    assert precision(square) is None


def test_a_precision_that_was_asked_for_is_left():
    asked = (jax.lax.Precision.DEFAULT,) * 2
    with jax.default_matmul_precision("default"):
        assert precision(mesh.bound(lambda x: x @ x, of("tpu"))) == asked
