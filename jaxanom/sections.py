"""Sections of a config, read by what takes them: each key is known or refused."""

import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxanom.errors import UserError

Options = TypeVar("Options")


def read(section: Mapping[str, Any], kind: type[Options], where: str) -> Options:
    """Reads a section into its options: every key, and no other.

    Defaults live in `configs/<method>/base.py` alone, so a key that is left out is an
    error like one that is not known. Integers become floats and lists tuples where the
    field is one; of plain types no other conversion is made.

    Args:
      section: A ConfigDict or a dict.
      kind: The NamedTuple or dataclass whose fields are the keys.
      where: What the section is called in messages, such as "config.train".

    Raises:
      UserError: A key is unknown (the nearest is named) or missing, or a value is of
        another type.
    """
    types = typing.get_type_hints(kind)
    unknown = sorted(set(section) - set(types))
    if unknown:
        near = difflib.get_close_matches(unknown[0], types, n=1)
        hint = f"did you mean {where}.{near[0]}? " if near else ""
        raise UserError(
            f"{where} has unknown keys {unknown}; {hint}it takes {list(types)}"
        )
    missing = [name for name in types if name not in section]
    if missing:
        raise UserError(
            f"{where} lacks {missing}; configs/<method>/base.py has every key"
        )
    return kind(
        **{
            name: _as_type(section[name], kind_of, f"{where}.{name}")
            for name, kind_of in types.items()
        }
    )


def _as_type(value: Any, kind: Any, where: str) -> Any:
    if (typing.get_origin(kind) or kind) is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind in (bool, int, float, str) and type(value) is not kind:
        raise UserError(
            f"{where}={value!r} is a {type(value).__name__}; want a {kind.__name__}"
        )
    return value
