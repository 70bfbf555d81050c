"""Batches that do not divide by the mesh are refused before anything is compiled."""

import jax
import pytest

from jaxanom.jobs import config_file, prepare
from jaxanom.methods.defect_generation import drawing
from jaxanom.parallel import mesh as meshes


def config(**data):
    found = config_file.load("configs/detector/foundry.py:smoke")
    for key, value in data.items():
        found.data[key] = value
    return found


def test_a_batch_that_does_not_divide_by_the_devices_names_its_key():
    assert len(jax.devices()) == 8
    with pytest.raises(ValueError, match=r"batch_size=12.*=8.*data\.batch_size"):
        prepare.prepare(config(batch_size=12))
    assert prepare.prepare(config(batch_size=16)).mesh.shape["data"] == 8


def test_a_run_that_trains_no_more_takes_any_batch():
    found = config(batch_size=12)
    found.phases.segment.num_steps = 0
    assert prepare.prepare(found).mesh.shape["data"] == 8


def test_microbatches_must_divide_as_well():
    found = config(batch_size=16)
    found.phases.segment.accumulate = 4
    with pytest.raises(ValueError, match=r"accumulate=4"):
        prepare.prepare(found)


def test_drawing_names_the_batch_size_of_its_own_section():
    settings = config_file.load("configs/defect_generation/foundry.py").generate
    settings.batch_size = 6
    with pytest.raises(ValueError, match=r"config\.generate\.batch_size=6.*=8"):
        drawing.check(settings, 3, meshes.make_mesh())
    settings.batch_size = 8
    drawing.check(settings, 3, meshes.make_mesh())


def test_a_mesh_of_another_size_is_refused():
    found = config(batch_size=16)
    found.mesh.data = 3
    with pytest.raises(ValueError, match=r"config\.mesh\.data=3.*8 devices"):
        prepare.prepare(found)
