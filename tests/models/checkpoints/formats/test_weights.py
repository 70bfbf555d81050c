import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from jaxanom import record
from jaxanom.models.checkpoints.formats import stored, weights


def tensors():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "b.weight": rng.normal(size=(7,)).astype(np.float32),
        "c.scale": np.array(2.5, np.float32),
        "d.ids": np.arange(4, dtype=np.int64),
        "e.empty": np.zeros((0, 3), np.float32),
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert first[name].shape == second[name].shape, name
        assert first[name].tobytes() == second[name].tobytes(), name


def flip_layout(array):
    """The same values in Fortran order: what a bare transpose leaves behind."""
    return np.asfortranarray(array)


def test_a_file_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "sub" / "w.safetensors"
    assert weights.write(path, tensors()) == path
    assert_same(weights.read(path), tensors())
    assert weights.shapes(path) == {k: v.shape for k, v in tensors().items()}


def test_a_transposed_view_is_written_by_value_not_by_memory(tmp_path):
    value = flip_layout(tensors()["a.weight"])
    weights.write(tmp_path / "ours.safetensors", {"x": value})
    np.testing.assert_array_equal(
        weights.read(tmp_path / "ours.safetensors")["x"], value
    )
    # Negative control: the library alone writes the memory and swaps the values.
    save_file({"x": value}, tmp_path / "raw.safetensors")
    assert not np.array_equal(weights.read(tmp_path / "raw.safetensors")["x"], value)


def test_shards_equal_the_single_file(tmp_path, write_shards):
    index = write_shards(tmp_path / "w.safetensors", tensors(), 64)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert_same(dict(sorted(weights.read(index).items())), tensors())
    assert weights.shapes(index) == {k: v.shape for k, v in tensors().items()}


def test_shards_of_a_variant_and_of_another_format_load_through_their_index(tmp_path):
    halves = [{"a": np.ones(3, np.float32)}, {"b": np.zeros((2, 2), np.float16)}]
    for suffix, index in (
        (".safetensors", "m.safetensors.index.fp16.json"),
        (".msgpack", "m.msgpack.index.json"),
    ):
        names = [f"m.fp16-0000{i}-of-00002{suffix}" for i in (1, 2)]
        weight_map = {}
        for name, half in zip(names, halves, strict=True):
            if suffix == ".safetensors":
                weights.write(tmp_path / name, half)
            else:
                (tmp_path / name).write_bytes(serialization.to_bytes(half))
            weight_map |= dict.fromkeys(half, name)
        record.write_json(tmp_path / index, {"weight_map": weight_map})
        assert_same(weights.read(tmp_path / index), halves[0] | halves[1])


@pytest.mark.parametrize("half", [np.float16, jnp.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path, half):
    values = {
        name: value.astype(half) if value.dtype == np.float32 else value
        for name, value in tensors().items()
    }
    path = weights.write(tmp_path / "w.safetensors", values)
    stored, wide = weights.read(path), weights.read(path, dtype=np.float32)
    for name, value in tensors().items():
        if name == "d.ids":
            assert stored[name].dtype == wide[name].dtype == np.int64
            continue
        assert stored[name].dtype == jnp.dtype(half)
        assert wide[name].dtype == np.float32
        np.testing.assert_array_equal(wide[name], value.astype(half).astype(np.float32))


def test_device_arrays_are_written_like_host_arrays(tmp_path):
    values = {"x": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3).T}
    path = weights.write(tmp_path / "w.safetensors", values)
    assert_same(weights.read(path), jax.device_get(values))


def test_a_value_float16_cannot_hold_is_refused_by_name(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.write(path, {"big": np.array([1.0, 1e5], np.float32)})
    with pytest.raises(ValueError, match=r"big reaches 100000.*float16.*bfloat16"):
        weights.read(path, np.float16)
    # An infinity that was there before is the file's, and stays.
    weights.write(path, {"inf": np.array([np.inf], np.float32)})
    assert np.isinf(weights.read(path, np.float16)["inf"]).all()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = weights.write(tmp_path / "w.safetensors", tensors())
    before = path.read_bytes()

    def fail(file, arrays, metadata):
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(weights.safetensors_file, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        weights.write(path, {"other": np.zeros(3, np.float32)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_fails_half_way_leaves_nothing(tmp_path):
    def fail():
        raise RuntimeError("the device is gone")

    values = tensors() | {"a.late": stored.Computed((2,), np.float32, fail)}
    with pytest.raises(RuntimeError, match="device is gone"):
        weights.write(tmp_path / "w.safetensors", values)
    assert not list(tmp_path.iterdir())


def test_a_written_file_is_readable_by_all_who_may_read_its_folder(tmp_path):
    path = weights.write(tmp_path / "w.safetensors", tensors())
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.write(path, tensors())
    weights.write(path, {"only": np.ones(2, np.float32)})
    assert list(weights.read(path)) == ["only"]


def damage(path, how):
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[:-3],
            "text": b"not weights at all, but some text instead",
            "longer": whole + b"x",
        }[how]
    )


@pytest.mark.parametrize("how", ["empty", "cut", "text", "longer"])
def test_a_damaged_file_is_a_value_error_that_names_it(tmp_path, how):
    path = weights.write(tmp_path / "w.safetensors", tensors())
    damage(path, how)
    with pytest.raises(ValueError, match=r"w\.safetensors is not a readable"):
        weights.read(path)
    with pytest.raises(ValueError, match=r"w\.safetensors is not a readable"):
        weights.shapes(path)


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.safetensors.index.json"])
def test_a_missing_file_is_a_value_error_that_names_it(tmp_path, name):
    with pytest.raises(ValueError, match=r"gone.*is not a file"):
        weights.read(tmp_path / name)


def test_a_directory_and_other_formats_are_refused(tmp_path):
    (tmp_path / "w.h5").touch()
    with pytest.raises(ValueError, match=r"w\.h5 is of no known format.*\.msgpack"):
        weights.read(tmp_path / "w.h5")
    with pytest.raises(ValueError, match="is not a file"):
        weights.read(tmp_path)
    with pytest.raises(ValueError, match="does not end in"):
        weights.write(tmp_path / "w.bin", tensors())


def test_an_index_that_lies_is_refused(tmp_path, write_shards):
    index = write_shards(tmp_path / "w.safetensors", tensors(), 64)
    honest = record.read_json(index)
    shard = next(iter(honest["weight_map"].values()))
    lies = {
        "disagree on tensors": {**honest["weight_map"], "ghost": shard},
        "is not a file": {**honest["weight_map"], "ghost": "nowhere.safetensors"},
        "is not a file name": {**honest["weight_map"], "ghost": f"../{shard}"},
        'no "weight_map"': {},
    }
    for message, weight_map in lies.items():
        record.write_json(index, {"weight_map": weight_map})
        with pytest.raises(ValueError, match=message):
            weights.read(index)
    record.write_json(index, [1, 2])
    with pytest.raises(ValueError, match='no "weight_map"'):
        weights.read(index)
    index.write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        weights.read(index)
