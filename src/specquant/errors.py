"""The one exception that is meant for people."""


class SpecquantError(Exception):
    """Bad input or an unusable environment. The message is one line: what is wrong, where, and what to do.

    The command line prints the message and exits with status 2.
    """
