"""The one exception for mistakes a user can fix."""


class UserError(Exception):
    """Something in the input is wrong: one sentence that says what, where, and what to do."""
