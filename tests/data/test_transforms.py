"""Boxes must stay on their objects: images are painted with rectangles of one colour each, and after every change
each box is compared with the extent of its colour."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tightbox.data.transforms import HOLE_SIZES, MIN_VISIBLE, Sample, TrainTransform, _cut, _side_crop, resize
from tightbox.options import AugmentOptions, Preprocess

# Far apart from each other and from black and grey, so that resizing cannot mix one from two others.
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]])
PREPROCESS = Preprocess(long_side=96, short_side=64)
STILL = AugmentOptions(flip=0, scale_min=1, scale_max=1, color=0)
SEEDS = st.integers(0, 10**6)


def painted(boxes: list[tuple[int, int, int, int]], height: int = 64, width: int = 96, first: int = 0) -> Sample:
    """A black image whose box i is filled with colour `first` + i, which is its label too."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    labels = torch.arange(first, first + len(boxes))
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        image[:, top:bottom, left:right] = COLOURS[label].view(3, 1, 1).to(torch.uint8)
    return Sample(image, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, labels % 2 == 1)


def extent(image: Tensor, label: int) -> list[int] | None:
    """The box around the pixels that are nearer to a colour than to any other or to the background."""
    known = torch.cat([COLOURS, torch.tensor([[0, 0, 0], [114, 114, 114]])]).float()
    nearest = torch.cdist(image.permute(1, 2, 0).reshape(-1, 3).float(), known).argmin(dim=1).view(image.shape[1:])
    rows, columns = (nearest == label).nonzero(as_tuple=True)
    if len(rows) == 0:
        return None
    return [int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def assert_on_objects(sample: Sample, tolerance: float) -> None:
    height, width = sample.size
    assert sample.image.dtype == torch.uint8
    assert len(sample.boxes) == len(sample.labels) == len(sample.crowd)
    for box, label, crowd in zip(sample.boxes, sample.labels.tolist(), sample.crowd.tolist(), strict=True):
        assert crowd == (label % 2 == 1)
        assert (box >= -1e-3).all()  # but for float32
        assert (box <= torch.tensor([width, height] * 2) + 1e-3).all()
        if (box[2:] - box[:2]).min() < 3:  # a sliver may be blurred away
            continue
        found = extent(sample.image, label)
        assert found is not None
        assert (box - torch.tensor(found)).abs().max() <= tolerance, (box, found)


def once(sample: Sample, augment: AugmentOptions, seed: int = 0, preprocess: Preprocess = PREPROCESS) -> Sample:
    torch.manual_seed(seed)
    return TrainTransform(augment, preprocess)(lambda _: sample, 0, 1, progress=0.0)


@st.composite
def scenes(draw: st.DrawFn) -> Sample:
    """Up to three rectangles side by side, in an image of any shape."""
    height, width = draw(st.integers(24, 90)), draw(st.integers(60, 130))
    boxes = []
    for i in range(draw(st.integers(0, 3))):
        left = i * width // 3 + draw(st.integers(1, 4))
        right = (i + 1) * width // 3 - draw(st.integers(1, 4))
        top = draw(st.integers(0, height - 12))
        boxes.append((left, top, right, draw(st.integers(top + 8, height))))
    return painted(boxes, height, width)


@st.composite
def rectangles(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """A box in eighths of its image."""
    left, top = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    return left, top, draw(st.integers(left + 1, 8)), draw(st.integers(top + 1, 8))


def test_flip_by_hand() -> None:
    sample = painted([(10, 20, 30, 50)])
    mirrored = once(sample, replace(STILL, flip=1.0))
    assert mirrored.boxes.tolist() == [[66, 20, 86, 50]]  # 96 - 30 and 96 - 10
    assert mirrored.image.equal(sample.image.flip(2))
    upside_down = once(sample, replace(STILL, vertical_flip=1.0))
    assert upside_down.boxes.tolist() == [[10, 14, 30, 44]]  # 64 - 50 and 64 - 20
    assert upside_down.image.equal(sample.image.flip(1))
    assert_on_objects(mirrored, 0)
    assert_on_objects(upside_down, 0)


def test_nothing_happens_when_all_is_off() -> None:
    sample = painted([(10, 20, 30, 50), (40, 1, 90, 60)])
    same = once(sample, STILL)
    assert same.image.equal(sample.image)
    assert same.boxes.equal(sample.boxes)


def test_resize_by_hand() -> None:
    sample = painted([(10, 20, 30, 50)], height=64, width=96)
    half = resize(sample, 0.5)
    assert half.size == (32, 48)
    assert half.boxes.tolist() == [[5, 10, 15, 25]]
    odd = resize(painted([(0, 0, 7, 5)], height=5, width=7), 1.5)
    assert odd.size == (8, 10)  # 7.5 and 10.5 rounded to even: the box follows the true size of the new image
    assert odd.boxes.tolist() == [[0, 0, 10, 8]]
    assert resize(painted([], 1, 1), 0.01).size == (1, 1)


@settings(max_examples=25, deadline=None)
@given(scenes(), st.floats(0.5, 2.5))
def test_resized_boxes_stay_on_their_objects(sample: Sample, factor: float) -> None:
    assert_on_objects(resize(sample, factor), 1.01)


@settings(max_examples=60, deadline=None)
@given(scenes(), SEEDS)
def test_boxes_stay_on_their_objects(sample: Sample, seed: int) -> None:
    augment = AugmentOptions(flip=0.5, vertical_flip=0.5, scale_min=0.5, scale_max=2.0, crop=0.5, color=0)
    changed = once(sample, augment, seed)
    assert_on_objects(changed, 1.5)
    scale = PREPROCESS.scale(sample.size[1], sample.size[0])
    assert changed.size[0] <= round(sample.size[0] * scale)
    assert changed.size[1] <= round(sample.size[1] * scale)


@settings(max_examples=40, deadline=None)
@given(st.lists(rectangles(), min_size=4, max_size=4), SEEDS)
def test_boxes_of_a_mosaic_stay_on_their_objects(boxes: list[tuple[int, int, int, int]], seed: int) -> None:
    """Every image that is asked for has one object, of a colour of its own."""
    sizes = [(64, 96), (50, 90), (90, 60), (24, 70)]
    asked: list[int] = []

    def load(index: int) -> Sample:
        number = len(asked)
        asked.append(index)
        height, width = sizes[number]
        left, top, right, bottom = boxes[number]
        return painted(
            [(left * width // 8, top * height // 8, right * width // 8, bottom * height // 8)], height, width, number
        )

    torch.manual_seed(seed)
    augment = AugmentOptions(mosaic=1.0, color=0, flip=0.5, vertical_flip=0.5)
    mosaic = TrainTransform(augment, PREPROCESS)(load, 2, 7, progress=0.0)
    assert len(asked) == 4
    assert asked[0] == 2
    assert max(asked) < 7
    assert mosaic.size == (64, 96)  # the first image's
    assert_on_objects(mosaic, 1.5)


@pytest.mark.parametrize(
    ("window", "left"),
    [
        ((0, 0, 64, 96), [0]),  # the whole image
        ((0, 0, 64, 33), []),  # 3 of 20 columns: 15%
        ((0, 0, 64, 36), [0]),  # 6 of 20: exactly MIN_VISIBLE
        ((50, 30, 14, 40), []),  # the rows below it
    ],
)
def test_objects_of_which_too_little_remains_are_dropped(window: tuple[int, int, int, int], left: list[int]) -> None:
    from tightbox.data.transforms import _window

    assert MIN_VISIBLE == 0.3
    assert _window(painted([(30, 20, 50, 50)]), *window).labels.tolist() == left


def test_crowds_are_kept_however_little_remains() -> None:
    """What is left of a crowd is still no background."""
    from tightbox.data.transforms import _window

    sample = painted([(0, 0, 10, 10), (0, 0, 96, 64)])
    cut = _window(sample, 40, 40, 10, 10)
    assert cut.crowd.tolist() == [True]
    assert cut.boxes.tolist() == [[0, 0, 10, 10]]
    assert len(_window(painted([(50, 0, 60, 10), (0, 0, 20, 20)]), 30, 30, 10, 10).boxes) == 0


@settings(max_examples=60, deadline=None)
@given(scenes(), SEEDS)
def test_a_crop_keeps_at_least_one_object(sample: Sample, seed: int) -> None:
    if len(sample.boxes):
        torch.manual_seed(seed)
        cropped = TrainTransform(STILL, PREPROCESS)._iou_crop(sample)
        assert len(cropped.boxes) > 0
        assert_on_objects(cropped, 0.01)  # no pixel is resampled


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 3), (5, 2)])
def test_the_tiniest_images(size: tuple[int, int]) -> None:
    sample = painted([(0, 0, size[1], size[0])], *size)
    for seed in range(20):
        augment = AugmentOptions(crop=0.7, mosaic=0.3, vertical_flip=0.5, scale_min=0.2, scale_max=2)
        changed = once(sample, augment, seed, Preprocess(long_side=32, short_side=32))
        assert min(changed.size) >= 1
        assert (changed.boxes[:, 2:] > changed.boxes[:, :2]).all()


def test_images_without_objects() -> None:
    for seed in range(10):
        changed = once(painted([]), AugmentOptions(crop=1.0, mosaic=0.5, vertical_flip=0.5), seed)
        assert changed.boxes.shape == (0, 4)
        assert changed.labels.shape == changed.crowd.shape == (0,)


def test_same_seed_same_sample() -> None:
    sample = painted([(10, 20, 30, 50)])
    augment = AugmentOptions(vertical_flip=0.5, crop=0.5, mosaic=0.5)
    runs = [[once(sample, augment, seed) for seed in range(8)] for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert a.image.equal(b.image)
        assert a.boxes.equal(b.boxes)
    assert len({tuple(a.image.shape) for a in runs[0]}) > 1  # and another seed another one


def test_the_source_is_not_painted_over() -> None:
    """It may be in a cache."""
    sample = painted([(10, 20, 30, 50), (50, 5, 80, 60)])
    image, boxes = sample.image.clone(), sample.boxes.clone()
    for seed in range(10):
        once(sample, AugmentOptions(scale_min=0.9, scale_max=1.1, crop=0.5, mosaic=0.5, vertical_flip=0.5), seed)
        once(sample, replace(STILL, color=1.0, flip=0.5), seed)
    assert sample.image.equal(image)
    assert sample.boxes.equal(boxes)


@pytest.mark.parametrize(("progress", "images"), [(0.0, 4), (0.79, 4), (0.8, 1), (1.0, 1)])
def test_mosaics_stop_before_the_end(progress: float, images: int) -> None:
    asked = []
    sample = painted([(10, 20, 30, 50)])
    transform = TrainTransform(replace(STILL, mosaic=1.0, mosaic_until=0.8), PREPROCESS)
    transform(lambda index: asked.append(index) or sample, 0, 1, progress=progress)  # type: ignore[func-returns-value]
    assert len(asked) == images


def test_colour_changes_pixels_but_no_boxes() -> None:
    sample = replace(painted([(10, 20, 30, 50)]), image=torch.full((3, 64, 96), 100, dtype=torch.uint8))
    changed = once(sample, replace(STILL, color=0.5), seed=1)
    assert not changed.image.equal(sample.image)
    assert changed.image.dtype == torch.uint8
    assert changed.boxes.equal(sample.boxes)


def test_scale_is_between_its_limits_and_even_on_a_log_scale() -> None:
    """From 1/2 to 2, half of the draws are below 1."""
    sample = painted([(0, 0, 96, 64)])
    transform = TrainTransform(replace(STILL, scale_min=0.5, scale_max=2.0), PREPROCESS)
    torch.manual_seed(0)
    smaller = [transform(lambda _: sample, 0, 1, 0.0).size[1] for _ in range(200)]
    assert min(smaller) >= 48
    assert max(smaller) == 96  # cut to the canvas
    assert 70 <= sum(width < 96 for width in smaller) <= 130


def test_a_crop_of_sides_keeps_three_quarters_of_each_and_the_place_of_every_pixel() -> None:
    sample, sizes = painted([(10, 20, 30, 50), (40, 1, 90, 60)]), set()
    for seed in range(60):
        torch.manual_seed(seed)
        cropped = _side_crop(sample)
        assert_on_objects(cropped, 0)
        sizes.add(cropped.size)
    heights, widths = zip(*sizes, strict=True)
    assert 48 <= min(heights) < 52  # 3/4 of 64
    assert 60 < max(heights) <= 64
    assert 72 <= min(widths) < 77  # 3/4 of 96
    assert 91 < max(widths) <= 96


def test_a_crop_of_sides_that_would_lose_every_object_is_none() -> None:
    sample = painted([(0, 0, 2, 2)])
    for seed in range(30):
        torch.manual_seed(seed)
        cropped = _side_crop(sample)
        assert len(cropped.boxes) == 1
    empty = _side_crop(painted([]))
    assert empty.boxes.shape == (0, 4)
    assert _side_crop(painted([], 1, 1)).size == (1, 1)


def test_cutout_blackens_a_few_small_places_of_a_copy() -> None:
    # As published: from 4 x 4 to 48 x 48, no side more than twice the other but for 48 x 32, and 16 x 4 is none.
    assert len(HOLE_SIZES) == 13
    assert {(4, 4), (4, 8), (8, 4), (16, 8), (32, 48), (48, 48)} <= set(HOLE_SIZES)
    assert (4, 16) not in HOLE_SIZES
    sample = replace(painted([(10, 20, 30, 50)], 400, 400), image=torch.full((3, 400, 400), 200, dtype=torch.uint8))
    areas = []
    for seed in range(40):
        changed = once(sample, replace(STILL, cutout=1.0), seed, Preprocess(long_side=400, short_side=400))
        assert set(changed.image.unique().tolist()) == {0, 200}
        black = changed.image == 0
        assert black.all(dim=0).equal(black.any(dim=0))  # of all three colours
        assert changed.boxes.equal(sample.boxes)
        areas.append(int(black[0].sum()))
    # 5 to 10 of 16 to 2304 pixels, some of which are beyond the border.
    assert max(areas) <= 10 * 48 * 48
    assert len(set(areas)) > 30
    assert (sample.image == 200).all()
    assert once(painted([], 1, 1), replace(STILL, cutout=1.0), preprocess=PREPROCESS).size == (64, 64)


def test_cutout_and_crops_of_sides_come_as_often_as_asked() -> None:
    sample = replace(painted([(10, 20, 90, 60)]), image=torch.full((3, 64, 96), 200, dtype=torch.uint8))
    changed = [once(sample, replace(STILL, cutout=0.5, side_crop=0.5), seed) for seed in range(100)]
    assert 30 < sum(bool((c.image == 0).any()) for c in changed) < 70
    assert 30 < sum(not c.boxes.equal(sample.boxes) for c in changed) < 70


def test_a_crop_that_would_lose_every_object_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, transform = painted([(30, 20, 50, 50)]), TrainTransform(STILL, PREPROCESS)
    crop = {"top": 0, "left": 0, "height": 64, "width": 33}  # 3 of the object's 20 columns
    monkeypatch.setattr(transform.iou_crop, "make_params", lambda _: crop)
    assert transform._iou_crop(sample) is sample


def test_a_cut_may_be_anywhere() -> None:
    image = torch.arange(5 * 7).view(1, 5, 7).expand(3, 5, 7).to(torch.uint8)
    nothing = torch.zeros(0, dtype=torch.int64)
    sample = Sample(image, torch.zeros(0, 4), nothing, nothing.bool())
    torch.manual_seed(0)
    firsts = {divmod(int(_cut(sample, (3, 4)).image[0, 0, 0]), 7) for _ in range(300)}
    assert firsts == {(y, x) for y in range(3) for x in range(4)}


def test_half_of_the_scales_are_below_the_geometric_middle() -> None:
    transform = TrainTransform(replace(STILL, scale_min=0.5, scale_max=2.0), PREPROCESS)
    torch.manual_seed(0)
    widths = [transform(lambda _: painted([(0, 0, 96, 64)]), 0, 1, 0.0).size[1] for _ in range(1000)]
    # 500 ± 3 standard deviations of 16; of scales that are even themselves a third would be below 1.
    assert 450 <= sum(width < 96 for width in widths) <= 550
