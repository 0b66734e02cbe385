"""The endpoints, spoken to over loopback."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.models import tiny_model
from tests.helpers.serving import POISON, KnownPredictor, image_bytes, serving
from tests.serve.conftest import ready_client, until
from tests.serve.test_decode import png_header
from tightbox.options import ServeOptions
from tightbox.serve.app import create_app
from tightbox.serve.predictor import of_checkpoint

GOOD = image_bytes()
ALL = [
    {"box": [4.0, 6.0, 30.0, 40.0], "score": 0.9, "label": 0, "class": "cat", "iou": 0.8},
    {"box": [20.0, 10.0, 60.0, 44.0], "score": 0.6, "label": 1, "class": "dog", "iou": 0.4},
    {"box": [1.0, 1.0, 9.0, 9.0], "score": 0.2, "label": 0, "class": "cat", "iou": 0.7},
]


def boxes(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["detections"]
    return [{k: pytest.approx(v) if isinstance(v, float) else v for k, v in row.items()} for row in found]


def sentence(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert list(content) == ["error"]
    return str(content["error"])


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("", [0, 1]),  # the threshold of `tightbox predict`, 0.3
        ("?score_threshold=0", [0, 1, 2]),
        ("?score_threshold=0.7", [0]),
        ("?score_threshold=0&min_iou=0.5", [0, 2]),
        ("?min_iou=1", []),
    ],
)
def test_predict(client: httpx.Client, query: str, left: list[int]) -> None:
    answer = client.post(f"/predict{query}", content=GOOD)
    assert boxes(answer) == [ALL[i] for i in left]
    assert (answer.json()["width"], answer.json()["height"]) == (64, 48)


@pytest.mark.parametrize("query", ["score_threshold=2", "min_iou=-1", "min_iou=nan", "score_threshold=x", "iou=0.5"])
def test_wrong_queries(client: httpx.Client, query: str) -> None:
    assert query.split("=")[0].split("_")[0] in sentence(client.post(f"/predict?{query}", content=GOOD), 422)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/jpeg", "image/jpeg"),
        ("image/*", "image/jpeg"),
        ("image/jpeg, application/json;q=0.5", "image/jpeg"),
        ("application/json;q=0.1, image/jpeg;q=0.9", "image/jpeg"),
        ("*/*", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json, image/jpeg", "application/json"),
        ("application/json;q=0, image/*;v=1;q=0.1", "image/jpeg"),
    ],
)
def test_the_answer_is_what_is_accepted(client: httpx.Client, accept: str, kind: str) -> None:
    answer = client.post("/predict", content=GOOD, headers={"Accept": accept})
    assert answer.headers["content-type"] == kind
    if kind == "image/jpeg":
        image = Image.open(io.BytesIO(answer.content))
        assert image.size == (64, 48)
        assert len(image.convert("RGB").getcolors(64 * 48) or ()) > 10  # something is drawn on the plain image


def test_other_answers_are_not_there(client: httpx.Client) -> None:
    assert "image/jpeg" in sentence(client.post("/predict", content=GOOD, headers={"Accept": "text/html"}), 406)


def malformed() -> dict[str, tuple[bytes, int]]:
    return {
        "empty": (b"", 400),
        "text": (b"hello", 415),
        "json": (b'{"url": "http://localhost/x.png"}', 415),
        "a URL": (b"file:///etc/passwd", 415),
        "truncated": (GOOD[: len(GOOD) // 2], 422),
        "another format": (image_bytes(kind="TIFF"), 415),
        "a bomb": (png_header(50_000, 50_000), 422),
        "too many pixels": (image_bytes((101, 100)), 422),
        "too large": (bytes(100_001), 413),
        "noise": (np.random.default_rng(0).bytes(5000), 415),
    }


@pytest.mark.parametrize("case", malformed())
@pytest.mark.parametrize("chunked", [False, True])
def test_malformed_bodies_are_refused_and_the_next_is_answered(client: httpx.Client, case: str, chunked: bool) -> None:
    body, status = malformed()[case]
    content = iter([body[: len(body) // 2], body[len(body) // 2 :]]) if chunked else body
    sentence(client.post("/predict", content=content), status)
    assert boxes(client.post("/predict", content=GOOD)) == ALL[:2]


def test_a_form_is_told_what_to_send(client: httpx.Client) -> None:
    assert "--data-binary" in sentence(client.post("/predict", files={"file": GOOD}), 415)


def test_a_body_of_any_length_is_not_kept(client: httpx.Client) -> None:
    """Of 20 MB the server says at the head that it is too much; the client may still send it all."""
    assert "0.1 MB" in sentence(client.post("/predict", content=bytes(20_000_000)), 413)


def test_a_client_that_hangs_up_harms_nobody(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    assert boxes(client.post("/predict", content=GOOD)) == ALL[:2]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("GET", "/../etc/passwd", 404)])
def test_what_is_not_there(client: httpx.Client, method: str, path: str, status: int) -> None:
    sentence(client.request(method, path), status)


def test_a_failure_of_the_detector_tells_nothing(client: httpx.Client) -> None:
    answer = client.post("/predict", content=image_bytes(colour=POISON))
    assert "secret" not in sentence(answer, 500)
    assert answer.headers["connection"] == "close"  # as uvicorn closes it
    assert boxes(client.post("/predict", content=GOOD)) == ALL[:2]


def infer(client: httpx.Client, **content: Any) -> httpx.Response:
    return client.post("/v2/models/known/infer", content=json.dumps(content))


def in_base64(*images: bytes, **changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data} | changes


def test_inference_protocol(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"name": "known", "ready": True}
    assert client.get("/v2").json()["name"] == "tightbox"
    about = client.get("/v2/models/known").json()
    assert about["parameters"]["class_names"] == ["cat", "dog"]
    assert client.get("/v2/models/known/ready").json() == {"name": "known", "ready": True}

    answer = infer(client, id="7", inputs=[in_base64(GOOD, GOOD)])
    assert answer.status_code == 200
    content = answer.json()
    assert (content["model_name"], content["id"]) == ("known", "7")
    assert [output["name"] for output in content["outputs"]] == [output["name"] for output in about["outputs"]]
    tensors = {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in content["outputs"]}
    assert tensors["num_detections"].tolist() == [2, 2]
    for i in range(2):
        assert tensors["boxes"][i].tolist() == [row["box"] for row in ALL[:2]]
        assert tensors["scores"][i] == pytest.approx([0.9, 0.6])
        assert tensors["labels"][i].tolist() == [0, 1]
        assert tensors["ious"][i] == pytest.approx([0.8, 0.4])


def test_inference_protocol_on_pixels(client: httpx.Client) -> None:
    pixels = np.zeros((1, 2, 3, 3), dtype=int)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 3, 3]}
    for data in (pixels.tolist(), pixels.flatten().tolist()):
        outputs, parameters = [{"name": "labels"}], {"score_threshold": 0.0, "min_iou": 0.5}
        answer = infer(client, inputs=[tensor | {"data": data}], outputs=outputs, parameters=parameters)
        expected = [{"name": "labels", "datatype": "INT64", "shape": [1, 2], "data": [0, 0]}]
        assert answer.json() == {"model_name": "known", "outputs": expected}


PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3]}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({}, 400),
        ({"inputs": []}, 400),
        ({"inputs": ["image"]}, 400),
        ({"inputs": [in_base64(GOOD), in_base64(GOOD)]}, 400),
        ({"inputs": [in_base64(GOOD, name="x")]}, 400),
        ({"inputs": [in_base64(GOOD, shape=[2])]}, 400),
        ({"inputs": [in_base64(GOOD, shape=[0], data=[])]}, 400),
        ({"inputs": [in_base64(GOOD, shape=[])]}, 400),
        ({"inputs": [in_base64(GOOD, shape="1")]}, 400),
        ({"inputs": [in_base64(GOOD, datatype="FP32")]}, 400),
        ({"inputs": [in_base64(GOOD, data=["%%"])]}, 400),
        ({"inputs": [in_base64(GOOD, data=["ä"])]}, 400),
        ({"inputs": [in_base64(GOOD, data=[7])]}, 400),
        ({"inputs": [in_base64(b"hello")]}, 415),
        ({"inputs": [in_base64(GOOD, GOOD[:50])]}, 422),
        ({"inputs": [in_base64(GOOD, GOOD, GOOD)]}, 422),  # more than a batch
        ({"inputs": [PIXELS | {"data": [0, 0, 256]}]}, 400),
        ({"inputs": [PIXELS | {"data": [0, 0, -1]}]}, 400),
        ({"inputs": [PIXELS | {"data": [0, 0, 10**30]}]}, 400),
        ({"inputs": [PIXELS | {"data": [0, 0]}]}, 400),
        ({"inputs": [PIXELS | {"data": [0, [0], 0]}]}, 400),
        ({"inputs": [PIXELS | {"data": [0.5, 0, 0]}]}, 400),
        ({"inputs": [PIXELS | {"data": ["a", "b", "c"]}]}, 400),
        ({"inputs": [PIXELS | {"data": [0, 0, 0], "shape": [1, 10**9, 10**9, 3]}]}, 400),
        ({"inputs": [PIXELS | {"data": [0, 0, 0], "shape": [1, 1, 3, 1]}]}, 400),
        ({"inputs": [PIXELS | {"data": [0] * 30_300, "shape": [1, 100, 101, 3]}]}, 422),
        ({"inputs": [in_base64(GOOD)], "outputs": [{"name": "masks"}]}, 400),
        ({"inputs": [in_base64(GOOD)], "outputs": [{"name": ["masks"]}]}, 400),
        ({"inputs": [in_base64(GOOD)], "parameters": {"min_iou": True}}, 422),
        ({"inputs": [in_base64(GOOD)], "parameters": [1]}, 400),
    ],
)
def test_malformed_tensors(client: httpx.Client, content: dict[str, Any], status: int) -> None:
    sentence(infer(client, **content), status)
    assert infer(client, inputs=[in_base64(GOOD)]).status_code == 200


@pytest.mark.parametrize("body", [b"", b"x", b"[1]", b"\xff", b"[" * 50_000, GOOD])
def test_bodies_that_are_no_request(client: httpx.Client, body: bytes) -> None:
    sentence(client.post("/v2/models/known/infer", content=body), 400)


def test_another_model_is_not_here(client: httpx.Client) -> None:
    for answer in (client.get("/v2/models/x"), client.post("/v2/models/x/infer", content=b"{}")):
        sentence(answer, 404)


def test_metrics(client: httpx.Client) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    good, bad = (f'tightbox_requests_total{{route="/predict",status="{status}"}}' for status in (200, 415))
    before = {name: value(name) for name in (good, bad, "tightbox_images_total", "tightbox_boxes_total")}
    client.post("/predict", content=GOOD)
    client.post("/predict", content=b"hello")
    client.get("/a/path/of/the/clients/choice")
    assert value(good) == before[good] + 1
    assert value(bad) == before[bad] + 1
    assert value("tightbox_images_total") == before["tightbox_images_total"] + 1
    assert value("tightbox_boxes_total") == before["tightbox_boxes_total"] + 2
    assert value("tightbox_images_waiting") == 0
    assert "choice" not in client.get("/metrics").text


def test_the_description_has_every_route(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    app = create_app(KnownPredictor(), name="known")
    routes = {route.path: route.methods - {"HEAD"} for route in app.routes}  # type: ignore[attr-defined]
    files = {"/page.css", "/page.js", "/icon.svg"}
    given = {path: {method.upper() for method in methods} for path, methods in described["paths"].items()}
    assert given == {path: methods for path, methods in routes.items() if path not in files}
    schemas = described["components"]["schemas"]
    refs = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described))
    assert set(refs) == set(schemas)
    answer = client.post("/predict", content=GOOD).json()
    assert set(answer) == set(schemas["Predictions"]["properties"])
    assert set(answer["detections"][0]) == set(schemas["Detection"]["properties"])


def test_every_answer_is_guarded(client: httpx.Client) -> None:
    for answer in (client.get("/"), client.get("/page.js"), client.get("/nowhere"), client.post("/predict")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "server" not in answer.headers


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    with serving(create_app(KnownPredictor(), token="s3cret")) as url, ready_client(url) as client:
        yield client


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer s3cre", "Bearer s3crett", "Basic s3cret", "s3cret"])
def test_without_the_token_nothing_is_told(guarded: httpx.Client, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    infer_path = "/v2/models/tightbox/infer"
    asked = [("POST", "/predict"), ("POST", infer_path), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/x")]
    for method, path in asked:
        answer = guarded.request(method, path, headers=headers, content=GOOD if method == "POST" else None)
        sentence(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_token(guarded: httpx.Client, scheme: str) -> None:
    assert boxes(guarded.post("/predict", content=GOOD, headers={"Authorization": f"{scheme} s3cret"})) == ALL[:2]


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/icon.svg", "/v2/health/live", "/v2/health/ready"])
def test_probes_and_the_page_need_no_token(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200


class Sender(threading.Thread):
    """Sends one image and keeps the answer."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = httpx.post(f"{self.url}/predict", content=GOOD, timeout=60, trust_env=False)


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    predictor = KnownPredictor()
    app = create_app(predictor, options=ServeOptions(max_batch=2, max_queue=5))
    with serving(app) as url, ready_client(url) as client:
        predictor.go.clear()
        senders = [Sender(url) for _ in range(5)]
        until(lambda: "tightbox_images_waiting 5.0" in client.get("/metrics").text)
        refused = client.post("/predict", content=GOOD)
        assert "waiting" in sentence(refused, 503)
        assert int(refused.headers["retry-after"]) >= 1
        both = infer_on(client, GOOD)
        assert both.status_code == 503
        assert client.get("/v2/health/ready").status_code == 200  # still there for those who ask
        predictor.go.set()
        for sender in senders:
            sender.join(60)
            assert sender.answer is not None
            assert boxes(sender.answer) == ALL[:2]
        assert boxes(client.post("/predict", content=GOOD)) == ALL[:2]
        assert max(predictor.batches) == 2


def infer_on(client: httpx.Client, *images: bytes) -> httpx.Response:
    return client.post("/v2/models/tightbox/infer", content=json.dumps({"inputs": [in_base64(*images)]}))


def test_images_of_one_request_need_places_too() -> None:
    app = create_app(KnownPredictor(), options=ServeOptions(max_batch=4, max_queue=2))
    with serving(app) as url, ready_client(url) as client:
        assert infer_on(client, GOOD, GOOD).status_code == 200
        assert "at most 2" in sentence(infer_on(client, GOOD, GOOD, GOOD), 422)
        assert infer_on(client, GOOD, GOOD).status_code == 200  # places were given back


def test_a_request_ends_in_time() -> None:
    predictor = KnownPredictor()
    app = create_app(predictor, options=ServeOptions(timeout_s=0.5))
    with serving(app) as url, ready_client(url) as client:
        predictor.go.clear()
        assert "within 0.5 s" in sentence(client.post("/predict", content=GOOD), 503)
        predictor.go.set()
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
            connection.settimeout(60)
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")  # and no more
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert boxes(client.post("/predict", content=GOOD)) == ALL[:2]


def test_it_is_ready_only_after_the_warm_up() -> None:
    predictor = KnownPredictor()
    predictor.go.clear()
    with serving(create_app(predictor)) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        refused = client.post("/predict", content=GOOD)
        assert "not ready" in sentence(refused, 503)
        assert "retry-after" in refused.headers
        predictor.go.set()
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        assert boxes(client.post("/predict", content=GOOD)) == ALL[:2]


def test_one_that_cannot_be_warmed_up_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = KnownPredictor()
    monkeypatch.setattr(predictor, "predict", lambda images: 1 / 0)
    with serving(create_app(predictor)) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        until(lambda: client.get("/v2/health/live").status_code == 503)
        assert client.get("/v2/health/ready").status_code == 503


def test_without_predicted_ious() -> None:
    with serving(create_app(KnownPredictor(calibrated=None))) as url, ready_client(url) as client:
        assert "iou" not in client.post("/predict", content=GOOD).json()["detections"][0]
        assert "predicts no IoU" in sentence(client.post("/predict?min_iou=0.5", content=GOOD), 422)
        outputs = [output["name"] for output in client.get("/v2/models/tightbox").json()["outputs"]]
        assert outputs == ["num_detections", "boxes", "scores", "labels"]
        assert [output["name"] for output in infer_on(client, GOOD).json()["outputs"]] == outputs


def test_a_checkpoint_is_served_as_it_predicts(tmp_path: Path) -> None:
    model = tiny_model()
    data = image_bytes((80, 60), colour=(200, 40, 40))
    with serving(create_app(of_checkpoint(model))) as url, ready_client(url) as client:
        found = client.post("/predict?score_threshold=0", content=data).json()["detections"]
    expected = model.predict(Image.open(io.BytesIO(data)))
    assert len(found) == len(expected) > 0
    assert np.allclose([row["box"] for row in found], expected.boxes, atol=1e-3)
    assert [row["score"] for row in found] == pytest.approx(expected.scores.tolist(), abs=1e-6)
    assert expected.ious is not None
    assert [row["iou"] for row in found] == pytest.approx(expected.ious.tolist(), abs=1e-6)
