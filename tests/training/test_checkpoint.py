import contextlib
import resource
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxanom.parallel import mesh, rules
from jaxanom.training import checkpoint, state

MESH = mesh.make_mesh(devices=jax.devices()[:1])


def make_tree(width=3):
    params = {"layer": {"kernel": jnp.arange(2.0 * width).reshape(2, width)}}
    tx = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    return state.init(params, tx, jax.random.key(5), True)


def target_of(tree):
    return checkpoint.abstract(tree, rules.shardings(tree, MESH))


def as_numbers(tree):
    def plain(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(plain, tree)


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, as_numbers(tree), as_numbers(other))


@pytest.fixture
def opened(tmp_path):
    found = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=2)
    yield found
    found.close()


def test_a_state_comes_back_bit_equal_in_its_own_containers(opened):
    tree = make_tree()
    opened.save(3, tree, {"phase": "fit"}, wait=True)
    found = opened.restore(3, target_of(tree))
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert_equal(found, tree)
    assert opened.read_meta(3)["phase"] == "fit"
    # A restored typed key draws what the saved one would have drawn.
    assert jax.random.bits(found.key) == jax.random.bits(tree.key)


def test_a_background_save_is_not_touched_by_steps_that_reuse_the_memory(opened):
    tree = {"w": jnp.zeros(1_000_000)}
    advance = jax.jit(lambda t: {"w": t["w"] + 1}, donate_argnums=0)
    for at in (1, 2, 3, 4):
        tree = advance(tree)
        opened.save(at, tree, {})
    for _ in range(20):
        tree = advance(tree)
    opened.wait()
    for at in (3, 4):
        found = opened.restore(at, target_of(tree))
        assert np.unique(found["w"]) == [at]


def test_only_the_newest_are_kept(opened):
    for at in (1, 2, 3):
        opened.save(at, {"w": jnp.ones(2)}, {})
    opened.wait()
    assert opened.latest_step() == 3
    assert sorted(p.name for p in opened.directory.iterdir()) == ["2", "3"]


def test_a_step_is_never_written_over(opened):
    opened.save(2, {"w": jnp.ones(2)}, {}, wait=True)
    with pytest.raises(ValueError, match="not newer than checkpoint 2"):
        opened.save(2, {"w": jnp.zeros(2)}, {})


def test_an_empty_folder_has_no_checkpoint(opened):
    assert opened.latest_step() is None


@pytest.mark.parametrize("name", ["9", "9.orbax-checkpoint-tmp"])
def test_a_half_written_checkpoint_is_ignored(tmp_path, name):
    first = checkpoint.Checkpoints(tmp_path)
    first.save(4, {"w": jnp.ones(2)}, {}, wait=True)
    first.close()
    half = tmp_path / name / "state"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt").write_bytes(b"cut sho")
    again = checkpoint.Checkpoints(tmp_path)
    assert again.latest_step() == 4
    tree = {"w": jnp.full(2, 7.0)}
    again.save(9, tree, {}, wait=True)  # nor does it stand in the way
    assert_equal(again.restore(9, target_of(tree)), tree)
    again.close()


def test_the_checkpoint_of_another_model_is_refused_by_name(opened):
    opened.save(1, make_tree(width=3), {}, wait=True)
    other = make_tree(width=5)
    with pytest.raises(ValueError) as error:
        opened.restore(1, target_of(other))
    message = str(error.value)
    assert "another model" in message
    assert "params/layer/kernel: wanted float32[2, 5], found float32[2, 3]" in message
    # Negative control: the model that was saved restores.
    opened.restore(1, target_of(make_tree(width=3)))


def test_missing_and_extra_parameters_are_named(opened):
    opened.save(1, {"old": jnp.ones(2)}, {}, wait=True)
    with pytest.raises(ValueError) as error:
        opened.restore(1, target_of({"new": jnp.ones(2)}))
    assert "new: wanted float32[2], found nothing" in str(error.value)
    assert "old: wanted nothing, found float32[2]" in str(error.value)


def test_empty_arrays_survive(opened):
    tree = {"w": jnp.ones(2), "none": jnp.zeros((0, 4))}
    opened.save(1, tree, {}, wait=True)
    assert opened.restore(1, target_of(tree))["none"].shape == (0, 4)


@contextlib.contextmanager
def full_disk():
    """Refuses to let any file grow, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def big(value):
    return {"w": jax.random.normal(jax.random.key(value), (64, 1024))}


def test_latest_does_not_name_a_save_that_failed_and_the_next_one_works(opened):
    opened.save(1, big(1), {}, wait=True)
    with full_disk(), pytest.warns(UserWarning, match="checkpoint 2 was not written"):
        opened.save(2, big(2), {})
        assert not opened.wait() or opened.latest_step() == 1
    assert opened.latest_step() == 1
    assert opened.save(3, big(3), {}, wait=True)
    assert opened.latest_step() == 3
    assert_equal(opened.restore(3, target_of(big(3))), big(3))
    # Negative control: with room, the same save is complete and named.
    assert opened.save(4, big(2), {}, wait=True) and opened.latest_step() == 4


def test_a_deleted_folder_costs_its_checkpoints_and_no_more(opened):
    opened.save(1, big(1), {}, wait=True)
    opened.save(2, big(2), {})
    shutil.rmtree(opened.directory, ignore_errors=True)
    with warnings.catch_warnings():
        # The save may have been complete before the folder went: no warning then.
        warnings.simplefilter("ignore")
        opened.wait()
        assert opened.save(3, big(3), {}, wait=True) or opened.save(
            4, big(3), {}, wait=True
        )
    newest = opened.latest_step()
    assert_equal(opened.restore(newest, target_of(big(3))), big(3))


def test_a_save_in_the_background_is_not_yet_the_latest(opened, monkeypatch):
    opened.save(1, big(1), {}, wait=True)
    opened.save(2, big(2), {})
    manager = opened._manager
    monkeypatch.setattr(manager, "is_saving_in_progress", lambda: True)
    assert manager.latest_step() == 2  # orbax counts it from its beginning
    assert opened.latest_step() == 1
    monkeypatch.undo()
    opened.wait()
    assert opened.latest_step() == 2


def test_the_best_are_kept_beside_the_newest(tmp_path):
    values = {1: 0.2, 2: 0.9, 3: 0.1, 4: 0.3, 5: 0.4}
    for keep_best, wanted in ((1, ["2", "5"]), (0, ["5"])):
        found = checkpoint.Checkpoints(tmp_path / str(keep_best), 1, keep_best)
        for at, value in values.items():
            found.save(at, {"w": jnp.ones(2)}, {}, value=value)
        found.wait()
        assert found.latest_step() == 5
        found.close()
        assert sorted(p.name for p in found.directory.iterdir()) == wanted
