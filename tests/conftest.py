"""What all tests have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from filelock import FileLock

from tests.helpers.exported import (
    Exported,
    export_iou_net,
    export_published_vfnet,
    export_retinanet,
    export_unitbox,
    read_exported,
)
from tests.helpers.references import SHARED
from tightbox.structures import Targets

hypothesis.settings.register_profile("untimed", deadline=None)  # as nothing is timed in tests
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "complete: needs the folder that the slices of reference values were cut from")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without that folder, or a GPU, such tests are not there, rather than skipped; others test the same things."""
    there = {"complete": SHARED.is_dir(), "gpu": torch.cuda.is_available()}
    missing = [marker for marker, is_there in there.items() if not is_there]
    absent = [item for item in items if any(map(item.get_closest_marker, missing))]
    config.hook.pytest_deselected(items=absent)
    items[:] = [item for item in items if item not in absent]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the tests of a module make their tensors: on the CPU, and again on a GPU, if there is one, in float32."""
    device = torch.device(request.param)
    if device.type == "cpu":
        yield device
        return
    # Products of fewer digits, which PyTorch allows convolutions, would need other tolerances.
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    constants = {name: value for name, value in vars(request.module).items() if _can_move(value)}
    vars(request.module).update({name: _moved(value, device) for name, value in constants.items()})
    with device:
        yield device
    vars(request.module).update(constants)
    torch.backends.cudnn.allow_tf32 = allowed


def _can_move(value: object) -> bool:
    return isinstance(value, (torch.Tensor, Targets)) or (isinstance(value, list) and all(map(_can_move, value)))


def _moved(value: Any, device: torch.device) -> Any:
    return [part.to(device) for part in value] if isinstance(value, list) else value.to(device)


@pytest.fixture(scope="session")
def exported_vfnet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A calibrated VFNet that was imported, and its ONNX file; made once, as the exporter takes its time."""
    return _made_once(tmp_path_factory, "exported", export_published_vfnet)


@pytest.fixture(scope="session")
def exported_iou_net(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same of an IoU-Net that does not refine."""
    return _made_once(tmp_path_factory, "exported_iou_net", export_iou_net)


@pytest.fixture(scope="session")
def exported_retinanet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same of an IoU-aware RetinaNet."""
    return _made_once(tmp_path_factory, "exported_retinanet", export_retinanet)


@pytest.fixture(scope="session")
def exported_unitbox(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same of a UnitBox, without calibration."""
    return _made_once(tmp_path_factory, "exported_unitbox", export_unitbox)


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Exported]) -> Exported:
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    base = factory.getbasetemp()
    folder = (base.parent if parallel else base) / name
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "model.onnx").exists():
            folder.mkdir()
            return make(folder)
    return read_exported(folder)
