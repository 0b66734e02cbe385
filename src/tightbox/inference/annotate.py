"""Images and videos in, annotated copies and rows of a COCO result file out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tightbox.draw import draw_boxes
from tightbox.errors import missing_extra
from tightbox.files import atomic_path
from tightbox.images import UnreadableImage, open_image
from tightbox.models import Detector


class Annotator:
    """Runs a detector over files, one after the other.

    Args:
        model: the detector.
        threshold: boxes with a lower score are left out.
        min_iou: boxes with a lower predicted IoU are left out.

    Attributes:
        rows: of the result file so far; every image and every frame has an `image_id` of its own, counted from 1, and
            `category_id` counts from 1 as well.
    """

    def __init__(self, model: Detector, threshold: float, min_iou: float | None = None) -> None:
        self.model = model
        self.threshold = threshold
        self.min_iou = min_iou
        self.rows: list[dict[str, Any]] = []
        self._images = 0

    def image(self, path: Path, target: Path) -> None:
        """Write the annotated copy of an image as a JPEG.

        Raises:
            UnreadableImage: if it cannot be read.
        """
        drawn = self._annotate(open_image(path), file_name=str(path))
        with atomic_path(target) as temporary:
            drawn.save(temporary, format="JPEG", quality=92)

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
                    number = -1
                    for number, frame in enumerate(video.decode(source)):
                        image = frame.to_image()
                        if number == 0:  # H.264 takes even sides only, and they are fixed by the first frame
                            stream.width, stream.height = image.width // 2 * 2, image.height // 2 * 2
                        drawn = self._annotate(image, file_name=str(path), frame=number)
                        drawn = drawn.crop((0, 0, stream.width, stream.height))  # without the legend of a crowd
                        written.mux(stream.encode(av.VideoFrame.from_image(drawn)))
                        progress(number + 1, source.frames)
                    if number < 0:
                        raise UnreadableImage(path, "not one of its frames can be decoded")
                    written.mux(stream.encode())
        except (av.error.FFmpegError, IndexError) as error:
            del self.rows[rows:]
            self._images = images
            raise UnreadableImage(path, f"it is not a video that can be decoded ({error})") from error

    def _annotate(self, image: Image.Image, **where: Any) -> Image.Image:
        found = self.model.predict(image)
        found = found[found.scores >= self.threshold]
        if self.min_iou is not None:
            found = found.tighter_than(self.min_iou)
        names = self.model.class_names
        self._images += 1
        for row in found.to_coco(self._images, range(1, len(names) + 1)):
            self.rows.append(row | where | {"class": names[row["category_id"] - 1]})
        return draw_boxes(image, found.boxes, found.labels, names, scores=found.scores, ious=found.ious)
