"""Requests that are refused, each with its status and one sentence that holds nothing of the server's own."""

from __future__ import annotations


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: of the answer.
        sentence: what is wrong, and what to do.
        retry_after: seconds after which to try again, where that may help.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after
