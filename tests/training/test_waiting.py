"""A GPU works ahead of the process that feeds it, until that asks for a number: a training step must not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchvision.ops import deform_conv2d

from tests.helpers.models import image_batch, objects, tiny_model, tiny_retinanet
from tightbox.models import Detector, vfnet
from tightbox.ops import csr_triton, greedy_nms_triton, group_norm_relu_triton
from tightbox.ops.star_conv import StarSampling
from tightbox.options import TrainOptions
from tightbox.structures import ImageBatch, Targets
from tightbox.training.optimizer import build_optimizer, moving_average

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique2"}
dense_detectors = pytest.mark.parametrize("make", [tiny_model, tiny_retinanet])


class Counting(TorchDispatchMode):
    """How often each operator is called within it, in backward passes too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


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
    optimizer, average = build_optimizer(model, options), moving_average(model, 0.9)

    def step(images: ImageBatch, targets: list[Targets]) -> None:
        images, targets = images.to(device), [target.to(device) for target in targets]
        losses = model.loss(images, targets)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)

    return step


@dense_detectors
def test_a_step_asks_for_no_number(make: Callable[[], Detector], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vfnet, "star_conv2d", by_torchvision)
    step, (images, targets) = make_step(make().train(), "cpu"), batch()
    step(images, targets)
    with Counting() as counting:
        step(images, targets)
    found = {name: count for name, count in counting.calls.items() if name in WAITS}
    # The average asks for its number of steps and the gradients' parts for none; that number is on the CPU everywhere.
    assert found == {"aten::_local_scalar_dense": 1}
    assert counting.calls["aten::convolution_backward"] > 10


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


@dense_detectors
def test_losses_stay_on_a_gpu_and_wait_for_nothing(
    make: Callable[[], Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((csr_triton, "_launch"), (greedy_nms_triton, "keep"), (group_norm_relu_triton, "_launch")):
        monkeypatch.setattr(module, name, lambda *_: None)  # there is nothing to compute with
    monkeypatch.setattr(group_norm_relu_triton, "statistics", lambda table, groups, _: table.new_empty(2, 2, groups))
    model = make().train()
    with pretended_gpu(model):
        boxes, labels = torch.empty(2, 4, device="cuda"), torch.empty(2, dtype=torch.int64, device="cuda")
        images = ImageBatch(torch.empty(2, 3, 64, 64, device="cuda"), ((64, 50), (40, 64)))
        losses = model.loss(images, [Targets(boxes, labels, boxes[:1]), Targets(boxes[:0], labels[:0], boxes)])
        assert {loss.device.type for loss in losses.values()} == {"cuda"}
        assert all(found.is_cuda for found in model.eval()._found_together(images.pixels, labels[None].expand(2, -1)))
        with pytest.raises(RuntimeError):  # so that the above would have been noticed
            boxes[labels > 0].sum()


@pytest.mark.gpu
@dense_detectors
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
