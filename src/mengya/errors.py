"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A fault of input, recipe or machine. The message carries the offending value and the remedy; exit code 2."""
