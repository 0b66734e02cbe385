"""Requests that are refused, each with its status and one sentence that holds nothing of the server's own."""

from starlette.exceptions import HTTPException


class Refusal(HTTPException):
    """A request that is not served.

    Args:
        status: of the answer.
        sentence: what is wrong, and what to do.
        retry_after: seconds after which to try again, where that may help.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(status, sentence, None if retry_after is None else {"Retry-After": str(retry_after)})
