"""The one exception for mistakes a user can fix."""

from importlib import import_module
from typing import Any


class UserError(Exception):
    """Something in the input is wrong: one sentence that says what, where, and what to do.

    The command line prints the sentence without a traceback and exits with status 2.
    """


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{package} is not installed; it comes with: pip install 'tightbox[{extra}]'")


def import_extra(module: str, extra: str, package: str = "") -> Any:
    """A module that an extra installs.

    Args:
        module: its name.
        extra: which one.
        package: the name to say to a user, if it is another.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise missing_extra(package or module, extra) from error
