"""Images and videos in; annotated copies, crops and results out."""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from PIL import Image

from tightbox.draw import draw_detections
from tightbox.errors import import_extra
from tightbox.files import atomic_path
from tightbox.images import UnreadableImage, write_image
from tightbox.inference.files import FileResult, Selection, detect_files
from tightbox.inference.formats import ImageResult
from tightbox.models import Detector
from tightbox.progress import Progress
from tightbox.structures import Detections


@dataclass(eq=False)
class Annotator:
    """Runs a detector over files, and remembers what it found.

    Attributes:
        model: the detector.
        select: which detections are reported.
        out: folder of the annotated copies and of the crops.
        batch_size: images or frames that the network sees together.
        draw: whether annotated copies of images are written.
        crops: whether each box is written as an image of its own, in `crops/CLASS`.
        results: of every image and every frame so far.
    """

    model: Detector
    select: Selection
    out: Path
    batch_size: int = 8
    draw: bool = True
    crops: bool = False
    results: list[ImageResult] = field(default_factory=list, init=False)

    def images(self, files: Iterable[tuple[Path, Path]]) -> Iterator[UnreadableImage | None]:
        """Detect in images, and write what was asked for; the next ones are decoded meanwhile.

        Args:
            files: each image, and the name of its annotated copy, a JPEG.

        Yields:
            For each image why it cannot be read, or None once its files are written.
        """
        files = list(files)
        paths, keep = (path for path, _ in files), self.draw or self.crops
        opened = detect_files(self.model, paths, batch_size=self.batch_size, keep_images=keep)
        for result, (_, name) in zip(opened, files, strict=True):
            if result.error is None:
                found = self._report(result, name)
                if result.image is not None and self.draw:
                    write_image(self.out / name, draw_detections(result.image, found, self.model.class_names))
            yield result.error

    def video(self, path: Path, name: Path, progress: Progress) -> None:
        """Detect in a video, and write its annotated copy as H.264 in MP4, without sound.

        Args:
            path: anything FFmpeg decodes.
            name: of the copy.
            progress: called with the number of frames done and their total, as far as the file says it.

        Raises:
            UnreadableImage: if it is cut off or no video.
            UserError: if PyAV, which reads and writes videos, is not installed.
        """
        av = import_extra("av", "video", "PyAV, which reads videos,")
        before = len(self.results)
        try:
            with av.open(str(path)) as video:
                source = video.streams.video[0]
                # Telephones film sideways and note how to turn the frames.
                frames = (frame.to_image().rotate(frame.rotation, expand=True) for frame in video.decode(source))
                drawn = self._frames(path, name, frames, lambda done: progress(done, source.frames))
                if self.draw:
                    _write_video(self.out / name, drawn, source.average_rate or 25)
                deque(drawn, maxlen=0)  # with no video to write, they are gone through all the same
                if len(self.results) == before:
                    raise UnreadableImage(path, "not one of its frames can be decoded")
        except (av.error.FFmpegError, IndexError) as error:
            del self.results[before:]
            raise UnreadableImage(path, f"it is not a video that can be decoded ({error})") from error

    def _frames(
        self, path: Path, name: Path, frames: Iterator[Image.Image], progress: Callable[[int], None]
    ) -> Iterator[Image.Image]:
        """Each frame with its boxes drawn, if they are to be."""
        for number, (image, found) in enumerate(self._detected(frames)):
            found = self._report(FileResult(path, found, (image.height, image.width), image), name, number)
            if self.draw:
                # Without the legend of a crowd, as all frames of a video have one size.
                yield draw_detections(image, found, self.model.class_names).crop((0, 0, *image.size))
            progress(number + 1)

    def _detected(self, frames: Iterator[Image.Image]) -> Iterator[tuple[Image.Image, Detections]]:
        while batch := list(islice(frames, self.batch_size)):
            yield from zip(batch, self.model.predict(batch, batch_size=self.batch_size), strict=True)

    def _report(self, result: FileResult, name: Path, frame: int | None = None) -> Detections:
        """The selected detections, which are remembered; of each, numbered from the best on, its crop is written."""
        found = self.select(result.found)
        kept = ImageResult(len(self.results) + 1, str(result.path), name, result.size, found, frame)
        self.results.append(kept)
        if result.image is not None and self.crops:
            for number, (box, label) in enumerate(zip(found.boxes.tolist(), found.labels.tolist(), strict=True)):
                folder = self.out / "crops" / _as_file_name(self.model.class_names[label])
                write_image(kept.file(folder, f"_{number}.jpg"), crop(result.image, box))
        return found


def crop(image: Image.Image, box: Iterable[float]) -> Image.Image:
    """The part of the image in a box [x1, y1, x2, y2], rounded outwards to whole pixels: at least one.

    >>> crop(Image.new("RGB", (40, 30)), [3.6, 4.0, 9.2, 10.0]).size
    (7, 6)
    """
    x1, y1, x2, y2 = box
    left, top = (min(max(math.floor(low), 0), side - 1) for low, side in ((x1, image.width), (y1, image.height)))
    right, bottom = max(math.ceil(x2), left + 1), max(math.ceil(y2), top + 1)
    return image.crop((left, top, min(right, image.width), min(bottom, image.height)))


def _as_file_name(class_name: str) -> str:
    """A class's name without what would lead to another folder."""
    return re.sub(r"[^\w .-]", "_", class_name).strip(" .") or "_"


def _write_video(path: Path, frames: Iterator[Image.Image], rate: object) -> None:
    """Write frames of one size as H.264 in MP4; nothing is left if there is none."""
    import av

    first = next(frames, None)
    if first is None:
        return
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as written:
        stream = written.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.width, stream.height = first.width // 2 * 2, first.height // 2 * 2  # H.264 takes even sides only
        for image in chain([first], frames):
            even = image.crop((0, 0, stream.width, stream.height))
            written.mux(stream.encode(av.VideoFrame.from_image(even)))
        written.mux(stream.encode())
