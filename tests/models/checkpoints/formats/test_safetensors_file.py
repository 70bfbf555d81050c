"""Our reader and writer against the format's own, and headers that lie."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from jaxanom.models.checkpoints.formats import safetensors_file, stored

DRAW = np.random.default_rng(0)
ARRAYS = {
    "wide": DRAW.normal(size=(3, 5)),
    "single": DRAW.normal(size=(4, 2, 2)).astype(np.float32),
    "half": DRAW.normal(size=7).astype(np.float16),
    "brain": DRAW.normal(size=(2, 3)).astype(jnp.bfloat16),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "ids": np.arange(5),
    "bytes": np.arange(3, dtype=np.uint8),
    "flags": np.array([True, False]),
}


def read_all(path):
    return {
        name: stored.read(tensor)
        for name, tensor in safetensors_file.tensors(path).items()
    }


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def test_what_the_library_writes_reads_the_same(tmp_path):
    save_file(ARRAYS, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert_same(read_all(tmp_path / "w.safetensors"), ARRAYS)


def test_what_we_write_the_library_reads_the_same(tmp_path):
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        safetensors_file.write(file, ARRAYS, {"format": "pt"})
    assert_same(load_file(path), ARRAYS)
    assert_same(read_all(path), ARRAYS)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    # Values of each type begin at a multiple of their size, for readers that map them.
    for tensor in safetensors_file.tensors(path).values():
        assert tensor.pieces[0][0] % tensor.dtype.itemsize == 0


def test_a_type_the_format_lacks_is_refused_by_name():
    arrays = {"z": np.zeros(2, np.complex64)}
    with pytest.raises(ValueError, match="z has dtype complex64"):
        safetensors_file.write(io.BytesIO(), arrays, {})


def test_rows_of_a_tensor_are_read_alone(tmp_path):
    values = DRAW.normal(size=(6, 4)).astype(np.float32)
    save_file({"x": values}, tmp_path / "w.safetensors")
    tensor = safetensors_file.tensors(tmp_path / "w.safetensors")["x"]
    for part in range(3):
        found = stored.read(tensor, (part, 3))
        np.testing.assert_array_equal(found, values[2 * part : 2 * part + 2])
    with pytest.raises(ValueError, match="6 rows do not split into 4"):
        stored.read(tensor, (0, 4))


def forged(path, entries, payload=b"\0" * 16, text=None):
    head = json.dumps(entries).encode() if text is None else text
    path.write_bytes(len(head).to_bytes(8, "little") + head + payload)


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HONEST = {"a": entry([2], 0, 8), "b": entry([2], 8, 16)}
LIES = {
    "overlap": (
        {"a": entry([2], 0, 8), "b": entry([3], 4, 16)},
        "offset for tensor `b`",
    ),
    "twice the same": (
        {"a": entry([4], 0, 16), "b": entry([4], 0, 16)},
        "offset for tensor",
    ),
    "gap": ({"a": entry([1], 0, 4), "b": entry([2], 8, 16)}, "offset for tensor `b`"),
    "beyond the end": (
        {"a": entry([2], 0, 8), "b": entry([4], 8, 24)},
        "file not fully covered",
    ),
    "short of the end": ({"a": entry([2], 0, 8)}, "file not fully covered"),
    "other size": ({"a": entry([3], 0, 16)}, "invalid shape, data type, or offset"),
    "backwards": ({"a": entry([2], 16, 8)}, "offset for tensor `a`"),
    "negative": ({"a": entry([2], -8, 0)}, "integer `-8`"),
    "negative shape": ({"a": entry([-2, -2], 0, 16)}, "integer `-2`"),
    "fraction": ({"a": entry([2.0, 2], 0, 16)}, "floating point"),
    "huge": ({"a": entry([2**62, 2**62], 0, 16)}, "overflow"),
    "bool as number": ({"a": entry([True, 4], 0, 16)}, "boolean `true`"),
    "unknown type": ({"a": entry([4], 0, 16, "F31")}, "variant `F31`"),
    "three offsets": (
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 16]}},
        "invalid length 3",
    ),
    "type not of ours": ({"a": entry([2], 0, 16, "C64")}, "dtype 'C64'; known are"),
    "lacking": ({"a": {"dtype": "F32", "shape": [4]}}, "missing field `data_offsets`"),
    "no dict": ({"a": 3}, "integer `3`"),
    "a list": ([1], "sequence"),
}


def test_the_honest_header_of_the_lies_below_is_accepted(tmp_path):
    forged(tmp_path / "w.safetensors", HONEST)
    assert safetensors_file.tensors(tmp_path / "w.safetensors").keys() == {"a", "b"}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_by_what_is_wrong(tmp_path, lie):
    entries, message = LIES[lie]
    forged(tmp_path / "w.safetensors", entries)
    wanted = rf"w\.safetensors is not a readable safetensors file: .*{message}"
    with pytest.raises(ValueError, match=wanted):
        safetensors_file.tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "EOF"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[" * 100_000, "sequence"),
    ],
)
def test_a_header_that_is_no_json_is_refused(tmp_path, text, message):
    forged(tmp_path / "w.safetensors", None, text=text)
    with pytest.raises(ValueError, match=f"not a readable .*({message})"):
        safetensors_file.tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize("length", [2**63, 2**40, 10_000])
def test_a_header_length_beyond_the_file_is_refused_without_reading_it(
    tmp_path, length
):
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"header too large|invalid header length"):
        safetensors_file.tensors(path)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"x": np.arange(4.0), "y": np.ones(3, np.float16)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"w\.safetensors is not a readable"):
            safetensors_file.tensors(path)


def test_a_file_that_shrinks_after_its_header_was_read_is_an_error(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"x": np.arange(4.0)}, path)
    tensor = safetensors_file.tensors(path)["x"]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"w\.safetensors ends at .* in the middle"):
        stored.read(tensor)
