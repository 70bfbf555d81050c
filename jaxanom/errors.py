"""The error of what the user can mend."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any


class UserError(ValueError):
    """An input, a file or a config key is wrong, and the message says what to change.

    The command line prints it without a traceback; any other exception keeps its own,
    so that a bug does not look like the user's fault.
    """


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises UserError, with the option's name, for a value that is not a choice."""
    if value not in choices:
        raise UserError(f"{name}={value!r}; choose one of {tuple(choices)}")


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raises UserError, with the nearest known name, for one that is not known."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise UserError(f"unknown {what} {name!r}{hint} known: {', '.join(known)}")
