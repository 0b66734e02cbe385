"""How the server listens."""

from __future__ import annotations

import socket

from tightbox.serve.run import listen


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """A connection that collects small writes holds an answer's body back until the client acknowledges its head."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
