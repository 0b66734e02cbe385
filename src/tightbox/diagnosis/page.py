"""A diagnosis as one HTML file that needs nothing but a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from tightbox.diagnosis.crops import crop_images
from tightbox.diagnosis.kinds import KINDS
from tightbox.diagnosis.numbers import Diagnosis
from tightbox.diagnosis.plots import Plot, draw_plots
from tightbox.diagnosis.sentences import STAGES, measure_sentences, sentences
from tightbox.evaluation.average_precision import SIZES
from tightbox.files import write_text
from tightbox.version import __version__

Column = tuple[str, str, int, str]  # heading, place in the JSON file (below that of the row, if any), factor, format

GROUP_COLUMNS: tuple[Column, ...] = (
    ("objects", "objects", 1, ",d"),
    ("found", "found", 100, ".0f"),
    ("mean IoU", "mean_iou", 1, ".3f"),
    ("best IoU", "best_iou", 1, ".3f"),
)
LRP_COLUMNS: tuple[Column, ...] = (
    ("oLRP", "lrp/error", 100, ".1f"),
    ("location", "lrp/localisation", 100, ".1f"),
    ("false", "lrp/false_positives", 100, ".1f"),
    ("missed", "lrp/false_negatives", 100, ".1f"),
    ("at score", "lrp/threshold", 1, ".2f"),
)
NONE = "–"  # in place of a figure that no box could tell
MEASURES = {"d_ece": "D-ECE", "laece": "LaECE", "laece0": "LaECE₀", "laace0": "LaACE₀", "oce": "OCE"}


def write_page(
    diagnosis: Diagnosis,
    images: Mapping[int, Path],
    path: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the page, whole or not at all.

    Args:
        diagnosis: what it shows.
        images: the files of the images by their ids; those that cannot be opened are shown as outlines.
        path: of the HTML file.
        progress: called with the number of images cut out and their total.

    Raises:
        UserError: if the extra `viz` is missing, or the disk refuses.
    """
    write_text(path, render(diagnosis, images, progress))


def render(diagnosis: Diagnosis, images: Mapping[int, Path], progress: Callable[[int, int], None] | None = None) -> str:
    """The HTML text of the page."""
    figures = _Figures(diagnosis)
    plots, said = draw_plots(diagnosis), sentences(diagnosis)
    crops = crop_images(diagnosis.gallery, images, progress)
    cards = [
        asdict(card) | {"view": crop.view, "source": crop.source}
        for card, crop in zip(diagnosis.gallery, crops, strict=True)
    ]
    notes = list(diagnosis.notes)
    if diagnosis.gallery and not any(crop.source for crop in crops):
        notes.append(
            "The images themselves were not found, so boxes are shown as outlines; --images says where they are."
        )
    facts = f"{diagnosis.images:,} images, {diagnosis.objects:,} objects, {diagnosis.detections:,} detections"
    return Template(_file("page.html")).substitute(
        title=escape(diagnosis.title),
        style=_file("page.css"),
        script=_file("page.js"),
        version=__version__,
        facts=facts,
        notes="\n".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        headline=_headline(diagnosis, figures),
        sections="\n".join(_sections(diagnosis, figures, plots, said)),
        better=escape(said["better"]),
        # In a script element nothing is special but "<", which may end it.
        cards=json.dumps(cards, allow_nan=False).replace("<", "\\u003c"),
    )


class _Figures:
    """Numbers of the page, each with its place in the JSON file, so that both can be compared."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self._content = diagnosis.to_json()

    def value(self, pointer: str) -> Any:
        """What is there by RFC 6901, None if nothing is."""
        value: Any = self._content
        for part in pointer.split("/")[1:]:
            value = None if value is None else value.get(part.replace("~1", "/").replace("~0", "~"))
        return value

    def __call__(self, pointer: str, factor: int = 100, form: str = ".1f") -> str:
        """The number as HTML; `NONE` for None."""
        value = self.value(pointer)
        if value is None:
            return NONE
        text = format(factor * value, form).replace("-", "−")
        return f'<data data-at="{escape(pointer)}" value="{value!r}">{text}</data>'


def _headline(diagnosis: Diagnosis, figures: _Figures) -> str:
    rows: list[Column] = [
        ("AP", "/coco/ap", 100, ".1f"),
        ("AP at IoU 0.50", "/coco/ap50", 100, ".1f"),
        ("AP at IoU 0.75", "/coco/ap75", 100, ".1f"),
        ("AP at IoU 0.90", "/coco/ap90", 100, ".1f"),
        ("optimal LRP, less is better", "/lrp/error", 100, ".1f"),
        ("mean IoU of found objects", "/all/mean_iou", 1, ".3f"),
        ("error of the score (LaECE)", "/laece/0.1", 1, ".3f"),
        ("rank correlation of score and IoU", "/score/correlation/spearman", 1, ".2f"),
    ]
    if diagnosis.predicted_iou is not None:
        rows.append(("error of the predicted IoU", "/predicted_iou/error", 1, ".3f"))
    return "\n".join(
        f"<div><dt>{name}</dt><dd>{figures(at, factor, form)}</dd></div>" for name, at, factor, form in rows
    )


def _sections(diagnosis: Diagnosis, figures: _Figures, plots: Mapping[str, Plot], said: Mapping[str, str]) -> list[str]:
    return [
        _section(
            "lost",
            "Where AP is lost",
            said["lost"],
            _plots(plots, "lost", "ladder") + _miss_breakdown(diagnosis, figures),
        ),
        _section("tight", "How tight the boxes are", said["tight"], _plots(plots, "curve", "tightness")),
        _section("kinds", "Kinds of mistakes", said["kinds"], _plots(plots, "kinds", "lrp") + _parts_of_lrp(figures)),
        _section(
            "reliability",
            "How reliable the numbers are",
            said["reliability"],
            _plots(plots, "score-table", "score-points", "iou-table", "iou-points")
            + _correlations(diagnosis, figures)
            + _measures(diagnosis, figures),
        ),
        _section("groups", "By size and by class", said["groups"], _groups(diagnosis, figures)),
    ]


def _section(name: str, title: str, lead: str, content: str) -> str:
    return (
        f'<section id="{name}" class="part" aria-labelledby="{name}-heading">\n'
        f'<div><h2 id="{name}-heading">{title}</h2>\n<p class="lead">{escape(lead)}</p></div>\n'
        f'<div class="see">{content}</div>\n</section>'
    )


def _plots(plots: Mapping[str, Plot], *names: str) -> str:
    drawn = [plots[name] for name in names if name in plots]
    inner = "\n".join(f"<figure><figcaption>{escape(p.caption)}</figcaption>\n{p.svg}</figure>" for p in drawn)
    return f'<div class="plots">\n{inner}\n</div>'


def _miss_breakdown(diagnosis: Diagnosis, figures: _Figures) -> str:
    if diagnosis.miss_breakdown is None:
        return ""
    return (
        "<p>Of the objects that no box of their class is on, "
        f"{figures('/miss_breakdown/suppressed', 1, 'd')} had a good box that was suppressed, "
        f"{figures('/miss_breakdown/scored_low', 1, 'd')} had one that scored below the threshold, and "
        f"{figures('/miss_breakdown/no_box', 1, 'd')} had none.</p>"
    )


def _parts_of_lrp(figures: _Figures) -> str:
    return (
        f"<p>Optimal LRP is {figures('/lrp/error')}: at the score threshold that suits each class best, found boxes "
        f"miss {figures('/lrp/localisation')} points of IoU, "
        f"{figures('/lrp/false_positives')}% of the boxes are false positives, and "
        f"{figures('/lrp/false_negatives')}% of the objects are missed.</p>"
    )


def _correlations(diagnosis: Diagnosis, figures: _Figures) -> str:
    places = {"score, final boxes": "/score/correlation"}
    if diagnosis.predicted_iou is not None:
        places["predicted IoU, final boxes"] = "/predicted_iou/correlation"
    places |= {f"{name}, before suppression": f"/before_suppression/{name}" for name in diagnosis.before_suppression}
    columns: list[Column] = [
        ("Pearson", "pearson", 1, ".3f"),
        ("Spearman", "spearman", 1, ".3f"),
        ("boxes", "pairs", 1, ",d"),
    ]
    return _table("Correlation with the true IoU, of boxes above IoU 0.5", columns, places, figures)


def _measures(diagnosis: Diagnosis, figures: _Figures) -> str:
    """The published calibration measures, with a sentence each."""
    rows = [
        f"<dt>{MEASURES[name]} {figures(f'/measures/{name}', 1, '.3f')}</dt><dd>{escape(sentence)}</dd>"
        for name, sentence in measure_sentences(diagnosis.measures).items()
    ]
    listed = "\n".join(rows)
    return (
        "<h3>Calibration of the score by published measures, less is better</h3>\n"
        f'<dl class="definitions">\n{listed}\n</dl>'
        if rows
        else ""
    )


def _groups(diagnosis: Diagnosis, figures: _Figures) -> str:
    whole = ("/all", "/aps/ap", "ap")
    sizes = {size: (f"/per_size/{size}", f"/aps/by_size/{size}", f"by_size/{size}") for size in SIZES}
    classes, mistakes = {}, {}
    for name in diagnosis.per_class:
        key = _pointer(name)
        classes[name] = f"/per_class/{key}/group", f"/aps/by_class/{key}", f"by_class/{key}"
        mistakes[name] = f"/per_class/{key}"
    columns = [*LRP_COLUMNS, ("LaECE", "laece", 1, ".3f")]
    columns += [(names.column, f"errors/gain/{kind}", 100, ".1f") for kind, names in KINDS.items()]
    above = [("", 1), ("optimal LRP and its parts", len(LRP_COLUMNS)), ("score", 1), ("AP50 lost to", len(KINDS))]
    return "\n".join(
        [
            _ap_table("By size", {"all sizes": whole} | sizes, diagnosis, figures),
            _ap_table("By class", {"all classes": whole} | classes, diagnosis, figures),
            _table("Mistakes by class", columns, mistakes, figures, above),
        ]
    )


def _ap_table(caption: str, rows: Mapping[str, tuple[str, str, str]], diagnosis: Diagnosis, figures: _Figures) -> str:
    """Boxes and AP of each row, which says where its group and its AP are, and where its part of every loss is."""
    stages = [name for name in STAGES if getattr(diagnosis.lost, name) is not None]
    lines: list[str] = []
    for name, (group, ap, part) in rows.items():
        cells = [figures(f"{group}/{where}", factor, form) for _, where, factor, form in GROUP_COLUMNS]
        cells += [figures(ap), *(figures(f"/lost/{stage}/{part}") for stage in stages)]
        lines.append(_row(name, cells, total=not lines))
    above = [("", 1), ("boxes", len(GROUP_COLUMNS)), ("", 1), ("AP lost to", len(stages))]
    return _frame(caption, [*(head for head, *_ in GROUP_COLUMNS), "AP", *stages], lines, above)


def _table(
    caption: str,
    columns: Sequence[Column],
    rows: Mapping[str, str],
    figures: _Figures,
    above: Sequence[tuple[str, int]] = (),
) -> str:
    lines = [
        _row(name, [figures(f"{place}/{where}", factor, form) for _, where, factor, form in columns])
        for name, place in rows.items()
    ]
    return _frame(caption, [head for head, *_ in columns], lines, above)


def _row(name: str, cells: Sequence[str], *, total: bool = False) -> str:
    kind = ' class="total"' if total else ""
    inner = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{kind}><th scope="row">{escape(name)}</th>{inner}</tr>'


def _frame(caption: str, heads: Sequence[str], lines: Sequence[str], above: Sequence[tuple[str, int]]) -> str:
    """A table that scrolls sideways by itself where the page is too narrow, and a hint that the script shows then."""
    groups = "".join(f'<th class="group" colspan="{span}">{name}</th>' for name, span in above)
    head = f"<tr>{groups}</tr>" if above else ""
    head += '<tr><th scope="col"><span class="hidden">name</span></th>'
    head += "".join(f'<th scope="col">{name}</th>' for name in heads) + "</tr>"
    body = "\n".join(lines)
    return (
        '<p class="more-columns" hidden>scroll sideways for more columns →</p>\n'
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">'
        f"<table><caption><span>{caption}</span></caption>"
        f"<thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _pointer(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _file(name: str) -> str:
    return files("tightbox.diagnosis").joinpath(name).read_text(encoding="utf-8")
