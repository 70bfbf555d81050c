"""Our scanner against flax's own, and files that lie."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from jaxanom.models.checkpoints.formats import flax_msgpack, stored

DRAW = np.random.default_rng(0)
TREE = {
    "text_model": {
        "kernel": DRAW.normal(size=(3, 5)).astype(np.float32),
        "bias": DRAW.normal(size=(300,)).astype(np.float16),
        "layers": {str(i): {"scale": np.full(i, i, np.float32)} for i in range(20)},
    },
    "a name that is longer than thirty-one characters": np.arange(4),
    "brain": DRAW.normal(size=(2, 2, 2, 2)).astype(jnp.bfloat16),
    "logit_scale": np.array(2.5, np.float32),
    "long": np.zeros((70_000, 1), np.uint8),
}


def read_all(path):
    found = flax_msgpack.tensors(path)
    return {name: stored.read(tensor) for name, tensor in found.items()}


def written(path, content):
    path.write_bytes(content)
    return path


def test_what_flax_writes_reads_the_same(tmp_path):
    path = written(tmp_path / "m.msgpack", serialization.to_bytes(TREE))
    found = read_all(path)
    assert found["text_model/layers/19/scale"].tolist() == [19.0] * 19
    assert len(found) == 26
    for name, value in {
        "text_model/kernel": TREE["text_model"]["kernel"],
        "text_model/bias": TREE["text_model"]["bias"],
        "brain": TREE["brain"],
        "logit_scale": TREE["logit_scale"],
    }.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_chunks_of_a_large_array_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    tree = {"a": {"large": DRAW.normal(size=(10, 3)).astype(np.float32)}}
    content = serialization.to_bytes(tree)
    assert b"__msgpack_chunked_array__" in content
    path = written(tmp_path / "m.msgpack", content)
    np.testing.assert_array_equal(read_all(path)["a/large"], tree["a"]["large"])
    tensor = flax_msgpack.tensors(path)["a/large"]
    # Rows that span two chunks.
    np.testing.assert_array_equal(stored.read(tensor, (1, 2)), tree["a"]["large"][5:])
    broken = serialization.msgpack_serialize(
        {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {}}
    )
    with pytest.raises(ValueError, match="chunked array lacks"):
        flax_msgpack.tensors(written(path, broken))


def test_every_truncation_is_refused(tmp_path):
    content = serialization.to_bytes({"a": {"b": np.arange(3.0), "c": np.ones(2)}})
    for size in range(len(content)):
        path = written(tmp_path / "m.msgpack", content[:size])
        with pytest.raises(ValueError, match=r"m\.msgpack is not a readable Flax"):
            flax_msgpack.tensors(path)


ARRAY = serialization.to_bytes(np.arange(3, dtype=np.float32))
LIES = {
    "trailing": (serialization.to_bytes({}) + b"x", "1 bytes follow"),
    "no tree": (ARRAY, "holds no tree"),
    "no array": (serialization.to_bytes({"a": "text"}), "a is 'text'"),
    "complex": (serialization.to_bytes({"a": 1j}), "extension type 2"),
    "huge map": (b"\xdf\xff\xff\xff\xff", "announced"),
    "huge list": (b"\x81\xa1a\xdd\xff\xff\xff\xff", "announced"),
    "huge extension": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "announced"),
    "deep": (b"\x81\xa1a" * 1000 + b"\x80", "more than 64 levels"),
    "same name": (b"\x82\xa1a\x80\xa1a\x80", "occurs twice"),
    "other shape": (
        b"\x81\xa1a" + ARRAY.replace(b"\x91\x03", b"\x91\x04"),
        "takes 16 bytes, 12",
    ),
    "other type": (b"\x81\xa1a" + ARRAY.replace(b"float32", b"object0"), "'object0'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_by_what_is_wrong(tmp_path, lie):
    content, message = LIES[lie]
    with pytest.raises(ValueError, match=rf"m\.msgpack is not .*{message}"):
        flax_msgpack.tensors(written(tmp_path / "m.msgpack", content))
