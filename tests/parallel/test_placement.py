import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jaxanom.parallel import mesh, placement, rules

ONE = mesh.make_mesh(devices=jax.devices()[:1])
EIGHT = AbstractMesh((4, 2, 1, 1), mesh.AXES)


def test_a_batch_comes_back_from_the_mesh_as_it_went():
    batch = {
        "image": np.random.default_rng(0).random((6, 4, 4, 3), np.float32),
        "label": np.arange(6, dtype=np.int32),
        "valid": np.array([True] * 5 + [False]),
    }
    placed = placement.place_batch(batch, ONE)
    assert all(isinstance(leaf, jax.Array) for leaf in placed.values())
    for key, value in placement.to_host(placed).items():
        np.testing.assert_array_equal(value, batch[key])
        assert value.dtype == batch[key].dtype


def test_a_batch_that_does_not_divide_says_which_key_to_change():
    message = (
        "batch_size=30 is not a multiple of mesh axes data*fsdp=8; "
        "set config.data.batch_size"
    )
    with pytest.raises(ValueError) as error:
        placement.check_batch_size(30, EIGHT)
    assert str(error.value) == message
    placement.check_batch_size(32, EIGHT)


def test_microbatches_must_divide_over_devices_too():
    placement.check_batch_size(32, EIGHT, accumulate=4)
    with pytest.raises(ValueError, match=r"accumulate=3.*config\.phases"):
        placement.check_batch_size(32, EIGHT, accumulate=3)


def test_entries_with_other_row_counts_or_without_numbers_are_refused():
    with pytest.raises(ValueError, match="equally many rows"):
        placement.place_batch({"x": np.zeros((4, 1)), "y": np.zeros(3)}, ONE)
    with pytest.raises(ValueError, match="equally many rows"):
        placement.place_batch({"x": np.zeros(4), "y": np.float32(0)}, ONE)
    with pytest.raises(ValueError, match=r"batch\['caption'\].*leave it out"):
        placement.place_batch({"caption": np.array(["a", "b"])}, ONE)


def test_of_a_whole_batch_a_process_takes_the_rows_of_its_devices(monkeypatch):
    batch = {"x": np.arange(8.0).reshape(4, 2), "n": np.arange(4)}
    assert placement.own_rows(batch, ONE)["x"] is batch["x"]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(placement, "process_rows", lambda count, mesh: (2, 3))
    found = placement.own_rows(batch, ONE)
    np.testing.assert_array_equal(found["x"], batch["x"][2:])
    np.testing.assert_array_equal(found["n"], [2, 3])


def test_a_placed_tree_may_be_donated_without_touching_the_original():
    tree = {"w": jnp.arange(4.0)}
    placed = placement.place(tree, rules.shardings(tree, ONE))
    jax.jit(lambda t: jax.tree.map(lambda w: w + 1, t), donate_argnums=0)(placed)
    assert placed["w"].is_deleted()  # the negative control: donation did happen
    np.testing.assert_array_equal(tree["w"], [0, 1, 2, 3])
