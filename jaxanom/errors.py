"""The error of what the user can mend."""


class UserError(ValueError):
    """An input, a file or a config key is wrong, and the message says what to change.

    The command line prints it without a traceback; any other exception keeps its own,
    so that a bug does not look like the user's fault.
    """
