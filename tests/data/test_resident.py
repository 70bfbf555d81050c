"""Rows in device memory give the batches that rows in host memory give."""

import itertools

import jax
import numpy as np
import pytest

from jaxanom.data import pipeline, pools, resident
from jaxanom.parallel import memory, placement
from jaxanom.parallel import mesh as meshes

MESH = meshes.make_mesh(devices=jax.devices()[:1])
MIXTURES = {
    "one": {"normal": 0.3, "defect": 0.7},
    "two": {"normal": 0.0, "defect": 1.0},
}


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)

    def of(count, label):
        return {
            "patch_tokens": rng.normal(size=(count, 3, 4)).astype(np.float32),
            "label": np.full(count, label, np.int32),
            "row_seed": rng.integers(0, 2**32, count).astype(np.uint32),
        }

    return {"normal": of(5, 0), "defect": of(8, 1)}


def taken(make, phase, start=0, count=4):
    found = list(itertools.islice(make(phase, start), count))
    return [placement.place_batch(batch, MESH) for batch in found]


@pytest.mark.parametrize("phase", ["one", "two"])
def test_batches_are_those_of_the_host(rows, phase):
    sources = {name: pipeline.Encoded(arrays) for name, arrays in rows.items()}
    host = taken(pools.batch_maker(sources, MIXTURES, 6, 3), phase)
    device = taken(resident.batch_maker(rows, MIXTURES, 6, 3, MESH), phase)
    for one, two in zip(host, device, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)
            assert one[name].dtype == two[name].dtype
            assert one[name].sharding == two[name].sharding
    # Negative control: another seed draws other rows.
    other = taken(resident.batch_maker(rows, MIXTURES, 6, 4, MESH), phase)
    assert not np.array_equal(other[0]["patch_tokens"], host[0]["patch_tokens"])


def test_a_resumed_stream_goes_on_at_its_step(rows):
    make = resident.batch_maker(rows, MIXTURES, 6, 3, MESH)
    whole, late = taken(make, "one"), taken(make, "one", start=2, count=2)
    for one, two in zip(whole[2:], late, strict=True):
        np.testing.assert_array_equal(one["row_seed"], two["row_seed"])


def test_rows_go_to_the_device_where_it_is_known_to_have_room(rows, monkeypatch):
    size = resident.num_bytes(rows)
    assert size == sum(
        13 * width for width in (3 * 4 * 4, 4, 4)
    )  # tokens, label, seed of 13 rows
    for free, wanted in ((2 * size, True), (2 * size - 2, False), (None, False)):
        monkeypatch.setattr(memory, "free_bytes", lambda mesh, free=free: free)
        assert resident.is_wanted("auto", rows, MESH) == wanted
        assert resident.is_wanted("device", rows, MESH)
        assert not resident.is_wanted("host", rows, MESH)
    with pytest.raises(ValueError, match="feature_memory='disk'"):
        resident.is_wanted("disk", rows, MESH)


def test_several_processes_keep_rows_on_their_hosts(rows, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: 10**12)
    assert not resident.is_wanted("auto", rows, MESH)
    with pytest.raises(ValueError, match="set it to 'host'"):
        resident.is_wanted("device", rows, MESH)


def test_the_room_is_that_of_the_fullest_device():
    class Device:
        def __init__(self, **stats):
            self.memory_stats = lambda: stats or None

    class Devices:
        def __init__(self, *devices):
            self.devices = np.array(devices)

    two = Devices(
        Device(bytes_limit=100, bytes_in_use=30), Device(bytes_limit=90, bytes_in_use=5)
    )
    assert memory.free_bytes(two) == 70
    assert memory.free_bytes(Devices(Device())) is None
