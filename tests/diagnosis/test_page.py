"""The page in a real browser."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.browser import running_chromium
from tests.helpers.results import NASTY, eighty_classes, many, nasty_example
from tightbox.diagnosis.diagnose import diagnose_results
from tightbox.diagnosis.numbers import Diagnosis
from tightbox.diagnosis.page import write_page
from tightbox.evaluation.coco_files import from_coco

CARDS = "#list [role=option]"


class Visit:
    """One page in one window, and everything that it asked for or complained about."""

    def __init__(self, browser: Any, file: Path, width: int = 1440, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(file.as_uri())

    def cards(self) -> list[str]:
        labels: list[str] = self.page.locator(CARDS).evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
        return labels

    def lost(self) -> list[float]:
        texts = self.page.locator(f"{CARDS} strong").all_inner_texts()
        return [float(text.replace("−", "").replace(",", "").removesuffix(" px")) for text in texts]

    def selected(self) -> int:
        at: int = self.page.evaluate(
            f"[...document.querySelectorAll('{CARDS}')].findIndex(e => e.getAttribute('aria-selected') === 'true')"
        )
        return at


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_chromium() as found:
        yield found


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose_results(*from_coco(*many()), title="results.json against val.json")


@pytest.fixture(scope="module")
def file(diagnosis: Diagnosis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(folder / "any.jpg")
    write_page(diagnosis, {card.image.id: folder / "any.jpg" for card in diagnosis.gallery}, folder / "diagnosis.html")
    return folder / "diagnosis.html"


@pytest.fixture
def visit(browser: Any, file: Path) -> Iterator[Visit]:
    found = Visit(browser, file)
    yield found
    found.context.close()


def test_it_loads_by_itself(visit: Visit, file: Path) -> None:
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [file.as_uri()]
    assert visit.page.title() == "results.json against val.json – tightbox diagnosis"


def test_the_plots_are_drawn(visit: Visit) -> None:
    for name in ("lost", "ladder", "curve", "tightness", "kinds", "lrp", "score-table", "score-points", "iou-table"):
        plot = visit.page.locator(f"svg.plot[aria-labelledby='{name}-title']")
        box = plot.bounding_box()
        assert box is not None, name
        assert box["width"] > 300, name
        assert box["height"] > 100, name
        assert plot.locator("path").count() > 3, name
    text = visit.page.locator("svg.plot[aria-labelledby='curve-title']").inner_html()
    assert "ranked by true IoU</text>" in text  # text as text
    identifiers = visit.page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(identifiers) == len(set(identifiers))


def test_images_are_shown(visit: Visit) -> None:
    loaded = visit.page.evaluate(
        """async () => {
            const image = new Image();
            image.src = document.querySelector('#canvas image').getAttribute('href');
            await image.decode();
            return [image.naturalWidth, image.naturalHeight];
        }"""
    )
    assert min(loaded) > 30
    assert visit.page.locator("#canvas rect.box").count() == 3


def test_the_gallery_is_sorted_and_filtered(visit: Visit) -> None:
    page = visit.page
    assert visit.lost() == sorted(visit.lost(), reverse=True)
    every = len(visit.cards())
    page.select_option("#sort", "file")
    files = [int(label.split(" in ")[1].split(".jpg")[0]) for label in visit.cards()]
    assert files == sorted(files)  # as numbers: 10 comes after 9
    assert len(files) == every
    page.select_option("#sort", "score")
    scores = [float(label.split("score ")[1].split(",")[0]) for label in visit.cards()]
    assert scores == sorted(scores, reverse=True)

    page.check("input[value=miss]")
    assert {label.split(" in ")[0] for label in visit.cards()} == {"cat"}
    assert len(set(visit.lost())) > 1
    page.select_option("#size", "small")
    assert set(visit.lost()) == {400}  # 20 by 20 pixels
    page.check("input[value=false_positive]")
    page.select_option("#size", "")
    page.select_option("#class", "emu")
    assert {label.split(" in ")[0] for label in visit.cards()} == {"emu"}
    page.select_option("#size", "small")
    assert visit.cards() == []
    assert page.get_by_text("There is nothing of this kind.").is_visible()
    assert not page.locator("#selected").is_visible()
    assert visit.complaints == []


def test_the_keyboard_moves_on(visit: Visit) -> None:
    page = visit.page
    titles = [page.locator("#selected svg").get_attribute("aria-label")]
    for key, expected in (("j", 1), ("ArrowRight", 2), ("ArrowDown", 3), ("k", 2), ("ArrowLeft", 1), ("Home", 0)):
        page.keyboard.press(key)
        assert visit.selected() == expected, key
        titles.append(page.locator("#selected svg").get_attribute("aria-label"))
    assert titles[0] == titles[-1]
    assert len(set(titles)) == 4
    page.keyboard.press("k")
    assert visit.selected() == 0  # there is nothing before the first
    page.keyboard.press("End")
    assert page.locator("#next").is_disabled()
    assert page.evaluate("document.activeElement.getAttribute('role')") == "option"
    assert page.locator("#status").inner_text().startswith(f"{len(visit.cards())} of {len(visit.cards())}: ")


def test_typing_in_a_field_does_not_move_on(visit: Visit) -> None:
    visit.page.focus("#class")
    visit.page.keyboard.press("j")
    assert visit.selected() == 0


def test_hovering_and_focus_show_the_numbers(visit: Visit) -> None:
    from playwright.sync_api import expect

    card = visit.page.locator(CARDS).nth(1)
    numbers = card.locator(".numbers")
    expect(numbers).to_have_css("opacity", "0")
    card.hover()
    expect(numbers).to_have_css("opacity", "1")
    assert "IoU 0." in numbers.inner_text()
    visit.page.mouse.move(0, 0)
    expect(numbers).to_have_css("opacity", "0")
    visit.page.keyboard.press("j")
    expect(numbers).to_have_css("opacity", "1")
    visit.page.hover("#boxes tr[data-layer=kept]")
    assert "highlighted" in (visit.page.locator("#canvas rect.kept").get_attribute("class") or "")


def test_everything_has_a_name_for_screen_readers(visit: Visit) -> None:
    nameless = visit.page.evaluate(
        """() => {
            const named = (e) => e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim()
                || document.getElementById(e.getAttribute('aria-labelledby'))?.textContent;
            const asked = document.querySelectorAll(
                'section, select, input, button, [role=option], [role=listbox], [role=region], svg[role=img]');
            return [...asked].filter((e) => !named(e)).map((e) => e.outerHTML.slice(0, 200));
        }"""
    )
    assert nameless == []
    levels = visit.page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert visit.page.locator("html").get_attribute("lang") == "en"
    # One stop of the tab key for the whole list.
    assert visit.page.locator(f"{CARDS}[tabindex='0']").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_it_is_readable(browser: Any, file: Path, width: int, scheme: str) -> None:
    visit = Visit(browser, file, width, scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    contrasts = visit.page.evaluate(
        """() => {
            const canvas = document.createElement('canvas').getContext('2d');
            const channels = (colour) => {
                canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                return [...canvas.getImageData(0, 0, 1, 1).data];
            };
            const luminance = (colour) => channels(colour).slice(0, 3).map((v) => v / 255)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const behind = (e) => {
                for (; e; e = e.parentElement) {
                    const colour = getComputedStyle(e).backgroundColor;
                    if (channels(colour)[3] === 255) return colour;
                }
                return 'white';
            };
            const found = {};
            const texts = 'h1, h2, h3, p, dt, dd, th, td, label, figcaption, svg.plot text, .line *';
            for (const e of document.querySelectorAll(texts)) {
                if (!e.textContent.trim() || !e.getClientRects().length) continue;
                const style = getComputedStyle(e);
                const ink = e instanceof SVGElement ? style.fill : style.color;
                const [a, b] = [luminance(ink), luminance(behind(e))].sort((x, y) => x - y);
                found[`${ink} on ${behind(e)}`] = (b + 0.05) / (a + 0.05);
            }
            return found;
        }"""
    )
    assert len(contrasts) > 2
    assert {pair: value for pair, value in contrasts.items() if value < 4.5} == {}  # WCAG 2.2, level AA
    small = visit.page.evaluate(
        """() => {
            const scale = (matrix) => Math.hypot(matrix.a, matrix.b);  // of turned text too
            return [...document.querySelectorAll('svg.plot text')]
                .map((e) => parseFloat(getComputedStyle(e).fontSize) * scale(e.getScreenCTM()))
                .filter((size) => size < 8.5);
        }"""
    )
    assert small == []
    dark = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(20, 23, 27)") == (scheme == "dark")
    visit.context.close()


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 80 classes."""
    path = tmp_path_factory.mktemp("wide") / "diagnosis.html"
    write_page(diagnose_results(*from_coco(*eighty_classes()), title="80 classes"), {}, path)
    return path


@pytest.mark.parametrize("classes", [3, 80])
@pytest.mark.parametrize("width", [1280, 1265])  # and 1280 less a scroll bar
def test_every_column_is_in_sight(browser: Any, file: Path, wide_file: Path, width: int, classes: int) -> None:
    visit = Visit(browser, file if classes == 3 else wide_file, width)
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("table").count() == 5
    rows = page.locator(".scroll").filter(has_text="Mistakes by class").locator("tbody tr").count()
    assert rows == classes
    for table in page.locator("table").all():
        name = table.inner_text()[:20]
        place = table.locator("..")
        assert place.evaluate("e => e.scrollWidth <= e.clientWidth"), name
        right = place.evaluate("e => e.getBoundingClientRect().right")
        ends = table.locator("tr > :last-child").evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
        assert max(ends) <= right <= width, name
    assert not any(hint.is_visible() for hint in page.locator(".more-columns").all())
    assert page.locator(".scroll.more, .scroll[tabindex]").count() == 0
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("classes", [3, 80])
def test_a_table_that_goes_on_says_so(browser: Any, file: Path, wide_file: Path, classes: int, scheme: str) -> None:
    visit = Visit(browser, file if classes == 3 else wide_file, 390, scheme)
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".scroll").count() == page.locator(".more-columns").count() == 4
    names = []
    for place, hint in zip(page.locator(".scroll").all(), page.locator(".more-columns").all(), strict=True):
        name = place.get_attribute("aria-label") or ""
        hidden = place.evaluate("e => e.scrollWidth - e.clientWidth")
        assert hint.is_visible() == (hidden > 0), name
        assert place.get_attribute("tabindex") == ("0" if hidden > 0 else None), name
        if not hidden:
            assert not _edge_is_shaded(place), name
            continue
        names.append(name)
        assert "scroll sideways" in hint.inner_text()
        assert _edge_is_shaded(place), name
        heads = place.locator("tbody th").first
        left = heads.bounding_box()["x"]
        place.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("e => e.scrollLeft > 0", arg=place.element_handle())
        assert hint.is_visible(), name
        place.evaluate("e => e.scrollTo(e.scrollWidth, 0)")
        page.wait_for_function("e => !e.classList.contains('more')", arg=place.element_handle())
        assert not hint.is_visible(), name
        assert not _edge_is_shaded(place), name
        room, last = place.bounding_box(), place.locator("tbody td:last-child").last.bounding_box()
        assert last["x"] + last["width"] <= room["x"] + room["width"], name
        # The row heads stay, and leave most of the width to the figures.
        box = heads.bounding_box()
        assert box["x"] == left, name
        assert box["width"] < room["width"] / 2, name
        place.evaluate("e => e.scrollTo(0, 0)")
        page.wait_for_function("e => e.classList.contains('more')", arg=place.element_handle())
        assert hint.is_visible(), name
    assert names == ["By size", "By class", "Mistakes by class"]
    assert visit.complaints == []
    visit.context.close()


def test_a_wider_window_takes_the_hint_away(browser: Any, file: Path) -> None:
    visit = Visit(browser, file, 390)
    hint = visit.page.locator(".more-columns").last
    assert hint.is_visible()
    visit.page.set_viewport_size({"width": 1280, "height": 900})
    hint.wait_for(state="hidden")
    visit.page.set_viewport_size({"width": 390, "height": 844})
    hint.wait_for(state="visible")
    visit.context.close()


def _edge_is_shaded(place: Any) -> bool:
    """Whether a table's caption, where nothing is written, is of another brightness at the right edge than before."""
    place.scroll_into_view_if_needed()
    pixels = Image.open(io.BytesIO(place.screenshot())).convert("L")
    row: list[Any] = [pixels.getpixel((pixels.width - distance, 12)) for distance in (4, 60)]
    return bool(abs(row[0] - row[1]) >= 20)


def test_its_figures_are_those_of_the_json_file(visit: Visit, diagnosis: Diagnosis) -> None:
    content = json.loads(json.dumps(diagnosis.to_json()))
    shown = visit.page.locator("data").evaluate_all("all => all.map(e => [e.dataset.at, e.value, e.textContent])")
    assert len(shown) > 80
    for pointer, value, text in shown:
        there = content
        for part in pointer.split("/")[1:]:
            there = there[part.replace("~1", "/").replace("~0", "~")]
        assert float(value) == there, pointer
        number = float(text.replace("−", "-").replace(",", ""))
        assert min(abs(number - there), abs(number - 100 * there)) <= 0.5, pointer
    gallery = json.loads(visit.page.locator("#cards").inner_text())
    assert [{k: v for k, v in card.items() if k not in ("view", "source")} for card in gallery] == content["gallery"]


def test_names_are_never_html(browser: Any, tmp_path: Path) -> None:
    diagnosis = diagnose_results(*from_coco(*nasty_example()), title=NASTY)
    write_page(diagnosis, {}, tmp_path / "diagnosis.html")
    visit = Visit(browser, tmp_path / "diagnosis.html")
    assert visit.complaints == []
    assert visit.page.locator("h1").inner_text() == NASTY
    assert visit.page.locator("tbody th", has_text=NASTY).count() == 2
    assert visit.page.locator("#selected-title").inner_text() == f"{NASTY} in {NASTY}.jpg"
    visit.page.select_option("#class", NASTY)
    assert len(visit.cards()) == 1
    assert visit.page.locator("#canvas image").count() == 0  # no image: an outline
    assert visit.page.locator("#canvas rect.box").count() == 3
    visit.context.close()


@pytest.mark.parametrize("part", ["annotations", "results", "everything"])
def test_a_page_about_nothing(browser: Any, tmp_path: Path, part: str) -> None:
    ground_truth, results = nasty_example()
    if part != "results":
        ground_truth["annotations"] = []
    if part != "annotations":
        results = []
    write_page(diagnose_results(*from_coco(ground_truth, results), title="nothing"), {}, tmp_path / "diagnosis.html")
    visit = Visit(browser, tmp_path / "diagnosis.html")
    assert visit.complaints == []
    assert visit.page.locator("dl.headline dd").first.inner_text() in ("–", "0.0")
    visit.context.close()
