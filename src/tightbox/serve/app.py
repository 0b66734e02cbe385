"""The ASGI application: routes, and what guards them."""

import asyncio
import hmac
import io
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from html import escape
from importlib.resources import files
from string import Template

from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tightbox.draw import draw_detections
from tightbox.inference.formats import box_rows
from tightbox.options import ServeOptions
from tightbox.serve.decode import Refusal, decode_bytes
from tightbox.serve.inference_protocol import infer_response, model_metadata, output_names, read_request
from tightbox.serve.metrics import Metrics
from tightbox.serve.predictor import Predictor
from tightbox.serve.service import Service, fraction
from tightbox.structures import Detections
from tightbox.version import __version__

SCORE_THRESHOLD = 0.3  # that of `tightbox predict`
JSON, JPEG = "application/json", "image/jpeg"
PAGE_PARTS = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
ACCEPTED = re.compile(r"([^\s,;]+)(?:[^,]*?;\s*q=(\d(?:\.\d*)?))?[^,]*")  # media types and their weights
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
UNKNOWN = JSONResponse(
    {"error": "a bearer token is needed: Authorization: Bearer TOKEN"}, 401, {"WWW-Authenticate": "Bearer"}
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
    service = Service(predictor, options or ServeOptions())
    app = Starlette(
        routes=_Endpoints(service, name).routes(),
        lifespan=lambda app: service.running(),
        exception_handlers={HTTPException: _http_error, Exception: _internal_error},
    )
    app.state.service = service
    app.add_middleware(_Guard, token=token, metrics=service.metrics)
    return app


class _Guard:
    """Asks for the token, adds headers, and counts."""

    def __init__(self, app: ASGIApp, *, token: str | None, metrics: Metrics) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._metrics = metrics

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

        app = self._app if scope["path"] in OPEN_PATHS or self._known(scope) else UNKNOWN
        try:
            await app(scope, receive, send_on)
        finally:
            # Other paths than those answered are of the client's choice and without end.
            self._metrics.requests.labels(scope["path"] if "endpoint" in scope else "other", status).inc()
            self._metrics.seconds.observe(time.perf_counter() - start)

    def _known(self, scope: Scope) -> bool:
        if self._token is None:
            return True
        scheme, _, value = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(value.strip(), self._token)


class _Endpoints:
    """What answers each route."""

    def __init__(self, service: Service, name: str) -> None:
        self._service, self._name = service, name
        self._options, self._predictor = service.options, service.predictor
        self._max_pixels = service.options.max_megapixels * 1e6

    def routes(self) -> list[Route]:
        """Every path that is answered."""
        folder, model, options = files("tightbox.serve"), f"/v2/models/{self._name}", self._options
        known = {"version": __version__, "max_batch": options.max_batch, "score_threshold": SCORE_THRESHOLD}
        known |= {"max_mb": f"{options.max_mb:g}", "max_megapixels": f"{options.max_megapixels:g}"}

        def filled(file: str, name: str) -> str:
            # Safe, as "$ref" is a key of the OpenAPI document and no place to fill in.
            return Template((folder / file).read_text(encoding="utf-8")).safe_substitute(known, name=name)

        return [
            _fixed("/", filled("page.html", escape(self._name)), "text/html"),
            *(_fixed(f"/{part}", (folder / part).read_bytes(), kind) for part, kind in PAGE_PARTS.items()),
            _fixed("/openapi.json", filled("openapi.json", self._name), JSON),
            _fixed("/v2", json.dumps({"name": "tightbox", "version": __version__, "extensions": []}), JSON),
            _fixed(model, json.dumps(model_metadata(self._name, self._predictor)), JSON),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/metrics", self.metrics),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route(f"{model}/ready", self.ready),
            Route(f"{model}/infer", self.infer, methods=["POST"]),
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
        return JSONResponse({"name": self._name, "ready": self._service.ready}, 200 if self._service.ready else 503)

    async def predict(self, request: Request) -> Response:
        """Boxes in the image that is the body."""
        as_jpeg = _media_type(request.headers.get("accept", "*/*")) == JPEG
        if set(request.query_params) - {"score_threshold", "min_iou"}:
            raise Refusal(422, "the query takes score_threshold and min_iou only")
        given = {key: fraction(value, key) for key, value in request.query_params.items()}
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise Refusal(415, "send the bytes of the image as the body, not a form: curl --data-binary @image.jpg")
        threshold, min_iou = given.get("score_threshold", SCORE_THRESHOLD), given.get("min_iou")
        async with self._body(request) as body:
            decode = partial(decode_bytes, body, self._max_pixels)
            image, found = await self._service.detect(decode, threshold, min_iou)
            names = self._predictor.class_names
            if as_jpeg:
                drawn = await self._service.in_thread(partial(_annotated, image, found, names))
                return Response(drawn, media_type=JPEG)
            return JSONResponse({"width": image.width, "height": image.height, "detections": box_rows(found, names)})

    async def infer(self, request: Request) -> Response:
        """Tensors by the Open Inference Protocol."""
        most = min(self._options.max_batch, self._options.max_queue)
        async with self._body(request) as body:
            read = partial(read_request, body, output_names(self._predictor), most, self._max_pixels)
            asked = await self._service.in_thread(read)
            threshold = SCORE_THRESHOLD if asked.threshold is None else asked.threshold
            async with self._service.places(len(asked.images) - 1):  # one is held already
                try:  # the first error ends the rest, so that no image of a refused request is worked on
                    async with asyncio.TaskGroup() as group:
                        detect = partial(self._service.detect, threshold=threshold, min_iou=asked.min_iou)
                        tasks = [group.create_task(detect(image)) for image in asked.images]
                except* Refusal as errors:
                    raise errors.exceptions[0] from None
                return JSONResponse(infer_response(self._name, asked, [task.result()[1] for task in tasks]))

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The request's body, for work that holds a place and ends within the longest time from here to the answer."""
        body = None
        async with self._service.places():
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    body = await self._whole_body(request)
                    yield body
            except TimeoutError as error:
                if body is None:
                    raise Refusal(408, "the body did not arrive in time") from error
                raise Refusal(503, f"no answer within {self._options.timeout_s:g} s; try again", 1) from error

    async def _whole_body(self, request: Request) -> bytes:
        """The whole body, of which no more than the limit is ever held.

        Raises:
            Refusal: 413 if it is larger, 400 if it ends too early.
        """
        most, body = int(self._options.max_mb * 1e6), bytearray()
        too_large = Refusal(413, f"the body is larger than {self._options.max_mb:g} MB, the most accepted")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        try:
            async for chunk in request.stream():
                if len(body) + len(chunk) > most:
                    raise too_large
                body += chunk
        except ClientDisconnect as error:
            raise Refusal(400, "the body was cut off") from error  # which nobody is left to read
        return bytes(body)


def _fixed(path: str, content: str | bytes, media_type: str) -> Route:
    """A path whose answer never changes."""

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route(path, answer)


def _media_type(accept: str) -> str:
    """JSON or JPEG, whichever an Accept header weighs more; JSON if it does not mind.

    Raises:
        Refusal: 406 if it wants neither.
    """
    weighed = [(float(weight or 1), pattern) for pattern, weight in ACCEPTED.findall(accept.lower())]
    for weight, pattern in sorted(weighed, key=lambda part: -part[0]):
        for media_type in (JSON, JPEG):
            if weight > 0 and pattern in ("*/*", media_type.split("/")[0] + "/*", media_type):
                return media_type
    raise Refusal(406, f"the answer can be {JSON} or {JPEG}")


def _annotated(image: Image.Image, found: Detections, names: tuple[str, ...]) -> bytes:
    file = io.BytesIO()
    try:
        draw_detections(image, found, names).save(file, format="JPEG", quality=92)
    except OSError as error:  # sides above 65,500 pixels
        raise Refusal(422, "the image is too long for a JPEG; ask for JSON") from error
    return file.getvalue()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Other sentences than a refusal's are Starlette's own.
    of_status = {} if isinstance(error, Refusal) else {404: "there is nothing here", 405: "another method is needed"}
    sentence = of_status.get(error.status_code, error.detail)
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    """What went wrong is for the log alone; Starlette raises it on, and uvicorn writes it there.

    It also closes the connection then, which the client must know before it sends the next request.
    """
    return JSONResponse({"error": "the server failed on this request; its log says why"}, 500, {"Connection": "close"})
