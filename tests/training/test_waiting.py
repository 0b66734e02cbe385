"""A GPU works ahead of the process that feeds it, until that asks for a number: a training step must not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchvision.ops import deform_conv2d

from tests.helpers.models import image_batch, objects, tiny_iou_net, tiny_model, tiny_retinanet, tiny_unitbox
from tightbox.models import Detector, detector, roi_head, unitbox, vfnet
from tightbox.ops import csr_triton, greedy_nms_triton, group_norm_relu_triton
from tightbox.ops.star_conv import StarSampling
from tightbox.options import TrainOptions
from tightbox.structures import ImageBatch, Targets
from tightbox.training.optimizer import MovingAverage, build_optimizer

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"}
WAITS |= {"bincount", "equal", "is_nonzero"}
dense_detectors = pytest.mark.parametrize("make", [tiny_model, tiny_retinanet])


def unitbox_of_two() -> Detector:
    """A UnitBox of two classes."""
    return tiny_unitbox(2)


detectors = pytest.mark.parametrize("make", [tiny_model, tiny_retinanet, tiny_iou_net, unitbox_of_two])


def waits(name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether an operator's result, or its size, depends on values: a GPU would be waited for."""
    if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        return any(rows is not None and rows.dtype in (torch.bool, torch.uint8) for rows in arguments[1])
    if name == "repeat_interleave":  # by a tensor of counts; by a number it is another operator
        return named.get("output_size") is None
    return name in WAITS


class Counting(TorchDispatchMode):
    """How often each operator is called within it that waits, in backward passes too; and how many there are in all.

    Of an operator of our own no more is seen than its name. What it does on a GPU is done by kernels in Triton.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2].partition(".")[0]
        self.calls[name] += 1
        self.waits[name] += waits(name, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the ways that differ between a CPU, which saves work by asking for numbers, and a GPU."""
    monkeypatch.setattr(vfnet, "star_conv2d", by_torchvision)
    for module in (detector, roi_head, unitbox):
        monkeypatch.setattr(module, "uses_triton", lambda _: True)


def by_torchvision(input: Tensor, star: StarSampling, weight: Tensor) -> Tensor:
    """The star convolution without the CPU's sparse matrices, which ask for the range of their columns."""
    output: Tensor = deform_conv2d(input, star.offsets, weight, padding=1)
    return output


def batch() -> tuple[ImageBatch, list[Targets]]:
    """Two images of two sizes, one of them without objects, both with a region to be ignored."""
    ignore = [[0.0, 0.0, 9.0, 9.0]]
    images = image_batch((64, 50), (40, 64))
    return images, [objects((4.0, 4, 44, 60), (10, 5, 30, 20), ignore=ignore), objects(ignore=ignore)]


def make_step(model: Detector, device: str) -> Callable[[ImageBatch, list[Targets]], None]:
    """One step of a training, as `fit` makes it."""
    options = TrainOptions()
    optimizer, average = build_optimizer(model, options), MovingAverage(model, 0.9)

    def step(images: ImageBatch, targets: list[Targets]) -> None:
        images, targets = images.to(device), [target.to(device) for target in targets]
        losses = model.loss(images, targets)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)

    return step


@detectors
@pytest.mark.usefixtures("_as_on_a_gpu")
def test_a_step_asks_for_no_number(make: Callable[[], Detector]) -> None:
    step, (images, targets) = make_step(make().train(), "cpu"), batch()
    step(images, targets)
    with Counting() as counting:
        step(images, targets)
    # The average asks for its number of steps and the gradients' parts for none; that number is on the CPU everywhere.
    assert +counting.waits == {"_local_scalar_dense": 1}
    assert counting.calls["convolution_backward"] > 10


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.nonzero(),
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.unique(),
        lambda x: x.unique(dim=0),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x.long().bincount(),
        lambda x: x.clone().__setitem__(x > 0, x[:2]),
    ],
)
def test_what_asks_for_a_number_is_noticed(ask: Callable[[Tensor], Any]) -> None:
    with Counting() as counting:
        ask(torch.tensor([1.0, 0.0, 2.0]))
    assert counting.waits.total() > 0


def test_what_has_a_fixed_size_is_not_taken_for_a_question() -> None:
    x, rows = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([2, 0])
    with Counting() as counting:
        torch.where(x > 0, x, 0)[rows].repeat_interleave(2)
        x.repeat_interleave(torch.tensor([1, 0, 2]), output_size=3)
        x.clone()[rows] = 0.0
        x.masked_fill(x > 0, 3).topk(2)
    assert counting.waits.total() == 0


@contextmanager
def pretended_gpu(model: Detector) -> Iterator[None]:
    """Tensors without values, which say they are on a GPU, and refuse what depends on a value or mixes devices."""
    with FakeTensorMode():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                empty = torch.empty_strided(weight.shape, weight.stride(), device="cuda")
                setattr(module, name, torch.nn.Parameter(empty))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))
        yield


@detectors
@pytest.mark.usefixtures("_as_on_a_gpu")
def test_losses_stay_on_a_gpu_and_wait_for_nothing(
    make: Callable[[], Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((csr_triton, "launch"), (greedy_nms_triton, "keep"), (group_norm_relu_triton, "_launch")):
        monkeypatch.setattr(module, name, lambda *_: None)  # there is nothing to compute with
    monkeypatch.setattr(group_norm_relu_triton, "statistics", lambda table, groups, _: table.new_empty(2, 2, groups))
    model = make().train()
    with pretended_gpu(model):
        boxes, labels = torch.empty(2, 4, device="cuda"), torch.empty(2, dtype=torch.int64, device="cuda")
        images = ImageBatch(torch.empty(2, 3, 64, 64, device="cuda"), ((64, 50), (40, 64)))
        losses = model.loss(images, [Targets(boxes, labels, boxes[:1]), Targets(boxes[:0], labels[:0], boxes)])
        assert {loss.device.type for loss in losses.values()} == {"cuda"}
        if model.all_together:
            found = model.eval()._found_together(images.pixels, labels[None].expand(2, -1))
            assert all(part.is_cuda for part in found)
        for ask in (lambda: boxes[labels > 0].sum(), labels.tolist, lambda: int(labels.sum())):
            with pytest.raises(RuntimeError):  # so that it would have been noticed above
                ask()


@pytest.mark.gpu
@detectors
def test_a_step_on_a_gpu_does_not_wait(make: Callable[[], Detector]) -> None:
    step = make_step(make().train().to("cuda"), "cuda")
    images, targets = batch()
    pinned, pinned_targets = images.pin_memory(), [target.pin_memory() for target in targets]
    step(pinned, pinned_targets)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            step(pinned, pinned_targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@dense_detectors
def test_a_detection_on_a_gpu_does_not_wait(make: Callable[[], Detector]) -> None:
    model, images = make().eval().to("cuda"), batch()[0].to("cuda")
    model.detect(images)
    with torch.no_grad():
        sizes = torch.tensor(images.sizes, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            model._found_together(images.pixels, sizes)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_loader_pins_batches() -> None:
    data: Any = [0]
    images, targets = next(iter(DataLoader(data, collate_fn=lambda _: batch(), pin_memory=True)))
    assert images.pixels.is_pinned()
    assert targets[0].boxes.is_pinned()
    assert all(target.ignore.is_pinned() for target in targets)
