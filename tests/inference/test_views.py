from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.data import three_images
from tests.helpers.models import image_batch, tiny_iou_net, tiny_model, tiny_retinanet, tiny_unitbox
from tightbox.boxes import pairwise_iou
from tightbox.commands.on_data import MERGES
from tightbox.errors import UserError
from tightbox.inference.views import Merge, Views, see
from tightbox.models import Detector
from tightbox.models.prediction import NOTHING
from tightbox.options import VFNetOptions
from tightbox.structures import Detections, ImageBatch
from tightbox.suppress import box_voting

OPTIONS = VFNetOptions(nms_iou=0.5, score_threshold=0.05, max_detections=100)
# Two views of an object; the second box's IoU with the first is 8/10. The third is far off, the fourth another class.
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [50, 0, 60, 10], [0, 0, 10, 10]])
FIRST = Detections(BOXES[:1], torch.tensor([0.6]), torch.tensor([0]), torch.tensor([0.5]))
SECOND = Detections(BOXES[1:], torch.tensor([0.9, 0.4, 0.7]), torch.tensor([0, 0, 1]), torch.tensor([0.75, 0.2, 0.3]))


def merged(rule: Merge, *found: Detections, options: VFNetOptions = OPTIONS) -> Detections:
    return Views(merge=rule).merged(found, options)


def test_soft_nms_by_hand() -> None:
    found = merged("soft_linear", FIRST, SECOND)
    # 0.9 stays first; 0.6 falls by 1 - 0.8 to 0.12; the others overlap nothing of their class.
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.4, 0.12])
    assert found.labels.tolist() == [0, 1, 0, 0]
    assert found.boxes.equal(BOXES[[1, 3, 2, 0]])
    assert found.ious is not None
    assert found.ious.tolist() == pytest.approx([0.75, 0.3, 0.2, 0.5])


@pytest.mark.parametrize(
    ("rule", "bottom", "iou"),
    [
        ("vote", 9.0, 0.625),  # (8 + 10) / 2 and (0.75 + 0.5) / 2
        ("vote_score", 8.8, 0.65),  # (0.9 · 8 + 0.6 · 10) / 1.5 and (0.9 · 0.75 + 0.6 · 0.5) / 1.5
        ("vote_iou", 8.8, 0.65),  # (0.75 · 8 + 0.5 · 10) / 1.25 and (0.75² + 0.5²) / 1.25
    ],
)
def test_box_voting_by_hand(rule: Merge, bottom: float, iou: float) -> None:
    found = merged(rule, FIRST, SECOND)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.4])
    assert found.labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(found.boxes, torch.tensor([[0, 0, 10, bottom], [0, 0, 10, 10], [50, 0, 60, 10]]))
    assert found.ious is not None
    assert found.ious.tolist() == pytest.approx([iou, 0.3, 0.2])


def test_scores_and_ious_weigh_differently() -> None:
    # Predicted IoUs of 0.2 and 0.6 against scores of 0.9 and 0.6: (0.2 · 8 + 0.6 · 10) / 0.8 = 9.5.
    tighter = replace(FIRST, ious=torch.tensor([0.6]))
    looser = replace(SECOND, ious=torch.tensor([0.2, 0.2, 0.3]))
    assert merged("vote_iou", tighter, looser).boxes[0].tolist() == pytest.approx([0, 0, 10, 9.5])
    assert merged("vote_score", tighter, looser).boxes[0].tolist() == pytest.approx([0, 0, 10, 8.8])


def test_a_box_belongs_to_the_best_box_that_covers_it() -> None:
    # IoU of the second with the first is 6/10, with the third 6/8; the third, whose IoU with the first is 1/3, stays.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 8]])
    boxes[2] = torch.tensor([0.0, 2, 10, 5])  # 3/10 of the first, and 3/6 of the second, which is not above 0.5
    found = box_voting(Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3)), torch.ones(3))
    assert found.boxes.tolist() == [[0, 0, 10, 8], [0, 2, 10, 5]]


def test_weights_that_are_none_count_alike() -> None:
    found = Detections(BOXES[:2], torch.tensor([0.9, 0.6]), torch.zeros(2), torch.tensor([-0.1, torch.nan]))
    assert found.ious is not None
    assert box_voting(found, found.ious).boxes.tolist() == [[0, 0, 10, 9]]
    assert box_voting(found, torch.tensor([-1.0, 2.0])).boxes.tolist() == [[0, 0, 10, 8]]


def test_the_threshold_of_box_voting() -> None:
    # IoUs: the second with the first 0.6, the third with the first 0.7, which is not above, and with the second 6/7.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0], [0.0, 0.0, 10.0, 7.0]])
    found = box_voting(Detections(boxes, torch.tensor([0.9, 0.6, 0.5]), torch.zeros(3)), torch.ones(3), 0.7)
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6.5]]))


def test_a_predicted_iou_that_is_no_number_is_left_out_of_the_mean() -> None:
    box, other = [0.0, 0, 10, 10], [50.0, 50, 60, 60]
    boxes, ious = torch.tensor([box, box, other]), torch.tensor([0.5, math.nan, 0.7])
    found = box_voting(Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3), ious), torch.ones(3))
    torch.testing.assert_close(found.ious, torch.tensor([0.5, 0.7]))


@pytest.mark.parametrize("rule", MERGES)
def test_at_most_as_many_as_the_options_say_and_nothing_of_nothing(rule: Merge) -> None:
    few = replace(OPTIONS, max_detections=1)
    assert merged(rule, FIRST, SECOND, options=few).scores.tolist() == pytest.approx([0.9])
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert len(merged(rule, empty, empty)) == 0
    assert len(merged(rule, empty, FIRST)) == 1


def test_a_detector_without_ious() -> None:
    blind = replace(FIRST, ious=None)
    assert merged("vote_score", blind, blind).ious is None
    with pytest.raises(UserError, match="predicts no IoU to weigh boxes by"):
        merged("vote_iou", blind, blind)
    assert len(merged("vote", NOTHING, NOTHING)) == 0


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Detections, Tensor]:
    """Equal boxes, several of each of some that do not touch; and those."""
    count = draw(st.integers(1, 4))
    corners = [draw(st.floats(0, 5, width=32)) for _ in range(4 * count)]
    boxes = torch.tensor(corners).view(count, 4) + torch.tensor([0.0, 0, 10, 10])
    boxes += 100 * torch.arange(count)[:, None] * torch.tensor([1.0, 0, 1, 0])
    times = torch.tensor([draw(st.integers(1, 4)) for _ in range(count)])
    every = boxes.repeat_interleave(times, dim=0)
    values = st.lists(st.floats(0.0625, 1, width=32), min_size=len(every), max_size=len(every))
    scores, ious = (torch.tensor(draw(values)) for _ in range(2))
    return Detections(every, scores, torch.zeros(len(every), dtype=torch.int64), ious), boxes


@given(clusters(), st.sampled_from(["vote", "vote_score", "vote_iou"]))
def test_clusters_of_equal_boxes_become_these_boxes(drawn: tuple[Detections, Tensor], rule: Merge) -> None:
    found, boxes = drawn
    voted = merged(rule, found)
    assert voted.scores.diff().le(0).all()
    order = voted.boxes[:, 0].argsort()
    torch.testing.assert_close(voted.boxes[order], boxes, rtol=1e-5, atol=1e-4)
    soft = merged("soft_linear", found)
    assert len(soft) == len(boxes)  # the others fall to 0
    assert soft.boxes[soft.boxes[:, 0].argsort()].equal(boxes)


@given(st.integers(0, 2**31), st.integers(1, 30))
def test_votes_lie_between_their_boxes_and_each_cluster_keeps_its_best_score(seed: int, count: int) -> None:
    torch.manual_seed(seed)
    corners = 20 * torch.rand(count, 2)
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(count, 2)], dim=1)
    found = Detections(boxes, torch.rand(count), torch.randint(2, (count,)), torch.rand(count))
    voted = box_voting(found, torch.rand(count))
    # Greedily, one by one.
    best: list[int] = []
    owners: dict[int, list[int]] = {}
    overlaps = pairwise_iou(boxes, boxes)
    for i in found.scores.argsort(descending=True).tolist():
        owner = next((b for b in best if found.labels[b] == found.labels[i] and overlaps[b, i] > 0.5), i)
        owners.setdefault(owner, []).append(i)
        if owner == i:
            best.append(i)
    assert voted.scores.equal(found.scores[best])
    assert voted.labels.equal(found.labels[best])
    for box, i in zip(voted.boxes, best, strict=True):
        mine = boxes[owners[i]]
        assert (box >= mine.amin(dim=0) - 1e-4).all()
        assert (box <= mine.amax(dim=0) + 1e-4).all()


class Corners:
    """Finds one box: the extent of what is not black."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, images: ImageBatch) -> list[Detections]:
        found = []
        for pixels, size in zip(images.pixels, images.sizes, strict=True):
            self.seen.append(size)
            rows, columns = (pixels[0] > 0.5).nonzero(as_tuple=True)
            box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            found.append(Detections(box[None], torch.tensor([0.5]), torch.tensor([0]), torch.tensor([0.5])))
        return found


def test_boxes_of_every_view_come_back_to_their_place() -> None:
    first, second = torch.zeros(3, 64, 96), torch.zeros(3, 40, 64)
    first[:, 16:32, 8:40] = 1
    second[:, 8:24, 32:64] = 1
    detect = Corners()
    views = Views(scales=(0.5, 1.0, 0.25), flip=True, merge="vote")
    found = views(detect, ImageBatch.of([first, second]), OPTIONS)
    assert sorted(detect.seen, reverse=True) == sorted(
        [(64, 96), (40, 64), (32, 48), (20, 32), (16, 24), (10, 16)] * 2, reverse=True
    )
    for detections, box in zip(found, ([8, 16, 40, 32], [32, 8, 64, 24]), strict=True):
        assert detections.boxes.tolist() == [pytest.approx(box)]


@pytest.mark.parametrize("build", [tiny_model, tiny_retinanet, tiny_iou_net, tiny_unitbox])
@pytest.mark.parametrize("rule", MERGES)
def test_every_detector_sees_its_views(build: Any, rule: Merge) -> None:
    model: Detector = build().eval()
    if rule == "vote_iou" and model.name == "unitbox":
        return
    images = image_batch((64, 48), (64, 40))  # of one size with their padding
    plain = model.detect(images)
    model.views = Views(merge="vote")
    once = model.detect(images)
    for a, b in zip(plain, once, strict=True):  # one view whose boxes are suppressed already
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.boxes, b.boxes)
    see(model, Views(scales=(0.5, 1.5), flip=True, merge=rule))
    assert (model.preprocess.long_side, model.preprocess.short_side) == (96, 96)
    found = model.predict([torch.rand(3, 50, 70), torch.rand(3, 1, 1)])
    assert len(found) == 2
    for detections, (height, width) in zip(found, ((50, 70), (1, 1)), strict=True):
        assert detections.scores.diff().le(0).all()
        assert (detections.boxes >= -1e-3).all()
        assert (detections.boxes <= torch.tensor([width, height] * 2) + 1e-3).all()


def test_a_mirrored_image_gives_mirrored_boxes() -> None:
    model = tiny_model().eval()
    model.views = Views(flip=True, merge="vote")
    image = torch.rand(3, 64, 64)
    found, other = model.detect([image]), model.detect([TF.horizontal_flip(image)])
    back = other[0].boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]) + torch.tensor([64.0, 0, 64, 0])
    torch.testing.assert_close(found[0].scores, other[0].scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0].boxes, back, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (torch.nan,), (torch.inf,)])
def test_scales_that_make_no_sense(scales: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="give one or more numbers above 0"):
        Views(scales=scales)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "val.json").write_text(json.dumps(three_images(root / "images").to_coco()))
    (root / "train.json").write_text((root / "val.json").read_text())
    return root


def test_the_commands(data: Path, tmp_path: Path) -> None:
    checkpoint = tiny_model().save(tmp_path / "model")
    command = ["eval", checkpoint, "--data", data, "--scales", "0.5", "1", "--flip", "--merge", "vote", "--out"]
    assert status([*command, tmp_path / "a"]) == 0
    assert json.loads((tmp_path / "a" / "results.json").read_text())
    images = data / "images"
    views = ["--flip", "--merge", "vote_iou", "--score-threshold", "0"]
    assert status(["predict", checkpoint, images, "--out", tmp_path / "b", *views]) == 0
    assert json.loads((tmp_path / "b" / "results.json").read_text())
    card = json.loads((checkpoint / "card.json").read_text())
    assert card["preprocess"] == {"long_side": 64, "short_side": 64}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["eval", "--data", "DATA", "--flip", "--suppress", "greedy"], "leave out the others"),
        (["eval", "--data", "DATA", "--scales", "2", "--alpha-sweep"], "leave out the others"),
        (["eval", "--data", "DATA", "--merge", "vote"], "also give --scales or --flip"),
        (["predict", "DATA", "--out", "OUT", "--flip", "--format", "jsonl"], "but parquet and jsonl"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], sentence: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_model().save(tmp_path / "model")
    places = {"DATA": data, "OUT": tmp_path / "out"}
    given = [arguments[0], checkpoint, *(places.get(argument, argument) for argument in arguments[1:])]
    assert status(given) == 2
    assert_one_sentence(capsys, sentence)
