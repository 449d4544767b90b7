"""What is raised for a mistake of the user's."""


class UserError(ValueError):
    """A mistake in what the user gave; programs show its message as one line, without a traceback.

    The message names the value and the remedy.
    """


def first_line(error: BaseException) -> str:
    """What a library's error says, as far as a message of ours has room for it."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
