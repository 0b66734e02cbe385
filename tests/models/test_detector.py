from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from tests.helpers.models import same_detections as same
from tests.helpers.models import tiny_model
from tightbox.errors import UserError
from tightbox.models import Detector, create_model
from tightbox.models.prediction import ImageLike, as_pixels, prepare
from tightbox.options import AugmentOptions, BackboneOptions, Preprocess, TrainOptions, VFNetOptions
from tightbox.structures import Candidates, Detections, Targets


class Known(Detector):
    """Finds one box, given in fractions of the image that it is shown, and remembers that image's size."""

    name = "known"

    def __init__(self, box: tuple[float, ...], preprocess: Preprocess) -> None:
        backbone: Any = nn.Module()
        backbone.mean = torch.zeros(1)
        super().__init__(backbone=backbone, class_names=["thing"], options=VFNetOptions(), preprocess=preprocess)
        self.box = box
        self.seen: list[tuple[int, ...]] = []

    def loss(self, images: Any, targets: Sequence[Targets]) -> dict[str, Tensor]:
        raise NotImplementedError

    def assigned_candidates(self, images: Any, targets: Any) -> list[tuple[Candidates, Tensor]]:
        raise NotImplementedError

    def candidates(self, images: Any) -> list[Candidates]:
        assert not self.training
        self.seen += [(3, *size) for size in images.sizes]
        sides = [torch.tensor([width, height] * 2) for height, width in images.sizes]
        return [Candidates((torch.tensor(self.box) * side)[None], torch.ones(1, 1)) for side in sides]

    def rank(self, candidates: Candidates) -> Tensor:
        return candidates.class_scores

    def suppress(self, candidates: Candidates, scores: Tensor) -> Detections:
        return Detections(candidates.boxes, torch.ones(1), torch.zeros(1, dtype=torch.int64))


@pytest.fixture(scope="module")
def model() -> Detector:
    return tiny_model().eval()


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_every_kind_of_image_gives_the_same_boxes(model: Detector, array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = model.predict(array)
    for kind in (path, str(path), Image.fromarray(array), tensor, tensor / 255, tensor.double() / 255):
        assert same(model.predict(kind), expected), type(kind)
    images: list[ImageLike] = [path, array, tensor]
    several = model.predict(images)
    assert len(several) == 3
    assert all(same(found, expected) for found in several)
    assert model.predict([]) == []
    assert isinstance(model.predict((array,)), list)
    read_only = array.copy()
    read_only.flags.writeable = False
    assert same(model.predict(read_only), expected)
    assert same(model.predict(np.ascontiguousarray(array[:, ::-1])[:, ::-1]), expected)  # negative strides


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_images_of_any_mode(model: Detector, mode: str) -> None:
    assert as_pixels(Image.new(mode, (9, 7))).shape == (3, 7, 9)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros(4, np.uint8), r"an array must be \(H, W, 3\), \(H, W\) or \(H, W, 4\), not \(4,\)"),  # a row
        (np.zeros((4, 4, 3), np.int64), "must be of uint8, uint16, bool, or floats in .* not of int64"),
        (np.full((4, 4, 3), 255.0), r"reach from 255 to 255; floats must be in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), "reach from nan to nan"),
        (np.full((4, 4), np.inf), "reach from inf to inf"),
        (torch.full((3, 4, 4), -2.0), "reach from -2 to -2"),  # normalised
        (np.zeros((3, 4, 5), np.uint8), "not"),  # channels first
        (np.zeros((0, 4, 3), np.uint8), r"must be \(3, H, W\).* not \(3, 0, 4\)"),
        (torch.zeros(2, 4, 4), r"an image tensor must be \(3, H, W\).* not \(2, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), "must be"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "must be uint8, uint16, bool, or float in .* not torch.int64"),
        (None, "cannot make an image of a NoneType; give a path"),
        (7, "cannot make an image of a int"),
        ("no/such/file.jpg", "cannot read no/such/file.jpg: there is no such file"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: [p]])
def test_what_is_no_image_is_one_sentence(
    model: Detector, image: Any, sentence: str, wrap: Callable[[Any], Any]
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        model.predict(wrap(image))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("training", [True, False])
def test_predict_restores_the_mode(array: np.ndarray, training: bool) -> None:
    known = Known((0, 0, 1, 1), Preprocess())
    known.train(training).predict(array)  # `Known` insists on evaluation mode
    assert known.training is training
    known.candidates = lambda images: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(ZeroDivisionError):
        known.predict(array)
    assert known.training is training


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [
        (100, 200, (3, 50, 100)),  # the longer side meets its limit
        (100, 100, (3, 64, 64)),  # the shorter one
        (10, 10, (3, 64, 64)),  # small images are enlarged
        (33, 35, (3, 64, 68)),  # rounded: 35 * 64 / 33 = 67.9
        (1, 1000, (3, 1, 100)),  # never less than a pixel
    ],
)
def test_boxes_come_back_in_pixels_of_the_original(height: int, width: int, shown: tuple[int, ...]) -> None:
    known = Known((0.25, 0.5, 0.75, 1.0), Preprocess(long_side=100, short_side=64))
    found = known.predict(np.zeros((height, width, 3), np.uint8))
    assert known.seen == [shown]
    expected = torch.tensor([[0.25 * width, 0.5 * height, 0.75 * width, height]])
    torch.testing.assert_close(found.boxes, expected)


def test_boxes_are_clipped_to_the_original() -> None:
    known = Known((-0.5, -0.1, 1.5, 1.2), Preprocess(long_side=64, short_side=64))
    assert known.predict(torch.zeros(3, 30, 40)).boxes.tolist() == [[0, 0, 40, 30]]


def test_a_file_that_is_stored_turned_is_seen_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (200, 100)).save(path, exif=exif)
    known = Known((0, 0, 1, 0.5), Preprocess(long_side=64, short_side=64))
    assert known.predict(path).boxes.tolist() == [[0, 0, 100, 100]]  # upright it is 100 wide and 200 high
    assert known.seen == [(3, 64, 32)]


def test_resize_keeps_a_image_that_fits() -> None:
    pixels = torch.rand(3, 64, 64)
    prepared = prepare(pixels, Preprocess(long_side=64, short_side=64)).pixels
    assert prepared is not None
    assert prepared.equal(pixels)


def test_detections_of_predict_are_on_the_cpu_and_without_gradient(model: Detector, array: np.ndarray) -> None:
    found = model.predict(array)
    assert not found.boxes.requires_grad
    assert found.boxes.device.type == "cpu"
    assert found.to_coco(1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "yolo", "num_classes": 2}, "no model named 'yolo'; there is: vfnet"),
        ({"name": "vfnet"}, "how many classes"),
        ({"name": "vfnet", "num_classes": 3, "class_names": ["a"]}, "num_classes is 3 but 1 class names"),
        ({"name": "vfnet", "class_names": ["a", "a"]}, "all different"),
        ({"name": "vfnet", "num_classes": 0}, "class names must be given"),
        ({"name": "vfnet", "num_classes": 2, "chanels": 3}, "vfnet has no option chanels; it has .*channels"),
        ({"name": "vfnet", "num_classes": 2, "channels": 40}, "channels is 40; group norm needs a multiple of 32"),
        ({"name": "vfnet", "num_classes": 2, "centerness": True}, "also set varifocal=false"),
        ({"name": "vfnet", "num_classes": 2, "assigner": "max"}, "assigner is 'max'; choose from atss, fcos"),
        ({"name": "iou_net", "num_classes": 2, "pooling": "max"}, "pooling is 'max'; choose from prroi, roi_align"),
        ({"name": "vfnet", "num_classes": 2.0}, "num_classes is 2.0; it must be a whole number"),
        ({"name": "vfnet", "class_names": "red"}, r"class_names is the text 'red'; give a list .* \['red'\]"),
        (
            {"name": "vfnet", "num_classes": 2, "max_detections": 2.5},
            "max_detections is 2.5; it must be a whole number",
        ),
        ({"name": "vfnet", "num_classes": 2, "channels": "32"}, "channels is '32'; it must be a whole number"),
        ({"name": "vfnet", "num_classes": 2, "top_k": True}, "top_k is True; it must be a whole number"),
        ({"name": "vfnet", "num_classes": 2, "nms_iou": None}, "nms_iou is None; it must be a finite number"),
        ({"name": "vfnet", "num_classes": 2, "nms_iou": False}, "nms_iou is False; it must be a finite number"),
        (
            {"name": "unitbox", "num_classes": 2, "box_weight": math.inf},
            "box_weight is inf; it must be a finite number",
        ),
        ({"name": "iou_net", "num_classes": 2, "refine_step_size": math.nan}, "refine_step_size is nan"),
        ({"name": "vfnet", "num_classes": 2, "star": 1}, "star is 1; it must be True or False"),
        ({"name": "vfnet", "num_classes": 2, "assigner": ["atss"]}, r"assigner is \['atss'\]; choose from"),
        ({"name": "vfnet", "num_classes": 2, "tower_depth": -1}, "tower_depth is -1; it must be 0 or more"),
        (
            {"name": "iou_aware_retinanet", "num_classes": 2, "tower_depth": -1},
            "tower_depth is -1; it must be 0 or more",
        ),
        ({"name": "vfnet", "num_classes": 2, "atss_topk": 0}, "atss_topk is 0; an object needs 1 candidate or more"),
        (
            {"name": "vfnet", "num_classes": 2, "offset_gradient": -0.1},
            r"offset_gradient is -0.1; it must be in \[0, 1\]",
        ),
    ],
)
def test_create_model_refuses_in_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        create_model(**(dict[str, Any](backbone="test_resnet", pretrained_backbone=False) | arguments))


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        (BackboneOptions, {"name": None}, "name is None; it must be a text"),
        (BackboneOptions, {"frozen_stages": -1}, "frozen_stages is -1; it must be 0 or more"),
        (Preprocess, {"long_side": 64.5}, "long_side is 64.5; it must be a whole number"),
        (AugmentOptions, {"scale_max": 10.5}, "scale_max is 10.5; it must be at most 10"),
        (AugmentOptions, {"flip": math.nan}, "flip is nan; it must be a finite number"),
        (TrainOptions, {"seed": 2**32}, r"seed is 4294967296; it must be below 2\^32"),
        (TrainOptions, {"lr": math.nan}, "lr is nan; it must be a finite number"),
    ],
)
def test_other_options_refuse_in_one_sentence(kind: type[Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        kind(**changes)


def test_options_take_whole_numbers_where_any_number_will_do() -> None:
    assert TrainOptions(lr=1, ema=0, seed=2**32 - 1).lr == 1
    assert AugmentOptions(scale_max=10).scale_max == 10
    assert VFNetOptions(tower_depth=0, offset_gradient=1).tower_depth == 0


def test_create_model_names_classes_by_their_number() -> None:
    model = create_model("vfnet", num_classes=3, backbone="test_resnet", pretrained_backbone=False, channels=32)
    assert model.class_names == ("0", "1", "2")
    assert model.preprocess == Preprocess()
    assert model.options == VFNetOptions(channels=32)


# Many images


def assert_same(found: Detections, expected: Detections) -> None:
    """Up to the rounding of sums that a larger batch adds up in another order."""
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    assert found.labels.equal(expected.labels)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_many_images_give_what_each_gives_alone(model: Detector, batch_size: int) -> None:
    """Images of two shapes, whose order does not matter; shapes that are padded alike are batched."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 64), (40, 64), (64, 64), (64, 33), (61, 64), (64, 64), (20, 64)]
    images = [torch.rand(3, *size, generator=generator) for size in sizes]
    together = model.predict(images, batch_size=batch_size)
    assert len(together) == len(images)
    for image, found in zip(images, together, strict=True):
        assert len(found) > 0
        assert_same(found, model.predict(image))


def test_batches_hold_images_of_one_padded_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 pixels each way after padding are the first, third and fourth image."""
    model = tiny_model().eval()
    shapes: list[tuple[int, ...]] = []
    detect = model.detect_here

    def watched(images: Any) -> list[Detections]:
        shapes.append(tuple(images.pixels.shape))
        return detect(images)

    monkeypatch.setattr(model, "detect_here", watched)
    images = [torch.rand(3, height, 64) for height in (64, 20, 40, 63)]
    assert len(model.predict(images, batch_size=2)) == 4
    assert sorted(shapes) == [(1, 3, 32, 64), (1, 3, 64, 64), (2, 3, 64, 64)]


def test_one_image_many_images_and_a_stream_of_them(model: Detector, array: np.ndarray) -> None:
    assert isinstance(model.predict(array), Detections)
    assert model.predict([]) == []
    assert [len(found) for found in model.predict((array,))] == [len(model.predict(array))]
    stream = model.predict(iter([array, array, array]), batch_size=1)
    assert not isinstance(stream, (list, Detections))
    for found in stream:
        assert_same(found, model.predict(array))
    assert next(stream, None) is None


def test_a_stream_is_read_as_it_is_used(model: Detector, array: np.ndarray) -> None:
    """Of an endless one, no more than two chunks of 2 · batch_size are asked for before the first result."""
    asked = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal asked
        while True:
            asked += 1
            yield array

    stream = model.predict(endless(), batch_size=2)
    assert asked == 0
    assert_same(next(stream), model.predict(array))
    assert 0 < asked <= 8


def test_an_unreadable_image_of_many_is_named(model: Detector, array: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jpg: there is no such file"):
        model.predict(list[ImageLike]([array, tmp_path / "none.jpg"]))


@pytest.mark.parametrize("what", [5, None, [5], [[5]]])
def test_what_holds_no_images_is_refused(model: Detector, what: Any) -> None:
    with pytest.raises(UserError, match="cannot make an image of a"):
        model.predict(what)


def test_many_images_leave_the_mode_as_it_was(array: np.ndarray) -> None:
    model = tiny_model().train()
    model.predict([array, array])
    assert model.training


@pytest.mark.parametrize("name", ["vfnet", "iou_aware_retinanet", "iou_net", "unitbox"])
def test_a_loss_refuses_targets_that_do_not_fit(name: str) -> None:
    model = create_model(name, num_classes=2, backbone="test_resnet", pretrained_backbone=False)
    images = [torch.rand(3, 64, 64)] * 2
    target = Targets.of(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([1]))
    for given in ([], [target], [target] * 3):
        with pytest.raises(UserError, match=f"not {len(given)} for 2"):
            model.loss(images, given)
    with pytest.raises(UserError, match="not 0 for 0"):
        model.loss([], [])
    for label in (2, -1):
        wrong = replace(target, labels=torch.tensor([label]))
        with pytest.raises(UserError, match=f"labels from .*{label}.*classes are 0 to 1"):
            model.loss(images, [target, wrong])


def test_batches_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="batch_size is 0"):
        tiny_model().predict([torch.rand(3, 64, 64)], batch_size=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_images_of_any_numbers(dtype: torch.dtype) -> None:
    model = tiny_model().eval()
    pixels = (torch.rand(3, 64, 64) * 255).round()
    image = pixels.to(dtype) if dtype is torch.uint8 else (pixels / 255).to(dtype)
    found, expected = model.detect([image])[0], model.detect([pixels / 255])[0]
    torch.testing.assert_close(found.boxes, expected.boxes, atol=0.5, rtol=0.01)
