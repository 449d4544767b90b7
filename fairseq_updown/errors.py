"""What is raised for a mistake of the user's."""


class UserError(ValueError):
    """A mistake in what the user gave; programs show its message as one line, without a traceback.

    The message names the value and the remedy.
    """
