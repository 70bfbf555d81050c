"""What the pickle in a file of PyTorch weights describes, without unpickling it.

A pickle is a program for a stack machine, and Python's would run whatever it names. The
machine below knows only the instructions that build dicts, lists, tuples, numbers and
names; it imports nothing and calls nothing. A name other than those of `_NAMES`, and
any use of one that does not make a tensor or an ordered dict, is refused.
"""

import math
import pickletools
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.models.checkpoints.formats.stored import Stored

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_NAMES = {_DICT, _TENSOR, _PARAMETER, *(f"torch.{name}" for name in _STORAGES)}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NUMBERS_AND_TEXT = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
}
# Instruction -> how many values it takes off the stack; the others take those since
# the last mark.
_COUNTS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "SETITEM": 2, "APPEND": 1}
MOST_BYTES = 64 * 2**20
_MARK = object()


class _Name(NamedTuple):
    """A dotted name that the pickle mentions; never looked up."""

    text: str


class Storage(NamedTuple):
    """One file of values within the archive."""

    key: str
    dtype: np.dtype
    count: int


class View(NamedTuple):
    """A tensor: part of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def run(program: bytes | BinaryIO) -> Any:
    """Executes the harmless instructions of a pickle and returns what they build.

    Args:
      program: The whole pickle, or a file in memory that is at its start and is left
        behind its end.

    Returns:
      Dicts, lists, tuples, numbers, text, and `View` for every tensor.

    Raises:
      UserError: an instruction or a name that tensors do not need, or a damaged
        program. Nothing of it was executed.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for code, argument, position in pickletools.genops(program):
            if code.name == "STOP":
                return stack.pop()
            _step(code.name, argument, position, stack, memo)
            if position > MOST_BYTES:
                raise UserError(f"its pickle is larger than {MOST_BYTES} bytes")
    except UserError:
        raise
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"its pickle is damaged or cut short: {error!r}") from error
    raise UserError("its pickle is cut short")


def _step(
    code: str, argument: Any, position: int, stack: list[Any], memo: dict[int, Any]
) -> None:
    """Executes one instruction; refuses all that are not listed here."""
    if code in ("PROTO", "FRAME"):
        return
    if code in _NUMBERS_AND_TEXT:
        stack.append(argument)
    elif code in _CONSTANTS:
        stack.append(_CONSTANTS[code])
    elif code in ("EMPTY_DICT", "EMPTY_LIST"):
        stack.append({} if code == "EMPTY_DICT" else [])
    elif code == "MARK":
        stack.append(_MARK)
    elif code in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif code == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif code in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif code in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
        stack.append(tuple(_taken(stack, code)))
    elif code in ("SETITEM", "SETITEMS"):
        items = _taken(stack, code)
        _set(stack[-1], items)
    elif code in ("APPEND", "APPENDS"):
        items = _taken(stack, code)
        _checked(stack[-1], list).extend(items)
    elif code in ("GLOBAL", "STACK_GLOBAL"):
        parts = argument.split(" ") if code == "GLOBAL" else _last(stack, 2)
        stack.append(_name(".".join(parts), position))
    elif code == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif code == "REDUCE":
        arguments = stack.pop()
        stack.append(_applied(stack.pop(), arguments))
    elif code == "BUILD":
        # A module's state_dict carries version numbers as an attribute: not needed.
        _checked(stack.pop(), dict), _checked(stack[-1], dict)
    else:
        raise UserError(
            f"instruction {code} at byte {position} of its pickle is not one that "
            "tensors need"
        )


def _last(stack: list[Any], count: int) -> list[Any]:
    items = stack[-count:]
    del stack[-count:]
    return items


def _taken(stack: list[Any], code: str) -> list[Any]:
    if code in _COUNTS:
        return _last(stack, _COUNTS[code])
    start = max(i for i, item in enumerate(stack) if item is _MARK)
    return _last(stack, len(stack) - start)[1:]


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise UserError(
            f"its pickle uses a {type(value).__name__} as a {kind.__name__}"
        )
    return value


def _set(target: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    # Other keys would be hashed, which nested tuples can make take for ever.
    if not all(type(key) in (str, int) for key in keys):
        raise UserError("its pickle has a dict with keys other than text and integers")
    _checked(target, dict).update(zip(keys, values, strict=True))


def _name(text: str, position: int) -> _Name:
    if text not in _NAMES:
        raise UserError(
            f"its pickle asks for {text!r} at byte {position}; a file of weights "
            "needs tensors only, and nothing of this one was executed. If you trust "
            "its source, save its state_dict as safetensors elsewhere"
        )
    return _Name(text)


def _storage(value: Any) -> Storage:
    """Reads ("storage", type, key, device, number of values).

    The older format adds a sixth, a part of another storage, which PyTorch has not
    written since its first releases: only None is read.
    """
    if type(value) is tuple and len(value) == 6 and value[5] is None:
        value = value[:5]
    if not (type(value) is tuple and len(value) == 5 and value[0] == "storage"):
        raise UserError("its pickle has a persistent id that is no storage")
    _, kind, key, _, count = value
    name = kind.text.removeprefix("torch.") if isinstance(kind, _Name) else None
    if name not in _STORAGES or type(key) is not str or not _is_count(count):
        raise UserError("its pickle has a storage of no known kind")
    return Storage(key, np.dtype(_STORAGES[name]), count)


def _applied(name: Any, arguments: Any) -> Any:
    """Gives meaning to the three names that a file of weights may apply."""
    if not isinstance(name, _Name) or type(arguments) is not tuple:
        raise UserError("its pickle applies what is not a name")
    if name.text == _DICT and not arguments:
        return {}
    if name.text == _PARAMETER and arguments and isinstance(arguments[0], View):
        return arguments[0]
    if name.text == _TENSOR and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        counts = (offset, *_checked(shape, tuple), *_checked(strides, tuple))
        if (
            isinstance(storage, Storage)
            and all(map(_is_count, counts))
            and len(shape) == len(strides)
        ):
            return View(storage, offset, shape, strides)
    kinds = [type(argument).__name__ for argument in arguments]
    raise UserError(f"its pickle applies {name.text} to {kinds}, which makes no tensor")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def state(content: Any) -> dict[str, View]:
    """Picks the dict of tensors out of what a pickle built.

    That below "state_dict" if there is one, else below the only name if it is a dict.

    Raises:
      UserError: There is none, or it holds anything but tensors.
    """
    if not isinstance(content, dict):
        raise UserError(f"it holds a {type(content).__name__}, not a dict of tensors")
    inner = content.get("state_dict")
    if len(content) == 1:
        (inner,) = content.values()
    content = inner if isinstance(inner, dict) else content
    wrong = [name for name, value in content.items() if not isinstance(value, View)]
    if wrong or not all(isinstance(name, str) for name in content):
        raise UserError(f"{wrong[:5]} are no tensors; wanted a dict of name -> tensor")
    return content


def located(name: str, path: Path, view: View, start: int) -> Stored:
    """Turns a view into a range of bytes.

    Args:
      name: What the tensor is called, for messages.
      path: The file.
      view: The tensor.
      start: Where the values of its storage begin in the file.

    Raises:
      UserError: The tensor reaches beyond its storage.
    """
    storage, item = view.storage, view.storage.dtype.itemsize
    span = sum(
        (size - 1) * step for size, step in zip(view.shape, view.strides, strict=True)
    )
    last = 0 if 0 in view.shape else view.offset + span + 1
    if last > storage.count:
        raise UserError(
            f"{name} needs {last} values of {storage.dtype}; its storage has "
            f"{storage.count}"
        )
    contiguous = tuple(
        math.prod(view.shape[axis + 1 :]) for axis in range(len(view.shape))
    )
    strides = None if 0 in view.shape or view.strides == contiguous else view.strides
    count = 0 if 0 in view.shape else span + 1
    begin = start + view.offset * item
    return Stored(path, view.shape, storage.dtype, ((begin, count * item),), strides)
