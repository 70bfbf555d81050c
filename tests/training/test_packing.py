import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.training import checkpoint, packing

WHERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def make_tree():
    """Many small arrays of three dtypes, one of each other kind."""
    key = jax.random.key(3)
    small = {f"norm_{n}": jax.random.normal(key, (n, 2)) for n in range(1, 30)}
    return {
        **small,
        "half": jnp.asarray([1.5, -2.25], jnp.bfloat16),
        "count": jnp.int32(7),
        "empty": jnp.zeros((0, 4)),
        "key": key,
        "kernel": jnp.arange(packing.LARGEST + 1.0),
    }


def target_of(tree):
    return checkpoint.abstract(tree, jax.tree.map(lambda leaf: WHERE, tree))


def assert_same(found, tree):
    assert found.keys() == tree.keys()
    for path, leaf in tree.items():
        assert found[path].dtype == leaf.dtype and found[path].sharding == WHERE, path
        if path == "key":
            leaf, found[path] = (jax.random.key_data(k) for k in (leaf, found[path]))
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.fixture
def opened(tmp_path):
    found = checkpoint.Checkpoints(tmp_path / "checkpoints")
    yield found
    found.close()


def arrays_on_disk(opened, step):
    return opened._manager.item_metadata(step)["state"].keys()


def test_a_store_sees_few_arrays_and_returns_all(opened):
    tree = make_tree()
    opened.save(1, tree, {}, wait=True)
    found = set(arrays_on_disk(opened, 1))
    assert found == {
        "kernel",
        *(f"packed.{d}" for d in "float32 bfloat16 int32 uint32".split()),
    }
    assert_same(opened.restore(1, target_of(tree)), tree)


def test_what_no_process_holds_whole_stays_apart():
    class Split:
        size, dtype, is_fully_replicated = 4, np.dtype("float32"), False

    whole = jnp.ones(4)
    together, joined = packing.join({"split": Split(), "whole": whole, "other": whole})
    assert joined == {"packed.float32": ["whole", "other"]}
    assert isinstance(together["split"], Split) and together.keys() == {
        "split",
        *joined,
    }


def test_order_matters_and_is_the_one_that_was_saved():
    flat = {"b": jnp.arange(2.0), "a": jnp.arange(2.0) + 5}
    shapes = {path: target_of({path: leaf})[path] for path, leaf in flat.items()}
    together, joined = packing.join(flat)
    turned = dict(reversed(shapes.items()))
    found = packing.part(together, turned, joined)
    assert all((found[path] == leaf).all() for path, leaf in flat.items())
    wrong = {name: paths[::-1] for name, paths in joined.items()}
    assert (packing.part(together, turned, wrong)["a"] == flat["b"]).all()
