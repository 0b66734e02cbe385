"""Reference values and real data sets: the slices that the repository holds, and the folder they were cut from.

`recordings(name)` gives a test every recording there is of one name: the slice always, and the complete file where the
folder `shared` lies beside the checkout. A slice has all that a computation starts from, bit by bit, and of large
results a fixed random choice of values; a test compares with `golden.recorded(name)` and so runs on both.
"""

from __future__ import annotations

import json
import lzma
import zlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from tests.helpers.drawn import Place, decode
from tightbox.structures import Detections

REFERENCES = Path(__file__).parents[1] / "references"
SHARED = Path(__file__).parents[3] / "shared"
# Where data sets lie: the slices, and the complete ones where they are.
DATA_ROOTS = [REFERENCES / "data", *([SHARED / "data"] if SHARED.is_dir() else [])]
DATA_SETS = ["aquarium", "bccd", "coco-mini", "vehicles"]

# Published variants of VFNet, in the order of the file of their layouts.
VARIANTS = [
    "r50", "r50_mdconv", "r101", "r101_mdconv", "x101_32x4d", "x101_32x4d_mdconv", "x101_64x4d", "x101_64x4d_mdconv",
    "r2_101", "r2_101_mdconv",
]  # fmt: skip


class Recorded(NamedTuple):
    """Recorded values of one tensor of a known shape: all, in that shape, or a choice of them, in a row."""

    values: Tensor
    shape: tuple[int, ...]
    chosen: Tensor | None

    def of(self, tensor: Tensor) -> Tensor:
        """The same values of another tensor, which must have the shape of the recorded one; on the CPU."""
        assert tuple(tensor.shape) == self.shape
        return tensor.cpu() if self.chosen is None else tensor.cpu().flatten()[self.chosen]


class Golden:
    """The tensors of one file of reference values, by name; a new copy on every access, so that a test may change it.

    Integers are read as int64 whatever they are kept in.
    """

    metadata: dict[str, str]

    def names(self) -> list[str]:
        raise NotImplementedError

    def recorded(self, name: str) -> Recorded:
        """A tensor, or what is kept of it."""
        raise NotImplementedError

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> Tensor:
        recorded = self.recorded(name)
        if recorded.chosen is not None:
            raise KeyError(f"of {name} only some values are kept; compare with recorded({name!r})")
        return recorded.values.to(torch.get_default_device())  # where the `device` of a test makes all others

    def whole(self, prefix: str = "") -> dict[str, Tensor]:
        """All complete tensors whose names begin so, by the rest of their names."""
        named = {name.removeprefix(prefix): self.recorded(name) for name in self.names() if name.startswith(prefix)}
        device = torch.get_default_device()
        return {name: recorded.values.to(device) for name, recorded in named.items() if recorded.chosen is None}


class Complete(Golden):
    """A safetensors file of the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, "pt") as file:
            self.metadata = file.metadata()

    def __repr__(self) -> str:
        return f"complete {self.path.stem}"

    def names(self) -> list[str]:
        with safe_open(self.path, "pt") as file:
            return list(file.keys())

    def recorded(self, name: str) -> Recorded:
        with safe_open(self.path, "pt") as file:
            values = file.get_tensor(name)
        return Recorded(values, tuple(values.shape), None)


class Slice(Golden):
    """A file that `tests/references/cut.py` wrote; see there for what its entries mean."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path) as file:
            self.arrays: dict[str, NDArray[Any]] = dict(file)
        index = json.loads(str(self.arrays.pop("index")))
        self.metadata = index["metadata"]
        self.shapes: dict[str, list[int]] = index["shapes"]
        self.places: dict[str, list[float]] = index["places"]

    def __repr__(self) -> str:
        return f"slice {self.path.stem}"

    def names(self) -> list[str]:
        return list(self.arrays)

    def recorded(self, name: str) -> Recorded:
        array = self.arrays[name]
        if name not in self.shapes:
            values = torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array.copy())
            return Recorded(values, tuple(values.shape), None)
        shape = tuple(self.shapes[name])
        if name in self.places:
            kind, seed, start, scale = self.places[name]
            place = Place(int(kind), int(seed), int(start), scale)
            return Recorded(torch.from_numpy(decode(array, place, shape)), shape, None)
        chosen = choice(name, int(np.prod(shape)), len(array))
        return Recorded(torch.from_numpy(array.copy()), shape, torch.from_numpy(chosen))


def choice(name: str, count: int, size: int) -> NDArray[np.int64]:
    """Which `size` of the `count` values of a tensor are kept: drawn at random, from its name."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).permutation(count)[:size]
    return np.sort(drawn).astype(np.int64)


@cache
def slice_of(name: str) -> Golden:
    """What the repository holds of one file of reference values."""
    return Slice(REFERENCES / f"{name}.npz")


def recordings(name: str) -> list[Golden]:
    """The slice of one file, and the complete file where there is one."""
    complete = SHARED / "goldens" / f"{name}.safetensors"
    return [slice_of(name), *([Complete(complete)] if complete.is_file() else [])]


def assert_same_detections(ours: Detections, golden: Golden, prefix: str) -> None:
    """Matched as sets, since float noise swaps the order of nearly equal scores."""
    boxes, scores, labels = (golden[f"{prefix}/{name}"] for name in ("bboxes", "scores", "labels"))
    assert len(ours) == len(boxes)
    near = (ours.boxes[:, None] - boxes).abs().amax(-1) < 0.1
    near &= ((ours.scores[:, None] - scores).abs() < 2e-3) & (ours.labels[:, None] == labels)
    assert near.any(0).all()
    assert near.any(1).all()


def layout(variant: str) -> dict[str, Any]:
    """Configuration, number of parameters, and the shape of every entry of a published file."""
    found: dict[str, Any] = _layouts()[variant]
    return found


@cache
def _layouts() -> dict[str, Any]:
    layouts = json.loads(lzma.decompress((REFERENCES / "zoo_layouts.json.xz").read_bytes()))
    assert list(layouts) == VARIANTS
    return dict(layouts)


def published_weights(variant: str, seed: int) -> dict[str, Tensor]:
    """The reference weights of a variant in the names of its file, each tensor drawn from its name."""
    return {name: _weight(name, tuple(shape), seed) for name, shape in layout(variant)["shapes"].items()}


def _weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """One tensor, from a generator of its own; in sizes that keep the activations of the whole network in range."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    limits = {"running_var": (0.8, 1.25), "scale": (0.85, 1.15)}.get(leaf)
    if limits is None and leaf == "weight" and len(shape) == 1:  # of a norm; small at the end of a residual branch
        limits = (0.1, 0.3) if name.split(".")[-2] == "bn3" else (0.7, 1.3)
    if limits is not None:
        return torch.from_numpy(generator.uniform(*limits, shape).astype(np.float32))
    mean, spread = {
        "bbox_head.vfnet_cls.bias": (-3.5, 0.3),
        "bbox_head.vfnet_reg.bias": (-0.7, 0.1),
    }.get(name, (0.0, {"running_mean": 0.1, "bias": 0.05}.get(leaf, 0.0)))
    if not spread:
        gain = 0.3 if "conv_offset" in name else 2.0**0.5
        gain = {
            "bbox_head.vfnet_cls.weight": 0.5,
            "bbox_head.vfnet_reg.weight": 0.5,
            "bbox_head.vfnet_reg_refine.weight": 0.2,
        }.get(name, gain)
        spread = gain / int(np.prod(shape[1:])) ** 0.5
    return torch.from_numpy((generator.standard_normal(shape) * spread + mean).astype(np.float32))


def real_data(root: Path, name: str, into: Path) -> Path:
    """The folder of a real data set; a copy in `into` with stand-ins for the images that a slice lacks.

    A stand-in is grey, of the size that the annotations give, and no two are the same file.
    """
    source = root / name
    rows = [row for path in source.glob("*.json") for row in json.loads(path.read_bytes())["images"]]
    missing = [row for row in rows if not (source / "images" / row["file_name"]).exists()]
    if not missing:
        return source
    images = into / name / "images"
    images.mkdir(parents=True)
    for path in (*source.glob("*.json"), *source.glob("images/*")):
        (into / path.relative_to(root)).symlink_to(path)
    for row in missing:
        image = Image.new("L", (row["width"], row["height"]), 128)
        image.save(images / row["file_name"], comment=row["file_name"])
    return into / name
