"""Sections of a config, read by what takes them: each key is known or refused."""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from jaxanom.errors import UserError

Options = TypeVar("Options")


def read(section: Mapping[str, Any], kind: type[Options], where: str) -> Options:
    """Reads a section into its options: every key, and no other.

    Defaults live in `configs/<method>/base.py` alone, so a key that is left out is an
    error like one that is not known.

    Args:
      section: A ConfigDict or a dict.
      kind: The NamedTuple or dataclass whose fields are the keys.
      where: What the section is called in messages, such as "config.train".

    Raises:
      UserError: A key is unknown or missing.
    """
    fields = getattr(kind, "_fields", None) or tuple(kind.__dataclass_fields__)
    values = given(section, fields, where)
    missing = [name for name in fields if name not in values]
    if missing:
        raise UserError(
            f"{where} lacks {missing}; configs/<method>/base.py has every key"
        )
    return kind(**values)


def given(
    section: Mapping[str, Any], known: Collection[str], where: str
) -> dict[str, Any]:
    """Returns the keys of a section.

    Args:
      section: a ConfigDict or a dict.
      known: keys that it may have.
      where: what it is called in messages, such as "config.train".

    Raises:
      UserError: a key that is not known.
    """
    unknown = sorted(set(section) - set(known))
    if unknown:
        raise UserError(f"{where} has unknown keys {unknown}; it takes {list(known)}")
    return {name: section[name] for name in section}
