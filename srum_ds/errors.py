"""The one exception that is a message to the user rather than a bug."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: says what was found, what was expected and what to do.

    The command line prints the message alone and exits with status 2.
    """
