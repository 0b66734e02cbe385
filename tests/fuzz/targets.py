"""What is changed and then read, one kind of file each: a folder is prepared once, and every case writes into it."""

from __future__ import annotations

import contextlib
import io
import json
import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from tests.fuzz.mutations import TOKENS, VALUES, changed_bytes, changed_json, changed_text
from tests.helpers.data import (
    annotation,
    categories_of,
    fddb,
    plain_image,
    voc_image,
    voc_object,
    wider_face,
)
from tests.helpers.models import tiny_iou_net, tiny_model, tiny_retinanet, tiny_unitbox
from tests.helpers.results import example
from tightbox.checkpoint import load_weights, read_card, read_weights
from tightbox.cli import build_parser, with_underscores
from tightbox.commands import train
from tightbox.data.layout import parse_data
from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.evaluation.coco_files import from_coco, read_ground_truth, read_predictions
from tightbox.images import open_image, read_header
from tightbox.models import load
from tightbox.models.mmdet.read import read_checkpoint
from tightbox.models.prediction import as_pixels


class Target(ABC):
    """One kind of input.

    Args:
        folder: an empty one; `self.prepare()` fills it with valid files.
    """

    weight: ClassVar[int]  # how many cases it gets in a round

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Write the files that stay as they are, and keep those that are to be changed."""

    @abstractmethod
    def run(self, rng: random.Random) -> None:
        """Change, write, read. A `UserError` is a refusal; an `AssertionError` says that nonsense was accepted."""


class DataSet(Target):
    """A folder of which one text file is changed at a time."""

    split: ClassVar[str] = "train"
    files: dict[Path, str]

    def run(self, rng: random.Random) -> None:
        path = rng.choice(list(self.files))
        path.write_bytes(self.changed(rng, self.files[path]))
        try:
            parsed = parse_data(self.folder, self.split)
            for finding in parsed.all_findings():
                str(finding).encode()
            assert_sensible(parsed.data())
        finally:
            path.write_text(self.files[path], encoding="utf-8")

    def changed(self, rng: random.Random, text: str) -> bytes:
        return changed_text(rng, text)

    def keep(self, *paths: str) -> None:
        self.files = {self.folder / path: (self.folder / path).read_text(encoding="utf-8") for path in paths}


class Coco(DataSet):
    weight = 80

    def prepare(self) -> None:
        for name in ("a.png", "b.png"):
            plain_image(self.folder / "images" / name)
        images = [{"id": i, "file_name": f"{name}.png", "width": 40, "height": 30} for i, name in enumerate("ab", 1)]
        rows = [annotation(i, 1 + i % 2, [i, 2, 8.5, 9], 1 + i % 2, area=70.5) for i in range(1, 4)]
        content = {"images": images, "annotations": rows, "categories": categories_of(["cat", "dog"])}
        (self.folder / "train.json").write_text(json.dumps(content))
        self.keep("train.json")

    def changed(self, rng: random.Random, text: str) -> bytes:
        return changed_json(rng, json.loads(text))


class Voc(DataSet):
    weight = 20

    def prepare(self) -> None:
        for name in ("a", "b"):
            voc_image(
                self.folder, name, voc_object("cat", (1, 2, 20, 25)) + voc_object("dog", (3, 4, 9, 9)), ("train",)
            )
        self.keep("Annotations/a.xml", "Annotations/a.xml", "ImageSets/Main/train.txt")


class Yolo(DataSet):
    weight = 20

    def prepare(self) -> None:
        for name in ("a", "b"):
            plain_image(self.folder / "train" / "images" / f"{name}.png")
        labels = self.folder / "train" / "labels"
        labels.mkdir()
        (labels / "a.txt").write_text("0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.2 0.1 0.2 0.3\n")
        (self.folder / "data.yaml").write_text("path: .\ntrain: train/images\nnc: 2\nnames:\n  0: cat\n  1: dog\n")
        self.keep("train/labels/a.txt", "data.yaml")


class YoloLists(DataSet):
    """Images by a list, names by classes.txt."""

    weight = 10

    def prepare(self) -> None:
        plain_image(self.folder / "images" / "a.png")
        (self.folder / "labels").mkdir()
        (self.folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.5\n")
        (self.folder / "data.yaml").write_text("train: train.txt\n")
        (self.folder / "train.txt").write_text("images/a.png\n")
        (self.folder / "classes.txt").write_text("cat\ndog\n")
        self.keep("labels/a.txt", "data.yaml", "train.txt", "classes.txt")


class Wider(DataSet):
    weight = 20

    def prepare(self) -> None:
        wider_face(self.folder)
        self.keep("wider_face_split/wider_face_train_bbx_gt.txt")


class Fddb(DataSet):
    split = "test"
    weight = 15

    def prepare(self) -> None:
        fddb(self.folder, "2002/08/a\n1\n12.5 8.0 -1.5 30 20  1\n", "2002/08/b\n2\n9 6 1.2 20 15 1\n8 6 0.1 40 25 1\n")
        self.keep("FDDB-folds/FDDB-fold-01-ellipseList.txt", "FDDB-folds/FDDB-fold-02.txt")


class Results(Target):
    """A result file of any tool, or its ground truth, with a predicted IoU in each row."""

    weight = 100

    def prepare(self) -> None:
        self.content, self.rows = example()
        self.ground_truth, _ = from_coco(self.content, [])

    def run(self, rng: random.Random) -> None:
        path = self.folder / "file.json"
        if rng.random() < 0.3:
            path.write_bytes(changed_json(rng, self.content))
            _, ground_truth = read_ground_truth(path)
            assert np.isfinite(ground_truth.boxes).all()
            assert (ground_truth.boxes[:, 2:] >= 0).all()
            return
        path.write_bytes(changed_json(rng, self.rows))
        found = read_predictions(path, self.ground_truth)
        assert np.isfinite(found.boxes).all()
        assert (found.boxes[:, 2:] >= 0).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert not ((found.ious < 0) | (found.ious > 1)).any()


class Cards(Target):
    """The card of each of the four systems; some of the cases build the network of it."""

    weight = 5

    def prepare(self) -> None:
        self.cards = {}
        for name, model in (
            ("vfnet", tiny_model()),
            ("iou_aware_retinanet", tiny_retinanet()),
            ("iou_net", tiny_iou_net()),
            ("unitbox", tiny_unitbox()),
        ):
            self.cards[name] = json.loads((model.save(self.folder / name) / "card.json").read_text())

    def run(self, rng: random.Random) -> None:
        name = rng.choice(list(self.cards))
        (self.folder / name / "card.json").write_bytes(changed_json(rng, self.cards[name]))
        read_card(self.folder / name)
        if rng.random() < 0.5:
            train._choices_of(self.folder / name)
        else:
            load(self.folder / name)


class Safetensors(Target):
    weight = 60

    def prepare(self) -> None:
        self.module = torch.nn.Linear(2, 3)
        self.content = safetensors.torch.save(self.module.state_dict())

    def run(self, rng: random.Random) -> None:
        content = changed_bytes(rng, self.content)
        if rng.random() < 0.3:  # a header of another length, or another header
            header = json.loads(self.content[8 : 8 + int.from_bytes(self.content[:8], "little")])
            text = changed_json(rng, header)
            content = len(text).to_bytes(8, "little") + text + self.content[-36:]
        (self.folder / "weights.safetensors").write_bytes(content)
        load_weights(self.module, read_weights(self.folder), "file")
        assert all(value.isfinite().all() for value in self.module.parameters())


class Pth(Target):
    weight = 40

    def prepare(self) -> None:
        state = {"state_dict": {"a.weight": torch.ones(2, 3), "b": torch.zeros(4)}, "meta": {"CLASSES": ("cat", "dog")}}
        self.contents = []
        for modern in (True, False):
            torch.save(state, self.folder / "a.pth", _use_new_zipfile_serialization=modern)
            self.contents.append((self.folder / "a.pth").read_bytes())

    def run(self, rng: random.Random) -> None:
        (self.folder / "a.pth").write_bytes(changed_bytes(rng, rng.choice(self.contents)))
        read_checkpoint(self.folder / "a.pth")


class Images(Target):
    weight = 60

    def prepare(self) -> None:
        self.contents: list[bytes] = []
        noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
        rgba = Image.fromarray(noise)
        rgb = rgba.convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        self._add(rgb, "jpeg", exif=exif)
        self._add(rgb, "jpeg", progressive=True)
        self._add(rgb.convert("CMYK"), "jpeg")
        self._add(Image.fromarray(noise[:, :, :2].copy().view(np.uint16)[:, :, 0]), "png")  # 16 bits
        self._add(Image.fromarray(noise.astype(np.float32)[:, :, 0]), "tiff")
        for image in (rgb, rgba, rgb.convert("P"), rgb.convert("1"), rgb.convert("LA")):
            self._add(image, "png")
        for kind in ("bmp", "gif", "webp", "tiff", "ppm", "tga", "jpeg2000", "ico", "pcx", "dds", "sgi", "avif"):
            self._add(rgb, kind)
        for kind in ("gif", "webp", "tiff", "png"):
            self._add(rgb, kind, save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])  # animated
        self._add(Image.new("1", (1, 1)), "png")
        self._add(Image.new("1", (20000, 10)), "png")
        self._add(Image.new("1", (30000, 20000)), "png", compress_level=9)  # a bomb: 600 million pixels

    def _add(self, image: Image.Image, kind: str, **options: Any) -> None:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        self.contents.append(stream.getvalue())

    def run(self, rng: random.Random) -> None:
        path, content = self.folder / "image", rng.choice(self.contents)
        path.write_bytes(content if rng.random() < 0.05 else changed_bytes(rng, content))
        header = read_header(path)
        if max(header.size) > 5000:  # decoding these takes most of the time, and shows little
            return
        size = open_image(path).size
        assert sorted(size) == sorted(header.size)
        pixels = as_pixels(path)
        assert pixels.isfinite().all()
        assert tuple(pixels.shape) == (3, size[1], size[0])


class Arguments(Target):
    """Random options and values on every command: they are parsed and checked, and nothing is run."""

    weight = 40

    def prepare(self) -> None:
        self.parser = build_parser()
        action = self.parser._subcommands_action
        assert action is not None
        commands = action._name_parser_map
        self.options = {
            name: [option for action in command._actions for option in action.option_strings if option != "--help"]
            for name, command in commands.items()
        }
        self.values = [*TOKENS, *(json.dumps(value) for value in VALUES), str(self.folder), "a b", "-", "--", "=", "@x"]

    def run(self, rng: random.Random) -> None:
        command = rng.choice(list(self.options)) if rng.random() < 0.98 else rng.choice(self.values)
        arguments = [command]
        needed = {"train": ["--data", "d", "--out", "o"], "predict": ["m", "s", "--out", "o"], "doctor": ["d"]}
        arguments += needed.get(command, ["m"]) if rng.random() < 0.8 else []
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            arguments.append(rng.choice(self.options.get(command, ["--x"])))
            arguments += [rng.choice(self.values)] if rng.random() < 0.9 else []
            if rng.random() < 0.1:
                arguments[-1:] = [arguments[-1] + "=" + rng.choice(self.values)]
        self.parse([argument for argument in arguments if "\0" not in argument])  # which no shell passes on

    def parse(self, arguments: list[str]) -> None:
        given = with_underscores(arguments)
        quiet = io.StringIO()
        try:
            with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
                if given[:1] == ["train"]:
                    train.earlier_choices(given[1:])
                parsed = self.parser.parse_args(given)
        except SystemExit as stop:
            if stop.code not in (0, None):
                assert quiet.getvalue().startswith("tightbox: "), quiet.getvalue()
                assert quiet.getvalue().count("\n") == 1, quiet.getvalue()
                raise UserError(quiet.getvalue().strip()) from stop
            return
        if parsed.command == "train":
            train.choices(parsed.train)


class Configurations(Arguments):
    """YAML files for `train --config`."""

    weight = 5

    def prepare(self) -> None:
        super().prepare()
        lines = [
            "data: d",
            "out: o",
            "epochs: 3",
            "lr: 0.001",
            "backbone: resnet18",
            "model: vfnet",
            "classes: [cat, dog]",
        ]
        self.text = "\n".join(
            [*lines, "mosaic: 0.5", "pretrained: false", "vfnet:", "  channels: 64", "  varifocal: true"]
        )

    def run(self, rng: random.Random) -> None:
        (self.folder / "config.yaml").write_bytes(changed_text(rng, self.text))
        self.parse(["train", "--config", str(self.folder / "config.yaml")])


def assert_sensible(data: DetectionData) -> None:
    """Every box is within its image and has an area, every label has a name."""
    for record in data.records:
        assert (record.width > 0) == (record.height > 0)
        assert np.isfinite(record.boxes).all()
        assert (record.boxes >= 0).all()
        assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
        assert (record.boxes[:, 2:] <= (record.width, record.height)).all()
        assert ((record.labels >= 0) & (record.labels < len(data.class_names))).all()
        assert (record.areas > 0).all()
    " ".join(data.class_names).encode()
    data.to_coco()


TARGETS: dict[str, type[Target]] = {
    "COCO": Coco,
    "Pascal VOC": Voc,
    "YOLO": Yolo,
    "YOLO lists": YoloLists,
    "WIDER FACE": Wider,
    "FDDB": Fddb,
    "results": Results,
    "cards": Cards,
    "safetensors": Safetensors,
    "pth": Pth,
    "images": Images,
    "configurations": Configurations,
    "command line": Arguments,
}
