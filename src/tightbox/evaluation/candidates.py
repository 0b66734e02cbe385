"""Candidates of a whole data set, kept on disk, so that ranking and suppression can be studied without the network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import tightbox
from tightbox.checkpoint import WEIGHTS
from tightbox.data.dataset import DetectionDataset, evaluation_loader
from tightbox.data.records import DetectionData
from tightbox.files import atomic_path, write_json
from tightbox.models import Detector
from tightbox.structures import Candidates, Detections, Targets

IMAGES_A_FILE = 64
INDEX = "index.json"


@dataclass(frozen=True, eq=False)
class ImageCandidates:
    """What a detector considers in one image.

    Attributes:
        index: of the record in its data set.
        candidates: in pixels of the resized image.
        size: (height, width) of that.
        matched: (K,) index of the object that each candidate learns, or -1.
        targets: those objects, in the resized image.
    """

    index: int
    candidates: Candidates
    size: tuple[int, int]
    matched: Tensor
    targets: Targets


@torch.inference_mode()
def iterate_candidates(
    model: Detector,
    data: DetectionData,
    *,
    assigned: bool = False,
    batch_size: int = 8,
    workers: int = 0,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[ImageCandidates]:
    """Candidates of every record, on the CPU.

    Args:
        model: used in evaluation mode.
        data: the records.
        assigned: with the objects they learn, and with every candidate that learns one; otherwise `matched` is all -1.
        batch_size: images at a time.
        workers: processes that load images.
        skip_unreadable: take images that cannot be read for grey ones, instead of stopping.
        progress: called with the number of images done and their total.
    """
    model.eval()
    dataset = DetectionDataset(data, model.preprocess, skip_unreadable=skip_unreadable)
    device = next(model.parameters()).device
    done = 0
    for images, targets, indices in evaluation_loader(dataset, range(len(dataset)), batch_size, workers):
        given = [target.to(device) for target in targets] if assigned else None
        found = model.assigned_candidates(images.to(device), given)
        for index, size, target, (candidates, matched) in zip(indices, images.sizes, targets, found, strict=True):
            yield ImageCandidates(index, candidates.to("cpu"), size, matched.cpu(), target)
        done += len(indices)
        if progress is not None:
            progress(done, len(dataset))


def cache_candidates(
    model: Detector,
    checkpoint: Path,
    data: DetectionData,
    *,
    batch_size: int = 8,
    workers: int = 0,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder in `checkpoint/candidates` with the candidates of every record, for `read_candidates`.

    The network runs only if they are not there yet for the same weights, options and images. Those of other weights,
    which the checkpoint had before, are removed.

    Raises:
        UserError: if an image cannot be read or the disk refuses.
    """
    weights, choices = _fingerprints(model, checkpoint, data)
    folder = checkpoint / "candidates" / f"{weights}-{choices}"
    if not (folder / INDEX).is_file():
        others = [path for path in folder.parent.glob("*") if not path.name.startswith(f"{weights}-")]
        for path in (folder, *others):  # the folder itself is there if a run was cut off
            shutil.rmtree(path, ignore_errors=True)
        found = iterate_candidates(
            model, data, batch_size=batch_size, workers=workers, skip_unreadable=skip_unreadable, progress=progress
        )
        _write(folder, found)
    return folder


def read_candidates(folder: Path) -> Iterator[tuple[int, Candidates, tuple[int, int]]]:
    """Index, candidates and resized (height, width) of every record, from a folder of `cache_candidates`."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for file, images in enumerate(index):
        tensors = safetensors.torch.load_file(folder / f"{file:05d}.safetensors")
        if "ious" in tensors and len(tensors["ious"]) == 0:
            tensors["ious"] = tensors["class_scores"]
        together, start = Candidates(**tensors), 0
        for image in images:
            rows = slice(start, start + image["count"])
            yield image["index"], together[rows], tuple(image["size"])
            start += image["count"]


def select_all(
    candidates: Iterator[tuple[int, Candidates, tuple[int, int]]],
    data: DetectionData,
    select: Callable[[Candidates], Detections],
) -> dict[int, Detections]:
    """What `select` makes of every record's candidates, by its index, in pixels of the original images."""
    found = {}
    for index, image, size in candidates:
        record = data.records[index]
        found[index] = select(image).resized(size, (record.height, record.width))
    return dict(sorted(found.items()))


def _write(folder: Path, images: Iterator[ImageCandidates]) -> None:
    index: list[list[dict[str, object]]] = []
    waiting: list[ImageCandidates] = []

    def flush() -> None:
        tensors: dict[str, Tensor] = {}
        for field in fields(Candidates):
            values = [getattr(image.candidates, field.name) for image in waiting]
            if values[0] is None:
                continue
            if field.name == "ious" and values[0] is waiting[0].candidates.class_scores:
                tensors["ious"] = torch.zeros(0)  # VFNet's class scores are its estimate: once is enough
            else:
                tensors[field.name] = torch.cat(values).contiguous()
        with atomic_path(folder / f"{len(index):05d}.safetensors") as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors))
        index.append([{"index": i.index, "size": i.size, "count": len(i.candidates)} for i in waiting])
        waiting.clear()

    for image in images:
        waiting.append(image)
        if len(waiting) == IMAGES_A_FILE:
            flush()
    if waiting:
        flush()
    write_json(folder / INDEX, index)  # last: without it the folder counts as unfinished


def _fingerprints(model: Detector, checkpoint: Path, data: DetectionData) -> tuple[str, str]:
    """Of the weights; and of the options and the images."""
    images = []
    for record in data.records:
        state = record.path.stat() if record.path.exists() else None
        images.append([str(record.path), record.width, record.height, state and (state.st_size, state.st_mtime_ns)])
    choices: list[object] = [tightbox.__version__, model.name, asdict(model.options), asdict(model.backbone.options)]
    choices += [asdict(model.preprocess), images]
    weights = hashlib.sha256((checkpoint / WEIGHTS).read_bytes())
    return weights.hexdigest()[:16], hashlib.sha256(json.dumps(choices).encode()).hexdigest()[:16]
