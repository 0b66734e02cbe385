"""Cuts the reference values and data sets that the tests need out of the folder that holds all of them.

    python tests/references/cut.py SHARED            writes the slices anew
    python tests/references/cut.py --check SHARED    says whether they are what would be written; writes nothing

A slice of a safetensors file is an .npz of arrays of the same names, integers in the smallest type, and of `index`,
which is JSON: the file's metadata; `places` of tensors that PyTorch's generator drew, of which the array says what
rounding changed (`tests/helpers/drawn.py`); and `shapes` of those and of tensors of which the array is a random choice
of values (`choice` in `tests/helpers/references.py`). Nothing is rounded anywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import lzma
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers.drawn import OCTAVES, Place, decode, encode, find
from tests.helpers.references import DATA_SETS, Slice, choice, layout, published_weights

HERE = Path(__file__).parent
Arrays = dict[str, NDArray[Any]]

NAMES = ("r50", "r50_mdconv", "x101_32x4d", "r2_101_mdconv")
LOSSES = ("giou", "iou_log", "iou_linear", "diou", "ciou")
GENERATOR = {"weights": 0, "image": 1000, "published image": 9000, "dcn": 5000}  # seeds of the recording programs
WORDS = 2_400_000  # of the stream that the weights take
IMAGES = 60  # of a validation set
PHOTOGRAPHS = 6  # of BCCD's training set, whose files are kept; the other sets keep annotations alone


class Kept:
    """What is kept of one file."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self.shapes: dict[str, list[int]] = {}
        self.places: dict[str, list[float]] = {}

    def whole(self, name: str, array: NDArray[Any]) -> None:
        if array.dtype.kind == "i":
            smallest = [np.int8, np.int16, np.int32, np.int64]
            array = array.astype(next(kind for kind in smallest if np.array_equal(array.astype(kind), array)))
        self.arrays[name] = array

    def sample(self, name: str, array: NDArray[Any], size: int) -> None:
        """`size` values of a tensor; all of them, if it has no more."""
        if array.size <= size:
            return self.whole(name, array)
        self.arrays[name] = array.ravel()[choice(name, array.size, size)]
        self.shapes[name] = list(array.shape)
        return None

    def drawn(self, name: str, array: NDArray[Any], place: Place | None) -> None:
        """A complete tensor by its place in a generator's stream; as it is, if it has none."""
        if place is None or array.dtype != np.float32:
            return self.whole(name, array)
        rest = encode(array, place)
        if not np.array_equal(decode(rest, place, array.shape).view(np.int32), array.view(np.int32)):
            raise ValueError(f"{name} is not what is read again")
        self.arrays[name] = rest
        self.shapes[name], self.places[name] = list(array.shape), list(place)
        return None

    def write(self, path: Path, metadata: dict[str, str]) -> None:
        index = {"metadata": metadata, "shapes": self.shapes, "places": self.places}
        text = np.array(json.dumps(index, sort_keys=True))
        arrays: dict[str, Any] = dict(sorted(self.arrays.items()))
        np.savez_compressed(path, index=text, allow_pickle=False, **arrays)


def tiny_weights(kept: Kept, tensors: Arrays) -> None:
    for name, array in tensors.items():
        kept.drawn(name, array, find(array, GENERATOR["weights"], WORDS) if array.ndim == 4 else None)


def tiny_io(kept: Kept, tensors: Arrays) -> None:
    sizes = {"raw/cls_score": 2000, "raw/bbox_pred_refine": 2000, "grad/full": 128}
    levels = range(5)
    positive = np.concatenate([tensors[f"targets/labels_{level}"] for level in levels]) < 20
    distances = np.concatenate([tensors[f"targets/bbox_targets_{level}"] for level in levels])
    kept.whole("targets/positives", distances[positive])  # of the other points they mean nothing
    for name, array in tensors.items():
        size = next((size for prefix, size in sizes.items() if name.startswith(prefix)), None)
        if name == "input/image":
            kept.drawn(name, array, Place(OCTAVES, GENERATOR["image"], 0, 1))
        elif name.startswith(("points/", "targets/bbox_")):
            continue  # a regular grid; see above, and ones and zeros that say the same
        elif size is None:
            kept.whole(name, array)
        else:
            kept.sample(name, array, size)


def tiny_features(kept: Kept, tensors: Arrays) -> None:
    for name, array in tensors.items():
        kept.sample(name, array, 2000)


def published(kept: Kept, tensors: Arrays) -> None:
    """One of four variants; the image, which all have, is kept with the first."""
    for name, array in tensors.items():
        if name == "input/image":
            kept.drawn(name, array, Place(OCTAVES, GENERATOR["published image"], 0, 1))
        elif name.startswith("raw/"):
            kept.sample(name, array, 1000)
        else:
            kept.whole(name, array)


def losses(kept: Kept, tensors: Arrays) -> None:
    for name, array in tensors.items():
        family, _, kind = name.partition("/")
        inputs = name in ("vfl/pred", "vfl/target", "focal/labels") or name.endswith("/avg_factor75")
        if inputs or (family in (*LOSSES, "boxes", "edge") and "weight" not in kind and "factor" not in kind):
            kept.whole(name, array)
        elif family in ("vfl", "focal") and kind != "weight" and "weighted_" not in kind:
            kept.sample(name, array, 1000)


def everything(kept: Kept, tensors: Arrays) -> None:
    for name, array in tensors.items():
        kept.whole(name, array)


def star(kept: Kept, tensors: Arrays) -> None:
    """100 locations of every stride: nothing that is computed at one looks at another."""
    for name, array in tensors.items():
        stride = name.partition("/")[0]
        rows = np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])
        rows = rows[choice(stride, len(rows), min(100, len(rows)))]
        kept.whole(name, np.ascontiguousarray(rows.T)[None, :, None])


def dcn(kept: Kept, tensors: Arrays) -> None:
    for name, array in tensors.items():
        leaf = name.rsplit("/", 1)[-1]
        if leaf == "y" or leaf.startswith("grad_"):
            kept.sample(name, array, 1000)
        else:
            kept.drawn(name, array, find(array, GENERATOR["dcn"], 200_000))


CUTS: dict[str, Callable[[Kept, Arrays], None]] = {
    "vfnet_tiny_weights_seed0": tiny_weights,
    "vfnet_tiny_io_seed0": tiny_io,
    "vfnet_tiny_feats_seed0": tiny_features,
    **{f"vfnet_{variant}_names0": published for variant in NAMES},
    "losses_seed0": losses,
    "atss_seed0": everything,
    "nms_seed0": everything,
    "star_seed0": star,
    "dcn_seed0": dcn,
}


def cut_goldens(source: Path, out: Path) -> None:
    images = []
    for name, cut in CUTS.items():
        path = source / f"{name}.safetensors"
        tensors = load_file(path)
        if cut is published:
            images.append(tensors["input/image"])
            if len(images) > 1 and not np.array_equal(tensors.pop("input/image"), images[0]):
                raise ValueError(f"{path} has an image of its own")
        kept = Kept()
        cut(kept, tensors)
        with safe_open(path, "np") as file:
            kept.write(out / f"{name}.npz", file.metadata())
    layouts = json.loads((source / "zoo_layouts.json").read_text(encoding="utf-8"))
    text = json.dumps(layouts, separators=(",", ":"))
    (out / "zoo_layouts.json.xz").write_bytes(lzma.compress(text.encode(), preset=9))


def cut_data(source: Path, out: Path, name: str) -> None:
    """Annotation files of one line per row, the texts about origin and licence, and some photographs of BCCD."""
    out.mkdir(parents=True)
    for text in ("SOURCE.md", "LICENSE"):
        shutil.copyfile(source / text, out / text)
    # COCO-mini whole: that classes are missing, rare or without a number is what it is here for.
    splits: dict[str, int | None] = {"val": None} if name == "coco-mini" else {"val": IMAGES}
    if name == "coco-mini":
        splits["train"] = None
    if name == "bccd":
        splits["train"] = PHOTOGRAPHS
    for split, count in splits.items():
        content = json.loads((source / f"{split}.json").read_bytes())
        images = content["images"][:count]
        kept = {row["id"] for row in images}
        rows = [row for row in content["annotations"] if row["image_id"] in kept]
        fields = {
            "info": content["info"],
            "licenses": content["licenses"],
            "categories": content["categories"],
            "images": [{key: row[key] for key in ("id", "file_name", "width", "height")} for row in images],
            "annotations": [{key: value for key, value in row.items() if key in ROW} for row in rows],
        }
        (out / f"{split}.json").write_text(text_of(fields), encoding="utf-8")
        if name == "bccd" and split == "train":
            (out / "images").mkdir()
            for row in images:
                shutil.copyfile(source / "images" / row["file_name"], out / "images" / row["file_name"])


ROW = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


def text_of(content: dict[str, Any]) -> str:
    """JSON in which every row of a list is a line, so that a change can be read."""
    parts = []
    for key, value in content.items():
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value) if isinstance(value, list) else None
        parts.append(f"{json.dumps(key)}:" + (f"[\n{lines}\n]" if lines is not None else json.dumps(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def cut(shared: Path, out: Path) -> None:
    cut_goldens(shared / "goldens", out)
    shutil.rmtree(out / "data", ignore_errors=True)
    for name in DATA_SETS:
        cut_data(shared / "data" / name, out / "data" / name, name)


def differences(shared: Path) -> list[str]:
    """Files that are missing, of nothing, or of other content; .npz files are compared by what is in them."""
    with tempfile.TemporaryDirectory() as folder:
        anew = Path(folder)
        cut(shared, anew)
        own = {"README.md", Path(__file__).name, "calibration_measures.json"}
        there, wanted = (
            {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}
            for root in (HERE, anew)
        )
        found = sorted((there - own) ^ wanted)
        for path in sorted(there & wanted):
            if path.endswith(".npz"):
                if not same(Slice(HERE / path), Slice(anew / path)):
                    found.append(path)
            elif path.endswith(".xz"):
                if lzma.decompress((HERE / path).read_bytes()) != lzma.decompress((anew / path).read_bytes()):
                    found.append(path)
            elif (HERE / path).read_bytes() != (anew / path).read_bytes():
                found.append(path)
    return found + weight_differences(shared)


def same(one: Slice, other: Slice) -> bool:
    if one.names() != other.names() or one.metadata != other.metadata:
        return False
    pairs = [(one.recorded(name), other.recorded(name)) for name in one.names()]
    return all(
        a.shape == b.shape
        and (a.chosen is None) == (b.chosen is None)
        and np.array_equal(a.values.numpy(), b.values.numpy(), equal_nan=True)
        for a, b in pairs
    )


def weight_differences(shared: Path) -> list[str]:
    """Whether weights drawn from names are those of the script that drew them for the recording."""
    path = shared / "goldens" / "weights_from_names.py"
    spec = importlib.util.spec_from_file_location("weights_from_names", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = []
    for variant in NAMES:
        theirs = module.weights_from_names(layout(variant)["shapes"], 0)
        ours = published_weights(variant, 0)
        if list(ours) != list(theirs) or not all(np.array_equal(ours[name].numpy(), theirs[name]) for name in ours):
            found.append(f"the weights of {variant}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shared", type=Path, help="the folder that holds goldens/ and data/")
    parser.add_argument("--check", action="store_true", help="compare with what is here, and write nothing")
    arguments = parser.parse_args()
    if arguments.check:
        if wrong := differences(arguments.shared):
            sys.exit("differ: " + ", ".join(wrong))
        print("the slices are what would be cut")
    else:
        cut(arguments.shared, HERE)
