"""Working off the parts of a job."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tightbox.draw import draw_detections
from tightbox.images import write_image
from tightbox.inference.files import DECODERS, Selection, detect_files
from tightbox.inference.jobs.job import Part
from tightbox.inference.jobs.parts import Row, read_rows, row_of, write_rows
from tightbox.models import Detector


@dataclass(frozen=True)
class Work:
    """How the images of a part become its file; it can be sent to another process.

    Attributes:
        root: where the names of images start.
        select: which detections are reported.
        batch_size: images that the network sees together.
        workers: threads that decode ahead.
        drawn: folder of the annotated copies; None writes none.
    """

    root: Path
    select: Selection
    batch_size: int = 8
    workers: int = DECODERS
    drawn: Path | None = None

    def run(self, model: Detector, part: Part, target: Path, progress: Callable[[], None] = lambda: None) -> None:
        """Detect in the images of a part, and write its file.

        Args:
            model: on its device.
            part: what to do.
            target: the file.
            progress: called after each image.

        Raises:
            UserError: if the disk refuses.
        """
        _remove_halves(target)
        rows: list[Row] = []
        paths, keep = (self.root / name for name in part.names), self.drawn is not None
        results = detect_files(model, paths, batch_size=self.batch_size, workers=self.workers, keep_images=keep)
        for offset, (name, result) in enumerate(zip(part.names, results, strict=True)):
            selected = replace(result, found=self.select(result.found))
            rows.append(row_of(part.start + offset, name, selected, model.class_names))
            if self.drawn is not None and result.image is not None:
                drawn = draw_detections(result.image, selected.found, model.class_names)
                # The whole name and not its stem, as a.png may lie beside a.jpg; and none leads out of the folder.
                inside = name.lstrip("/").replace("../", "__/")
                write_image(self.drawn / f"{inside}.jpg", drawn)
            progress()
        write_rows(target, rows)


def failures_in(parts: Iterable[Path]) -> Iterator[str]:
    """A sentence on each image that failed in finished parts.

    Raises:
        UserError: if a part is damaged.
    """
    for path in parts:
        for row in read_rows(path, ("path", "error")):
            if row["error"] is not None:
                yield f"{row['path']}: {row['error']}"


def _remove_halves(target: Path) -> None:
    """What a process that was killed while writing this part left behind; nobody else writes it."""
    for half in target.parent.glob(f".{target.name}.*.tmp"):
        with suppress(OSError):
            half.unlink()
