"""The ASGI application: routes, and what guards them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tightbox.draw import draw_boxes
from tightbox.options import ServeOptions
from tightbox.serve.decode import decode_bytes
from tightbox.serve.inference_protocol import InferRequest, infer_response, model_metadata, output_names, read_request
from tightbox.serve.metrics import Metrics
from tightbox.serve.openapi import description
from tightbox.serve.predictor import Predictor
from tightbox.serve.refusals import Refusal
from tightbox.serve.service import Service, fraction
from tightbox.structures import Detections
from tightbox.version import __version__

SCORE_THRESHOLD = 0.3  # that of `tightbox predict`
JSON, JPEG = "application/json", "image/jpeg"
PAGE_PARTS = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
# What anybody may ask without the token: probes, and the page, which holds nothing but its own code.
OPEN_PATHS = frozenset({"/", *(f"/{part}" for part in PAGE_PARTS), "/v2/health/live", "/v2/health/ready"})
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"content-security-policy", POLICY),
)


def create_app(
    predictor: Predictor, *, name: str = "tightbox", options: ServeOptions | None = None, token: str | None = None
) -> Starlette:
    """The application, whose `state.service` is the `Service` behind it.

    Args:
        predictor: finds the boxes.
        name: of the model in the Open Inference Protocol.
        options: the limits.
        token: what requests must carry as a bearer token; None asks for none.
    """
    options = options or ServeOptions()
    metrics = Metrics()
    service = Service(predictor, options, metrics)
    endpoints = _Endpoints(service, name)
    routes = endpoints.routes()
    paths = {route.endpoint: route.path for route in routes}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Exception: _internal_error},
    )
    app.state.service = service
    app.add_middleware(_Guard, token=token, metrics=metrics, paths=paths)
    return app


class _Guard:
    """Asks for the token, adds headers, and counts."""

    def __init__(self, app: ASGIApp, *, token: str | None, metrics: Metrics, paths: dict[Any, str]) -> None:
        self._app = app
        self._token = None if token is None else _digest(token.encode())
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            if scope["path"] in OPEN_PATHS or self._known(scope):
                await self._app(scope, receive, send_on)
            else:
                sentence = "a bearer token is needed: Authorization: Bearer TOKEN"
                response = _error(401, sentence, {"WWW-Authenticate": "Bearer"})
                await response(scope, receive, send_on)
        finally:
            # By its route, as paths are of the client's choice and without end.
            self._metrics.requests.labels(self._paths.get(scope.get("endpoint"), "other"), status).inc()
            self._metrics.seconds.observe(time.perf_counter() - start)

    def _known(self, scope: Scope) -> bool:
        if self._token is None:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, value = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(_digest(value.strip()), self._token)


def _digest(value: bytes) -> bytes:
    """Of one length, so that the time of a comparison tells nothing of the token's."""
    return hashlib.sha256(value).digest()


class _Endpoints:
    """What answers each route."""

    def __init__(self, service: Service, name: str) -> None:
        self._service = service
        self._options = service.options
        self._predictor = service.predictor
        self._name = name
        self._max_pixels = service.options.max_megapixels * 1e6
        self._max_bytes = int(service.options.max_mb * 1e6)

    def routes(self) -> list[Route]:
        """Every path that is answered."""
        folder = files("tightbox.serve")
        page = Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
            name=escape(self._name), version=__version__, max_mb=f"{self._options.max_mb:g}"
        )
        described = json.dumps(description(self._name, self._options, SCORE_THRESHOLD))
        server = json.dumps({"name": "tightbox", "version": __version__, "extensions": []})
        return [
            _fixed("/", page, "text/html"),
            *(_fixed(f"/{part}", (folder / part).read_bytes(), kind) for part, kind in PAGE_PARTS.items()),
            _fixed("/openapi.json", described, JSON),
            _fixed("/v2", server, JSON),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/metrics", self.metrics),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/{name}", self.model),
            Route("/v2/models/{name}/ready", self.model_ready),
            Route("/v2/models/{name}/infer", self.infer, methods=["POST"]),
        ]

    async def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def live(self, request: Request) -> Response:
        """Whether it is worth keeping."""
        alive = not self._service.failed
        return JSONResponse({"live": alive}, 200 if alive else 503)

    async def ready(self, request: Request) -> Response:
        """Whether images are accepted."""
        return JSONResponse({"ready": self._service.ready}, 200 if self._service.ready else 503)

    async def model(self, request: Request) -> Response:
        """What goes in and comes out."""
        self._check_name(request)
        return JSONResponse(model_metadata(self._name, self._predictor))

    async def model_ready(self, request: Request) -> Response:
        """Whether the one model is ready."""
        self._check_name(request)
        return JSONResponse({"name": self._name, "ready": self._service.ready}, 200 if self._service.ready else 503)

    async def predict(self, request: Request) -> Response:
        """Boxes in the image that is the body."""
        media_type = _media_type(request.headers.get("accept", "*/*"))
        threshold, min_iou = _query(request)
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise Refusal(415, "send the bytes of the image as the body, not a form: curl --data-binary @image.jpg")
        work = partial(self._predict, threshold=threshold, min_iou=min_iou, media_type=media_type)
        return await self._in_time(request, work)

    async def _predict(self, body: bytes, threshold: float, min_iou: float | None, media_type: str) -> Response:
        decode = partial(decode_bytes, body, self._max_pixels)
        image, found = await self._service.detect(decode, threshold, min_iou)
        names = self._predictor.class_names
        if media_type == JPEG:
            draw = partial(_annotated, image, found, names)
            return Response(await self._service.in_thread(draw), media_type=JPEG)
        return JSONResponse({"width": image.width, "height": image.height, "detections": _rows(found, names)})

    async def infer(self, request: Request) -> Response:
        """Tensors by the Open Inference Protocol."""
        self._check_name(request)
        return await self._in_time(request, self._infer)

    async def _infer(self, body: bytes) -> Response:
        most = min(self._options.max_batch, self._options.max_queue)
        read = partial(read_request, body, output_names(self._predictor), most, self._max_pixels)
        asked: InferRequest = await self._service.in_thread(read)
        threshold = SCORE_THRESHOLD if asked.threshold is None else asked.threshold
        async with self._service.places(len(asked.images) - 1):  # one is held already
            results = await _all_or_first_error(
                [self._service.detect(image, threshold, asked.min_iou) for image in asked.images]
            )
            return JSONResponse(infer_response(self._name, asked, [found for _, found in results]))

    def _check_name(self, request: Request) -> None:
        if request.path_params["name"] != self._name:
            raise Refusal(404, "there is no such model here")

    async def _in_time(self, request: Request, work: Callable[[bytes], Awaitable[Response]]) -> Response:
        """What the work makes of the request's body, within the longest time from here to the answer."""
        async with self._service.places():
            deadline = asyncio.get_running_loop().time() + self._options.timeout_s
            body = await self._body(request, deadline)
            try:
                async with asyncio.timeout_at(deadline):
                    return await work(body)
            except TimeoutError as error:
                raise Refusal(503, f"no answer within {self._options.timeout_s:g} s; try again", 1) from error

    async def _body(self, request: Request, deadline: float) -> bytes:
        """The whole body, of which no more than the limit is ever held.

        Raises:
            Refusal: 413 if it is larger, 408 if it does not arrive in time.
        """
        too_large = Refusal(413, f"the body is larger than {self._options.max_mb:g} MB, the most accepted")
        if int(request.headers.get("content-length", 0)) > self._max_bytes:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout_at(deadline):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise too_large
                    chunks.append(chunk)
        except TimeoutError as error:
            raise Refusal(408, "the body did not arrive in time") from error
        except ClientDisconnect as error:
            raise Refusal(400, "the body was cut off") from error  # which nobody is left to read
        return b"".join(chunks)


def _fixed(path: str, content: str | bytes, media_type: str) -> Route:
    """A path whose answer never changes."""

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route(path, answer)


async def _all_or_first_error(
    work: Sequence[Coroutine[Any, Any, tuple[Image.Image, Detections]]],
) -> list[tuple[Image.Image, Detections]]:
    """Results in order; the first error ends the rest, so that no image of a refused request is worked on."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except* Refusal as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _query(request: Request) -> tuple[float, float | None]:
    """The score threshold and the lowest predicted IoU that the query asks for."""
    for key in request.query_params:
        if key not in ("score_threshold", "min_iou"):
            raise Refusal(422, "the query takes score_threshold and min_iou only")
    threshold, min_iou = (request.query_params.get(key) for key in ("score_threshold", "min_iou"))
    return (
        SCORE_THRESHOLD if threshold is None else fraction(threshold, "score_threshold"),
        None if min_iou is None else fraction(min_iou, "min_iou"),
    )


def _media_type(accept: str) -> str:
    """JSON or JPEG, whichever an Accept header weighs more; JSON if it does not mind.

    Raises:
        Refusal: 406 if it wants neither.
    """
    weights = {JSON: 0.0, JPEG: 0.0}
    closest = {JSON: -1, JPEG: -1}
    for part in accept.split(","):
        pattern, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        for media_type in weights:
            kinds = ("*/*", media_type.split("/")[0] + "/*", media_type)
            if pattern in kinds and kinds.index(pattern) > closest[media_type]:  # a closer pattern decides
                weights[media_type], closest[media_type] = weight, kinds.index(pattern)
    best = max(weights, key=lambda media_type: weights[media_type])
    if not weights[best] > 0:
        raise Refusal(406, f"the answer can be {JSON} or {JPEG}")
    return best


def _rows(found: Detections, names: Sequence[str]) -> list[dict[str, Any]]:
    """Boxes as JSON, best first."""
    rows: list[dict[str, Any]] = [
        {"box": [round(value, 3) for value in box], "score": round(score, 6), "label": label, "class": names[label]}
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
    if found.ious is not None:
        for row, iou in zip(rows, found.ious.tolist(), strict=True):
            row["iou"] = round(iou, 6)
    return rows


def _annotated(image: Image.Image, found: Detections, names: Sequence[str]) -> bytes:
    drawn = draw_boxes(image, found.boxes, found.labels, names, scores=found.scores, ious=found.ious)
    file = io.BytesIO()
    try:
        drawn.save(file, format="JPEG", quality=92)
    except OSError as error:  # sides above 65,500 pixels
        raise Refusal(422, "the image is too long for a JPEG; ask for JSON") from error
    return file.getvalue()


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = error.detail
    if not isinstance(error, Refusal):  # Starlette's own
        sentence = {404: "there is nothing here", 405: "another method is needed"}.get(error.status_code, sentence)
    return _error(error.status_code, sentence, error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    """What went wrong is for the log alone; Starlette raises it on, and uvicorn writes it there."""
    return _error(500, "the server failed on this request; its log says why")
