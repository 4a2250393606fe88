"""The one error that means: the input is wrong, not the program."""


class InputError(ValueError):
    """A mistake in what the user gave us.

    The message is one clear sentence: what was wrong, where (file, line, field), what is allowed, what to do.
    Commands print it without a traceback and exit with a non-zero code.
    """
