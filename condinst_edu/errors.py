"""Errors that are the user's to mend: the command line prints the message as it is and exits with code 2."""


class UserError(ValueError):
    """One clear sentence that names what is wrong, where, and what was expected."""
