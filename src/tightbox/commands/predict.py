"""Find objects in pictures or a video: annotated pictures and a COCO result file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from tightbox.errors import UserError

if TYPE_CHECKING:
    import torch

    from tightbox.models import Detector

USAGE = "CHECKPOINT SOURCE [SOURCE ...] --out DIR [--score-threshold 0.3]"
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})


def add_arguments(parser: ArgumentParser) -> None:
    """With what, on what, and where to."""
    parser.add_argument("checkpoint", help="folder that `tightbox train` wrote, such as runs/x/best")
    parser.add_argument(
        "source", nargs="+", help="pictures, folders of pictures, patterns such as 'a/*.jpg', or videos"
    )
    parser.add_argument("--out", required=True, help="folder for the annotated pictures and results.json")
    parser.add_argument("--score_threshold", type=float, default=0.3, help="leave out boxes with a lower score")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:1; auto takes a GPU if there is one")


def run(args: Namespace) -> int:
    """Draw every picture; the status is 1 if some of them could not be read."""
    if not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold is {args.score_threshold}; it must be between 0 and 1")
    sources, out = find_sources(args.source), Path(args.out)
    originals = {path.resolve() for path, _ in sources}
    if any((out / name).resolve() in originals for _, name in sources):
        raise UserError(f"--out {out} holds some of the sources, which would be overwritten; choose another folder")

    from tightbox.checkpoint import load
    from tightbox.files import write_json
    from tightbox.images import UnreadableImage
    from tightbox.progress import counting

    model = load(args.checkpoint).to(find_device(args.device))
    rows: list[dict[str, object]] = []
    unreadable = []
    with counting("pictures") as progress:
        for done, (path, name) in enumerate(sources, 1):
            try:
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    rows += predict_video(model, path, out / name, args.score_threshold)
                else:
                    rows += predict_picture(model, path, out / name, args.score_threshold, image_id=done)
            except UnreadableImage as error:
                unreadable.append(error)
                print(f"tightbox: {error}", file=sys.stderr)
            progress(done, len(sources))
    write_json(out / "results.json", rows)
    print(f"{len(rows)} boxes in {len(sources) - len(unreadable)} files; see {out}")
    if unreadable:
        print(f"{len(unreadable)} files could not be read", file=sys.stderr)
    return int(bool(unreadable))


def find_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one.

    Raises:
        UserError: if this machine has no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); choose auto or cpu") from error


def find_sources(given: Sequence[str]) -> list[tuple[Path, Path]]:
    """Every picture or video that the arguments name, with the relative path of its output.

    Raises:
        UserError: if an argument names nothing, or two sources would be written to the same file.
    """
    from tightbox.images import IMAGE_SUFFIXES

    found: dict[Path, Path] = {}
    for text in given:
        path = Path(text).expanduser()
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
            matches = {p: p.relative_to(path) for p in inside}
        elif path.is_file():
            matches = {path: Path(path.name)}
        else:
            import glob

            files = (Path(p) for p in sorted(glob.glob(str(path), recursive=True)))
            matches = {p: Path(p.name) for p in files if p.is_file()}
        if not matches:
            raise UserError(f"there is no picture or video at {text}; give a file, a folder or a pattern in quotes")
        found |= matches
    taken: dict[Path, Path] = {}
    for path, name in found.items():
        output = name.with_suffix(".mp4" if path.suffix.lower() in VIDEO_SUFFIXES else ".jpg")
        if output in taken:
            output = output.with_name(f"{path.stem}_{path.suffix[1:]}_{len(taken)}{output.suffix}")
        taken[output] = path
    return [(path, output) for output, path in taken.items()]


def predict_picture(
    model: Detector, path: Path, target: Path, threshold: float, *, image_id: int
) -> list[dict[str, object]]:
    """Write the annotated picture, and return its rows of the result file."""
    from tightbox.draw import draw_boxes
    from tightbox.files import atomic_path
    from tightbox.images import open_image

    image = open_image(path)
    found = model.predict(image)
    found = found[found.scores >= threshold]
    drawn = draw_boxes(image, found.boxes, found.labels, model.class_names, scores=found.scores, ious=found.ious)
    with atomic_path(target) as temporary:
        drawn.save(temporary, format="JPEG", quality=92)
    rows = found.to_coco(image_id, range(1, len(model.class_names) + 1))
    names = [model.class_names[label] for label in found.labels.tolist()]
    return [row | {"file_name": str(path), "class": name} for row, name in zip(rows, names, strict=True)]


def predict_video(model: Detector, path: Path, target: Path, threshold: float) -> list[dict[str, object]]:
    """Write the annotated video, and return its rows of the result file; `frame` counts from 0."""
    from tightbox.draw import draw_boxes
    from tightbox.errors import missing_extra
    from tightbox.files import atomic_path
    from tightbox.images import UnreadableImage

    try:
        import av
    except ImportError as error:
        raise missing_extra("PyAV, which reads videos,", "video") from error
    rows: list[dict[str, object]] = []
    try:
        with av.open(str(path)) as video, atomic_path(target) as temporary:
            source = video.streams.video[0]
            with av.open(str(temporary), "w", format="mp4") as written:
                stream = written.add_stream("libx264", rate=source.average_rate or 25)
                stream.pix_fmt = "yuv420p"
                frames = 0
                for frame in video.decode(source):
                    image = frame.to_image()
                    if frames == 0:  # H.264 takes even sides only, and they are fixed by the first frame
                        stream.width, stream.height = image.width // 2 * 2, image.height // 2 * 2
                    found = model.predict(image)
                    found = found[found.scores >= threshold]
                    drawn = draw_boxes(
                        image, found.boxes, found.labels, model.class_names, scores=found.scores, ious=found.ious
                    )
                    drawn = drawn.crop((0, 0, stream.width, stream.height))
                    written.mux(stream.encode(av.VideoFrame.from_image(drawn)))
                    names = [model.class_names[label] for label in found.labels.tolist()]
                    for row, name in zip(
                        found.to_coco(frames, range(1, len(model.class_names) + 1)), names, strict=True
                    ):
                        rows.append(row | {"file_name": str(path), "frame": frames, "class": name})
                    frames += 1
                if frames == 0:
                    raise UnreadableImage(path, "not one of its frames can be decoded")
                written.mux(stream.encode())
    except (av.error.FFmpegError, IndexError) as error:
        raise UnreadableImage(path, f"it is not a video that can be decoded ({error})") from error
    return rows
