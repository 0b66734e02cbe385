"""Serving an application until a signal ends it."""

import math
import signal
import socket

import uvicorn
from starlette.applications import Starlette

from tightbox.errors import UserError
from tightbox.options import ServeOptions

BACKLOG = 2048  # connections that the system holds until they are taken
SPARE_SECONDS = 5  # beyond the longest time of a request, until what is still open is dropped


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port} ({error}); choose another --host or --port") from error
    # Connections inherit it. An answer is written as head and body; else the body waits some 40 ms for the client's
    # acknowledgement of the head. asyncio sets it only on sockets that name their protocol, and this one does not.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    return listening


def configuration(app: Starlette, options: ServeOptions) -> uvicorn.Config:
    """How uvicorn serves it."""
    return uvicorn.Config(
        app,
        http="h11",  # written in Python, and strict about what a request may be
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(options.timeout_s) + SPARE_SECONDS,
    )


def serve_until_signal(app: Starlette, listening: socket.socket, options: ServeOptions) -> int:
    """Serve; after SIGTERM or Ctrl-C no connection is taken any more, and what was accepted is still answered.

    Returns:
        How many images were accepted.
    """
    # uvicorn raises the signal once more when it is done. An orderly end is none to die of, and Ctrl-C is passed on
    # from here, as asyncio may lose it if its task has ended already.
    raised: list[int] = []
    ends = signal.SIGTERM, signal.SIGINT
    before = {name: signal.signal(name, lambda number, _: raised.append(number)) for name in ends}
    try:
        uvicorn.Server(configuration(app, options)).run(sockets=[listening])
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    if signal.SIGINT in raised:
        raise KeyboardInterrupt
    return int(app.state.service.accepted)
