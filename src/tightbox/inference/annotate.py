"""Images and videos in, annotated copies and rows of a COCO result file out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from tightbox.background import in_background
from tightbox.draw import draw_boxes
from tightbox.errors import missing_extra
from tightbox.files import atomic_path
from tightbox.images import UnreadableImage, open_image
from tightbox.models import Detector
from tightbox.structures import Detections


class Annotator:
    """Runs a detector over files, and remembers what it found.

    Args:
        model: the detector.
        threshold: boxes with a lower score are left out.
        min_iou: boxes with a lower predicted IoU are left out.
        batch_size: images or frames that the network sees together.

    Attributes:
        rows: of the result file so far; every image and every frame has an `image_id` of its own, counted from 1, and
            `category_id` counts from 1 as well.
    """

    def __init__(self, model: Detector, threshold: float, min_iou: float | None = None, batch_size: int = 8) -> None:
        self.model = model
        self.threshold = threshold
        self.min_iou = min_iou
        self.batch_size = batch_size
        self.rows: list[dict[str, Any]] = []
        self._images = 0

    def images(self, files: Iterable[tuple[Path, Path]]) -> Iterator[UnreadableImage | None]:
        """Write annotated copies of images as JPEGs; the next ones are decoded meanwhile.

        Args:
            files: each image, and the file to write.

        Yields:
            For each image why it cannot be read, or None once its copy is written.
        """
        opened = in_background(_open, files, ahead=self.batch_size)
        while chunk := list(islice(opened, self.batch_size)):
            readable = [image for _, _, image in chunk if not isinstance(image, UnreadableImage)]
            detections = iter(self.model.predict(readable, batch_size=self.batch_size))
            for path, target, image in chunk:
                if isinstance(image, UnreadableImage):
                    yield image
                    continue
                drawn = self._annotate(image, next(detections), file_name=str(path))
                whole = BytesIO()  # Pillow, writing itself, takes no notice of a disk that takes half of a file
                drawn.save(whole, format="JPEG", quality=92)
                with atomic_path(target) as temporary:
                    temporary.write_bytes(whole.getbuffer())
                yield None

    def video(self, path: Path, target: Path, progress: Callable[[int, int], None]) -> None:
        """Write the annotated copy of a video as H.264 in MP4, without sound.

        Args:
            path: anything FFmpeg decodes.
            target: the file to write.
            progress: called with the number of frames done and their total, as far as the file says it.

        Raises:
            UnreadableImage: if it is cut off or no video.
            UserError: if PyAV, which reads and writes videos, is not installed.
        """
        try:
            import av
        except ImportError as error:
            raise missing_extra("PyAV, which reads videos,", "video") from error
        rows, images = len(self.rows), self._images
        try:
            with av.open(str(path)) as video, atomic_path(target) as temporary:
                source = video.streams.video[0]
                with av.open(str(temporary), "w", format="mp4") as written:
                    stream = written.add_stream("libx264", rate=source.average_rate or 25)
                    stream.pix_fmt = "yuv420p"
                    frames, done = (frame.to_image() for frame in video.decode(source)), 0
                    while batch := list(islice(frames, self.batch_size)):
                        if done == 0:  # H.264 takes even sides only, and they are fixed by the first frame
                            stream.width, stream.height = batch[0].width // 2 * 2, batch[0].height // 2 * 2
                        for image, detections in zip(batch, self.model.predict(batch), strict=True):
                            drawn = self._annotate(image, detections, file_name=str(path), frame=done)
                            drawn = drawn.crop((0, 0, stream.width, stream.height))  # without the legend of a crowd
                            written.mux(stream.encode(av.VideoFrame.from_image(drawn)))
                            done += 1
                            progress(done, source.frames)
                    if done == 0:
                        raise UnreadableImage(path, "not one of its frames can be decoded")
                    written.mux(stream.encode())
        except (av.error.FFmpegError, IndexError) as error:
            del self.rows[rows:]
            self._images = images
            raise UnreadableImage(path, f"it is not a video that can be decoded ({error})") from error

    def _annotate(self, image: Image.Image, detections: Detections, **where: Any) -> Image.Image:
        """A copy of the image with its boxes, whose rows are noted with `where` they are."""
        found = detections[detections.scores >= self.threshold]
        if self.min_iou is not None:
            found = found.tighter_than(self.min_iou)
        names = self.model.class_names
        self._images += 1
        for row in found.to_coco(self._images, range(1, len(names) + 1)):
            self.rows.append(row | where | {"class": names[row["category_id"] - 1]})
        return draw_boxes(image, found.boxes, found.labels, names, scores=found.scores, ious=found.ious)


def _open(file: tuple[Path, Path]) -> tuple[Path, Path, Image.Image | UnreadableImage]:
    """The image beside the two paths, or why it cannot be read: an exception would end the work on all others."""
    path, target = file
    try:
        return path, target, open_image(path)
    except UnreadableImage as error:
        return path, target, error
