"""Candidates of a whole data set, kept on disk, so that ranking and suppression can be studied without the network."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tightbox.checkpoint import WEIGHTS
from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.files import atomic_path, digest_of, write_json
from tightbox.inference.detect import Batch, How, batches
from tightbox.models import Detector
from tightbox.reading import exists, read_json
from tightbox.structures import Candidates, Detections, Targets
from tightbox.version import __version__

IMAGES_PER_FILE = 64
INDEX = "index.json"


@dataclass(frozen=True, eq=False)
class ImageCandidates:
    """What a detector considers in one image.

    Attributes:
        index: of the record in its data set.
        candidates: in pixels of the resized image.
        size: (height, width) of that.
    """

    index: int
    candidates: Candidates
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class AssignedCandidates(ImageCandidates):
    """The same with the objects they learn; every candidate that learns one is among them.

    Attributes:
        matched: (K,) index of the object that each candidate learns, or -1.
        targets: those objects, in the resized image.
    """

    matched: Tensor
    targets: Targets


@torch.inference_mode()
def iterate_candidates(model: Detector, data: DetectionData, **how: Unpack[How]) -> Iterator[ImageCandidates]:
    """Candidates of every record, on the CPU; the arguments are those of `tightbox.inference.detect.batches`."""
    for images, _, indices in batches(model, data, **how):
        for index, size, candidates in zip(indices, images.sizes, model.candidates(images), strict=True):
            yield ImageCandidates(index, candidates.to("cpu"), size)


@torch.inference_mode()
def iterate_assigned(model: Detector, data: DetectionData, **how: Unpack[How]) -> Iterator[AssignedCandidates]:
    """The same with the objects that candidates learn."""
    for batch in batches(model, data, **how):
        yield from _assigned(model, batch)


@torch.inference_mode()
def iterate_detected(
    model: Detector, data: DetectionData, **how: Unpack[How]
) -> Iterator[tuple[AssignedCandidates, Detections]]:
    """Those of `iterate_assigned`, each with the detections of `detect_data`, from one run of the network."""
    for batch in batches(model, data, **how):
        with _one_forward_pass(model):
            found = batch.in_original(model.detect(batch.images), data)
            assigned = _assigned(model, batch)
        for image, (_, detections) in zip(assigned, found, strict=True):
            yield image, detections


def _assigned(model: Detector, batch: Batch) -> list[AssignedCandidates]:
    images, targets, indices = batch
    assigned = model.assigned_candidates(images, targets)
    return [
        AssignedCandidates(index, candidates.to("cpu"), size, matched.cpu(), target.to("cpu"))
        for index, size, target, (candidates, matched) in zip(indices, images.sizes, targets, assigned, strict=True)
    ]


@contextmanager
def _one_forward_pass(model: Detector) -> Iterator[None]:
    """Within it, the model's raw outputs are computed for the first batch given and kept: give it no other one."""
    network = model.forward
    kept: list[Any] = []

    def forward(pixels: Tensor) -> Any:
        if not kept:
            kept.append(network(pixels))
        return kept[0]

    model.forward = forward  # of this object alone, until it is deleted
    try:
        yield
    finally:
        del model.forward


def cache_candidates(model: Detector, checkpoint: Path, data: DetectionData, **how: Unpack[How]) -> Path:
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
        _write(folder, iterate_candidates(model, data, **how))
    return folder


def read_candidates(folder: Path) -> Iterator[ImageCandidates]:
    """Those of every record, from a folder of `cache_candidates`.

    Raises:
        UserError: if a file of it cannot be read.
    """
    for file, images in enumerate(read_json(folder / INDEX)):
        path = folder / f"{file:05d}.safetensors"
        try:
            tensors = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete {folder}, which is made anew") from error
        if "ious" in tensors and len(tensors["ious"]) == 0:
            tensors["ious"] = tensors["class_scores"]
        together, start = Candidates(**tensors), 0
        for image in images:
            rows = slice(start, start + image["count"])
            yield ImageCandidates(image["index"], together[rows], tuple(image["size"]))
            start += image["count"]


def select_all(
    images: Iterable[ImageCandidates], data: DetectionData, select: Callable[[Candidates], Detections]
) -> dict[int, Detections]:
    """What `select` makes of every record's candidates, by its index, in pixels of the original images."""
    found = {i.index: select(i.candidates).resized(i.size, data.records[i.index].size) for i in images}
    return dict(sorted(found.items()))


def _write(folder: Path, images: Iterator[ImageCandidates]) -> None:
    index: list[list[dict[str, object]]] = []
    while together := list(islice(images, IMAGES_PER_FILE)):
        tensors: dict[str, Tensor] = {}
        for field in fields(Candidates):
            values = [getattr(image.candidates, field.name) for image in together]
            if field.name == "ious" and values[0] is together[0].candidates.class_scores:
                tensors["ious"] = torch.zeros(0)  # VFNet's class scores are its estimate: once is enough
            elif values[0] is not None:
                tensors[field.name] = torch.cat(values).contiguous()
        with atomic_path(folder / f"{len(index):05d}.safetensors") as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors))
        index.append([{"index": i.index, "size": i.size, "count": len(i.candidates)} for i in together])
    write_json(folder / INDEX, index)  # last: without it the folder counts as unfinished


def _fingerprints(model: Detector, checkpoint: Path, data: DetectionData) -> tuple[str, str]:
    """Of the weights; and of the options and the images."""
    images = []
    for record in data.records:
        state = record.path.stat() if exists(record.path) else None
        images.append([str(record.path), record.width, record.height, state and (state.st_size, state.st_mtime_ns)])
    choices = [__version__, model.name, *map(asdict, (model.options, model.backbone.options, model.preprocess)), images]
    return digest_of(checkpoint / WEIGHTS)[:16], hashlib.sha256(json.dumps(choices).encode()).hexdigest()[:16]
