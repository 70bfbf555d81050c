"""Sections of a config, read by what takes them: each key is known or refused."""

from collections.abc import Collection, Mapping
from typing import Any


def given(
    section: Mapping[str, Any], known: Collection[str], where: str
) -> dict[str, Any]:
    """Returns the keys of a section.

    Args:
      section: a ConfigDict or a dict.
      known: keys that it may have.
      where: what it is called in messages, such as "config.train".

    Raises:
      ValueError: a key that is not known.
    """
    unknown = sorted(set(section) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; it takes {list(known)}")
    return {name: section[name] for name in section}
