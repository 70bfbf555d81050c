import jax
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
