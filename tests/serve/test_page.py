"""The page in a real browser, on a real image."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.browser import running_chromium
from tests.helpers.models import tiny_model
from tests.helpers.references import DATA_ROOTS
from tests.helpers.serving import KnownPredictor, serving
from tests.serve.conftest import ready_client
from tightbox.serve.app import create_app
from tightbox.serve.predictor import of_checkpoint

DROP = """([name, content]) => {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type: 'image/jpeg' }));
    const stage = document.getElementById('stage');
    for (const kind of ['dragenter', 'dragover', 'drop'])
        stage.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_chromium() as found:
        yield found


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app(KnownPredictor())) as address, ready_client(address):
        yield address


def photo() -> bytes:
    """A photograph-like image of 120 x 90 pixels."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


class Visit:
    """The page in one window, and everything that it asked for or complained about."""

    def __init__(self, browser: Any, url: str, width: int = 1440, scheme: str = "light", **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def drop(self, content: bytes | None = None, name: str = "photo.jpg") -> None:
        self.page.evaluate(DROP, [name, base64.b64encode(content or photo()).decode()])

    def wait(self, count: str) -> None:
        self.page.locator("#count", has_text=count).wait_for()

    def slide(self, name: str, value: float) -> None:
        self.page.locator(f"#{name}").fill(str(value))

    def rows(self) -> list[str]:
        texts: list[str] = self.page.locator("#list [role=option]").all_inner_texts()
        return [" ".join(text.split()) for text in texts]


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    found = Visit(browser, url)
    yield found
    found.context.close()


def test_a_dropped_image_gets_boxes_and_the_sliders_change_their_number(visit: Visit, url: str) -> None:
    page = visit.page
    page.locator("#facts", has_text="known · finds cat, dog").wait_for()
    visit.drop()
    visit.wait("2 of 3 boxes")
    assert visit.rows() == ["cat 0.90 0.80", "dog 0.60 0.40"]
    assert page.locator("#boxes g").count() == 2
    assert page.locator("#tags .tag").all_inner_texts() == ["cat 0.90 · IoU 0.80", "dog 0.60 · IoU 0.40"]
    asked = len(visit.requests)
    visit.slide("score", 0)
    assert page.locator("#boxes g").count() == 3
    visit.slide("iou", 0.5)
    assert visit.rows() == ["cat 0.90 0.80", "cat 0.20 0.70"]
    assert page.locator("#boxes g").count() == 2
    visit.slide("score", 0.95)
    assert page.locator("#count").inner_text() == "0 of 3 boxes"
    assert page.locator("#boxes g").count() == page.locator(".tag").count() == 0
    assert len(visit.requests) == asked  # all of it in the browser
    assert {re.sub(r"\?.*", "", request.removeprefix(url)) for request in visit.requests if "blob:" not in request} == {
        *("/", "/page.css", "/page.js", "/icon.svg", "/v2/models/tightbox", "/predict")
    } - ({"/icon.svg"} if f"{url}/icon.svg" not in visit.requests else set())
    assert visit.complaints == []


def test_a_real_image_and_a_real_detector(browser: Any) -> None:
    """The detector is untrained, but every box that it reports is drawn and listed."""
    image = next((DATA_ROOTS[-1] / "bccd" / "images").glob("*.jpg"))
    model = tiny_model()
    expected = model.predict(image)
    with serving(create_app(of_checkpoint(model))) as address, ready_client(address):
        visit = Visit(browser, address)
        visit.slide("score", 0)
        visit.drop(image.read_bytes(), image.name)
        visit.wait(f"{len(expected)} of {len(expected)} boxes")
        assert len(expected) > 0
        assert expected.ious is not None
        labels = zip(expected.labels.tolist(), expected.scores.tolist(), expected.ious.tolist(), strict=True)
        assert visit.rows() == [f"{model.class_names[i]} {score:.2f} {iou:.2f}" for i, score, iou in labels]
        between = expected.scores.sort().values[len(expected) // 2].item()
        visit.slide("score", round(between, 2))
        left = int((expected.scores >= round(between, 2)).sum())
        assert visit.page.locator("#count").inner_text() == f"{left} of {len(expected)} boxes"
        assert visit.page.locator("#boxes g").count() == left
        assert visit.complaints == []
        visit.context.close()


def test_boxes_are_drawn_where_they_are(visit: Visit) -> None:
    """The cat's box is 4, 6, 30, 40 in an image of 120 x 90."""
    visit.drop()
    visit.wait("2 of 3")
    photo_at = visit.page.locator("#photo").bounding_box()
    box = visit.page.locator("#boxes g[data-box='0'] .line").bounding_box()
    scale = photo_at["width"] / 120
    assert scale == pytest.approx(photo_at["height"] / 90, abs=0.05)
    assert scale > 2  # small images are enlarged
    expected = [photo_at["x"] + 4 * scale, photo_at["y"] + 6 * scale, 26 * scale, 34 * scale]
    assert [box[key] for key in ("x", "y", "width", "height")] == pytest.approx(expected, abs=2)
    assert visit.page.locator("#boxes g[data-box='0'] .line").get_attribute("stroke") == "#E69F00"
    assert visit.page.locator("#boxes g[data-box='1'] .line").get_attribute("stroke") == "#56B4E9"


def test_choosing_and_pasting_a_file(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "chosen.jpg").write_bytes(photo())
    visit.page.set_input_files("#file", str(tmp_path / "chosen.jpg"))
    visit.page.locator("#status", has_text="chosen.jpg, 120 × 90 pixels").wait_for()
    paste = DROP.replace("['dragenter', 'dragover', 'drop']", "['paste']").replace("DragEvent", "ClipboardEvent")
    paste = paste.replace("dataTransfer: transfer", "clipboardData: transfer")
    visit.page.evaluate(paste, ["pasted.jpg", base64.b64encode(photo()).decode()])
    visit.page.locator("#status", has_text="pasted.jpg, 120 × 90 pixels").wait_for()
    assert visit.complaints == []


def test_the_keyboard(visit: Visit) -> None:
    page = visit.page
    visit.drop()
    visit.wait("2 of 3")

    def selected() -> list[str]:
        return [" ".join(t.split()) for t in page.locator("[role=option][aria-selected=true]").all_inner_texts()]

    assert selected() == []
    for key, expected in (
        ("j", "cat"),
        ("j", "dog"),
        ("j", "dog"),
        ("k", "cat"),
        ("ArrowDown", "dog"),
        ("Home", "cat"),
    ):
        page.keyboard.press(key)
        assert [text.split()[0] for text in selected()] == [expected], key
        assert page.locator("#boxes g.selected").count() == 1
    page.keyboard.press("Escape")
    assert selected() == []
    page.keyboard.press("l")
    assert page.locator("#count").inner_text() == "2 of 3 boxes, loosest first"
    assert visit.rows() == ["dog 0.60 0.40", "cat 0.90 0.80"]
    page.locator("#boxes g[data-box='1'] .line").click()
    assert selected() == ["dog 0.60 0.40"]
    assert page.locator("#list [role=option][tabindex='0']").count() == 1  # one stop of the tab key


def test_what_is_shown_can_be_saved_as_coco(visit: Visit) -> None:
    visit.drop(name="a photo.v2.jpg")
    visit.wait("2 of 3")
    visit.slide("iou", 0.5)
    with visit.page.expect_download() as waiting:
        visit.page.keyboard.press("s")
    assert waiting.value.suggested_filename == "a photo.v2.json"
    content = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    (row,) = content.pop("annotations")
    assert content == {
        "images": [{"id": 1, "file_name": "a photo.v2.jpg", "width": 120, "height": 90}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    assert (row.pop("score"), row.pop("iou")) == (pytest.approx(0.9), pytest.approx(0.8))
    assert row == {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 26, 34], "area": 884, "iscrowd": 0}


def test_a_refusal_is_shown(visit: Visit) -> None:
    visit.drop(photo()[:200])
    visit.page.locator("#status.problem", has_text="cut off or damaged").wait_for()
    assert visit.page.locator("#count").inner_text() == "No image yet"
    visit.drop()
    visit.wait("2 of 3")
    assert visit.page.locator("#status.problem").count() == 0


def test_the_camera(url: str, browser: Any) -> None:
    """Headless, there is none; the page says so."""
    from playwright.sync_api import expect

    visit = Visit(browser, url)
    visit.page.keyboard.press("c")
    visit.page.locator("#status.problem", has_text="camera cannot be used").wait_for()
    visit.page.evaluate(
        """() => { navigator.mediaDevices.getUserMedia = async () => {
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [120, 90];
            const context = canvas.getContext('2d');
            setInterval(() => context.fillRect(0, 0, 120, 90), 20);
            return canvas.captureStream();
        }; }"""
    )
    visit.page.keyboard.press("c")
    # Not by wait_for_function: what it repeats is evaluated in the page, whose policy forbids that.
    expect(visit.page.locator("#video")).to_have_js_property("videoWidth", 120)
    visit.page.click("#take")
    visit.page.locator("#status", has_text="camera.jpg, 120 × 90 pixels").wait_for()
    assert visit.page.locator("#live").is_hidden()
    visit.context.close()


def test_a_token_is_asked_for_and_used(browser: Any) -> None:
    with serving(create_app(KnownPredictor(), token="s3cret")) as address:
        visit = Visit(browser, address)
        visit.page.locator("#token-form").wait_for()
        visit.page.fill("#token", "wrong")
        visit.page.keyboard.press("Enter")
        visit.page.locator("#status.problem", has_text="token").wait_for()
        visit.page.fill("#token", "s3cret")
        visit.page.keyboard.press("Enter")
        visit.page.locator("#facts", has_text="cat, dog").wait_for()
        visit.drop()
        visit.wait("2 of 3")
        assert visit.page.locator("#token-form").is_hidden()
        visit.context.close()


def test_names_are_never_html(browser: Any) -> None:
    predictor = KnownPredictor()
    predictor.class_names = ("<img src=x onerror=alert(1)>", "</script><b>dog")
    with serving(create_app(predictor)) as address, ready_client(address):
        visit = Visit(browser, address)
        visit.drop(name="<b>name</b>.jpg")
        visit.wait("2 of 3")
        assert visit.page.locator("#list img, #list b, #tags img, #status b, #facts img").count() == 0
        assert visit.rows()[0].startswith("<img src=x")
        assert visit.complaints == []
        visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_is_readable(browser: Any, url: str, width: int, scheme: str) -> None:
    visit = Visit(browser, url, width, scheme)
    visit.drop()
    visit.wait("2 of 3")
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    contrasts = page.evaluate(
        """() => {
            const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
            const luminance = (colour) => channels(colour).slice(0, 3).map((v) => v / 255)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const behind = (e) => {
                for (; e; e = e.parentElement) {
                    const colour = getComputedStyle(e).backgroundColor;
                    if ((channels(colour)[3] ?? 1) === 1) return colour;
                }
                return 'rgb(255, 255, 255)';
            };
            const found = {};
            const texts = 'h1, h2, p, label, output, button:enabled, kbd, li, .row span, .tag, a';
            for (const e of document.querySelectorAll(texts)) {
                if (!e.textContent.trim() || !e.getClientRects().length) continue;
                const [ink, paper] = [getComputedStyle(e).color, behind(e)];
                const [a, b] = [luminance(ink), luminance(paper)].sort((x, y) => x - y);
                found[`${ink} on ${paper}`] = (b + 0.05) / (a + 0.05);
            }
            return found;
        }"""
    )
    assert len(contrasts) > 4
    assert {pair: value for pair, value in contrasts.items() if value < 4.5} == {}  # WCAG 2.2, level AA
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('section, input, button, [role=option], [role=listbox], video')]
            .filter((e) => !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim()
                || document.getElementById(e.getAttribute('aria-labelledby'))?.textContent))
            .map((e) => e.outerHTML.slice(0, 100))"""
    )
    assert nameless == []
    visit.context.close()
