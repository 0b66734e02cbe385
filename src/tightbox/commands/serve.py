"""Serve a detector: an endpoint for programs, and a page to drop images on."""

import ipaddress
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from tightbox.commands import on_data
from tightbox.errors import UserError, import_extra
from tightbox.options import ServeOptions

USAGE = "CHECKPOINT_OR_ONNX [--host 127.0.0.1] [--port 8000] [--token TOKEN]"
TOKEN_VARIABLE = "TIGHTBOX_TOKEN"


def add_arguments(parser: ArgumentParser) -> None:
    """What, where, and how much at once."""
    folder = "folder that `tightbox train` wrote, such as runs/x/best"
    file = "a file that `tightbox export --format onnx` wrote, which ONNX Runtime runs"
    parser.add_argument("checkpoint", help=f"{folder}; or {file}")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all of this machine's")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free")
    parser.add_argument("--name", default="tightbox", help="of the model, in /v2/models/NAME")
    bearer = f"bearer token that requests must carry; or in the environment, {TOKEN_VARIABLE}"
    parser.add_argument("--token", help=bearer)
    parser.add_class_arguments(ServeOptions, as_group=False)
    on_data.add_device(parser)


def run(args: Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; the status is 0 after SIGTERM."""
    options = ServeOptions(**{field.name: args[field.name] for field in fields(ServeOptions)})
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port is {args.port}; it must be between 0 and 65535")
    if not re.fullmatch(r"[\w.-]+", args.name):
        raise UserError(f"--name is {args.name!r}; it must consist of letters, digits, dots, dashes and underscores")
    # In the environment, other users of the machine cannot read it.
    token = os.environ.get(TOKEN_VARIABLE) if args.token is None else args.token
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UserError("the token must be of printable ASCII characters without spaces, as a header carries it")
    for package in ("prometheus_client", "starlette", "uvicorn"):
        import_extra(package, "serve", f"{package}, which serving needs,")

    from tightbox.serve.app import create_app
    from tightbox.serve.run import listen, serve_until_signal

    if args.checkpoint.endswith(".onnx"):
        from tightbox.serve.exported import of_onnx

        predictor = of_onnx(Path(args.checkpoint), args.device)
    else:
        from tightbox.models import load
        from tightbox.serve.predictor import of_checkpoint

        predictor = of_checkpoint(load(args.checkpoint).to(on_data.find_device(args.device)))
    app = create_app(predictor, name=args.name, options=options, token=token)
    with listen(args.host, args.port) as listening:
        address: tuple[Any, ...] = listening.getsockname()
        if not ipaddress.ip_address(address[0]).is_loopback and token is None:
            on_data.warn("anybody who reaches this machine can send images; --token asks for one")
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        print(f"{args.checkpoint} is served at http://{host}:{address[1]}; Ctrl-C ends it", flush=True)
        accepted = serve_until_signal(app, listening, options)
    print(f"ended after {accepted} accepted images")
    return 0
