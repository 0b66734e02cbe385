"""The one exception for mistakes a user can fix."""


class UserError(Exception):
    """Something in the input is wrong: one sentence that says what, where, and what to do.

    The command line prints the sentence without a traceback and exits with status 2.
    """


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{package} is not installed; it comes with: pip install 'tightbox[{extra}]'")
