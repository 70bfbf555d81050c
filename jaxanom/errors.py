"""The error of what the user can mend."""

from collections.abc import Collection
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
