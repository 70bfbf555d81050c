"""Archives that torch wrote, and pickles that would run code."""

import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from jaxanom.models.checkpoints.formats import stored, tensor_pickle, torch_archive

MARKER = "executed-by-a-pickle"


def read_all(path):
    found = torch_archive.tensors(path)
    return {name: stored.read(tensor) for name, tensor in found.items()}


def state():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return {
        "plain": torch.randn(3, 5),
        "half": torch.randn(4).half(),
        "brain": torch.randn(2, 3).bfloat16(),
        "double": torch.randn(2).double(),
        "ids": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.T,
        "rows": base[2:4],
        "same storage": base,
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "spread": torch.randn(4, 6)[:, ::2],
        "repeated": torch.randn(1, 3).expand(4, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


def as_numpy(tensor):
    tensor = tensor.detach()
    wide = tensor.float() if tensor.dtype.itemsize == 2 else tensor
    return wide.numpy()


def assert_holds(path, wanted):
    found = read_all(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tuple(tensor.shape), name
        assert str(tensor.dtype) == f"torch.{found[name].dtype}", name
        np.testing.assert_array_equal(
            found[name].astype(as_numpy(tensor).dtype), as_numpy(tensor), err_msg=name
        )


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth"])
def test_tensors_that_torch_saved_read_the_same(tmp_path, suffix):
    torch = pytest.importorskip("torch")
    path = tmp_path / f"m.{suffix}"
    torch.save(state(), path)
    assert_holds(path, state())


def test_a_state_dict_with_its_versions_and_a_nested_one_read_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    assert_holds(tmp_path / "m.pt", module.state_dict())
    torch.save(
        {"state_dict": module.state_dict(), "epoch": 3, "loss": 0.5},
        tmp_path / "nested.pt",
    )
    assert_holds(tmp_path / "nested.pt", module.state_dict())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_that_torch_can_use_is_read(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    torch.save(state(), tmp_path / "m.pt", pickle_protocol=protocol)
    assert_holds(tmp_path / "m.pt", state())


def archive(path, program, members=None):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", program)
        for name, content in (members or {}).items():
            file.writestr(f"m/{name}", content)
    return path


class Evil:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks():
    target = os.path.join(os.getcwd(), MARKER)
    yield "os.system", Evil(os.system, f"touch {target}")
    yield "open", Evil(open, target, "w")
    yield "eval", Evil(eval, f"open({target!r}, 'w')")
    yield "exec", Evil(exec, f"open({target!r}, 'w')")
    yield "getattr", Evil(getattr, Evil(__import__, "os"), "system")
    yield "within a dict", {"weight": Evil(os.mkdir, target)}
    yield "as an ordered dict", collections.OrderedDict(a=Evil(os.mkdir, target))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_runs_nothing_and_is_named(elsewhere, protocol):
    marker = elsewhere / MARKER
    for name, attack in attacks():
        program = pickle.dumps(attack, protocol)
        path = archive(elsewhere / "m.bin", program)
        with pytest.raises(ValueError, match=r"m\.bin is refused as PyTorch weights"):
            torch_archive.tensors(path)
        assert not marker.exists(), name


def test_the_attack_is_a_real_one(elsewhere):
    # Negative control: Python's own unpickler does run it.
    pickle.loads(pickle.dumps(Evil(os.mkdir, MARKER)))
    assert (elsewhere / MARKER).exists()


def test_the_name_that_a_pickle_asks_for_is_in_the_message(elsewhere):
    path = archive(elsewhere / "m.bin", pickle.dumps(Evil(os.mkdir, "x"), 2))
    with pytest.raises(ValueError, match=r"asks for 'posix\.mkdir' .*safetensors"):
        torch_archive.tensors(path)


@pytest.mark.parametrize(
    "name", ["torch.load", "torch._utils._rebuild_qtensor", "builtins.dict", "_codecs"]
)
def test_names_near_the_allowed_ones_are_refused(name):
    module, _, attribute = name.rpartition(".")
    program = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b")R."
    with pytest.raises(ValueError, match="asks for"):
        tensor_pickle.run(program)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\n.",  # a name alone
        b"\x80\x02(S'touch x'\nios\nsystem\n.",  # INST
        b"\x80\x02(cos\nsystem\nS'x'\no.",  # OBJ
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x04\x82\x01.",  # EXT1
        b"\x80\x02P1\n.",  # PERSID
        b"\x80\x02]K\x05Q.",  # a persistent id that is no storage
        b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.",  # with arguments
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # applied storage type
        b"\x80\x02}(K\x01K\x02K\x03u.",  # three items for a dict
        b"\x80\x02}(]K\x02u.",  # a list as key
        b"\x80\x02(.",
        b"\x80\x02h\x07.",  # nothing noted there
        b"\x80\x02}",  # no end
        b"",
        b"\xff\xfe",
    ],
)
def test_instructions_that_tensors_do_not_need_are_refused(program):
    with pytest.raises(ValueError):
        found = tensor_pickle.run(program)
        tensor_pickle.state(found)


def test_tuples_that_double_fifty_times_take_no_time():
    # Printing or hashing this shared structure would take 2^50 steps.
    bomb = b"\x80\x02)" + b"q\x00h\x00\x86" * 50
    for end in (b"Q.", b"K\x01s.", b"R.", b"ccollections\nOrderedDict\nh\x00R."):
        with pytest.raises(ValueError):
            tensor_pickle.run(bomb + end)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": 1}), "older format"),
        (b"", "older format"),
        (b"PK\x03\x04 cut", "older format"),
    ],
)
def test_what_is_of_neither_format_is_refused(tmp_path, content, message):
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"m\.pt .*{message}"):
        torch_archive.tensors(path)


def test_a_whole_module_and_a_script_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 3)
    torch.save(module, tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"asks for 'torch\.nn\.modules"):
        torch_archive.tensors(tmp_path / "module.pt")
    torch.jit.trace(module, torch.zeros(1, 2)).save(tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"TorchScript.*state_dict"):
        torch_archive.tensors(tmp_path / "script.pt")


def test_values_that_are_no_tensors_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(2), "b": 3}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"\['b'\] are no tensors"):
        torch_archive.tensors(tmp_path / "m.pt")
    torch.save([torch.ones(2)], tmp_path / "m.pt")
    with pytest.raises(ValueError, match="holds a list"):
        torch_archive.tensors(tmp_path / "m.pt")


def tampered(path, change, compression=zipfile.ZIP_STORED):
    """Rewrites an archive with some members changed or dropped."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            content = change(name, content)
            if content is not None:
                file.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, c: None if n.endswith("data/0") else c, "which is missing"),
        (lambda n, c: c[:-4] if n.endswith("data/0") else c, "which has 56 bytes"),
        (lambda n, c: c + c if n.endswith("data/0") else c, "which has 120 bytes"),
        (lambda n, c: b"big" if n.endswith("byteorder") else c, "byte order"),
        (lambda n, c: None if n.endswith("data.pkl") else c, "wanted one <root>"),
        (lambda n, c: c[:-9] if n.endswith("data.pkl") else c, "not enough data"),
    ],
)
def test_an_archive_that_lies_is_refused(tmp_path, change, message):
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(3, 5)}, path)
    tampered(path, lambda name, content: content)
    assert_holds(path, {"a": torch.ones(3, 5)})  # rewriting alone changes nothing
    tampered(path, change)
    with pytest.raises(ValueError, match=rf"m\.pt is refused .*{message}"):
        torch_archive.tensors(path)


def test_compressed_values_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(30, 5)}, tmp_path / "m.pt")
    tampered(tmp_path / "m.pt", lambda n, c: c, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        torch_archive.tensors(tmp_path / "m.pt")


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3, 5)}, tmp_path / "m.pt")

    def larger(name, content):  # shape (3, 5) becomes (7, 5)
        return content.replace(b"K\x03K\x05\x86", b"K\x07K\x05\x86")

    tampered(tmp_path / "m.pt", larger)
    with pytest.raises(ValueError, match="a needs 35 values of float32"):
        torch_archive.tensors(tmp_path / "m.pt")


def test_every_truncation_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    whole = buffer.getvalue()
    path = tmp_path / "m.pt"
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"m\.pt"):
            torch_archive.tensors(path)
