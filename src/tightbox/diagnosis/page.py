"""A diagnosis as one HTML file that needs nothing but a browser."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tightbox.diagnosis.crops import crop_images
from tightbox.diagnosis.numbers import Diagnosis
from tightbox.diagnosis.plots import draw_plots
from tightbox.diagnosis.sentences import KINDS, sentences
from tightbox.files import write_text
from tightbox.progress import Progress, silent
from tightbox.version import __version__

NONE = "–"  # in place of a figure that no box could tell


def write_page(diagnosis: Diagnosis, images: Mapping[int, Path], path: Path, progress: Progress = silent) -> None:
    """Write the page, whole or not at all.

    Args:
        diagnosis: what it shows.
        images: the files of the images by their ids; those that cannot be opened are shown as outlines.
        path: of the HTML file.
        progress: called with the number of images cut out and their total.

    Raises:
        UserError: if the extra `viz` is missing, or the disk refuses.
    """
    crops = crop_images(diagnosis.gallery, images, progress)
    content = diagnosis.to_json()
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = templates.get_template("page.html").render(
        diagnosis=content,
        figure=partial(_figure, content),
        pointer=_pointer,
        said=sentences(diagnosis),
        plots=draw_plots(diagnosis),
        stages=[name for name, aps in diagnosis.lost.items() if aps is not None],
        kinds=KINDS,
        cards=[card | asdict(crop) for card, crop in zip(content["gallery"], crops, strict=True)],
        version=__version__,
    )
    write_text(path, page)


def _figure(content: Mapping[str, Any], pointer: str, factor: int = 100, form: str = ".1f") -> str:
    """A number of the page with its place in the JSON file (RFC 6901), so that both can be compared."""
    value: Any = content
    for part in pointer.split("/")[1:]:
        value = None if value is None else value.get(part.replace("~1", "/").replace("~0", "~"))
    if value is None:
        return NONE
    shown = format(factor * value, form).replace("-", "−")
    return Markup('<data data-at="{}" value="{!r}">{}</data>').format(pointer, value, shown)


def _pointer(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
