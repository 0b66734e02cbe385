"""The function that CVAT's own tools load, called and checked by its SDK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.models import tiny_model, tiny_unitbox

cvat_sdk = pytest.importorskip("cvat_sdk", reason="cvat-sdk, which defines what such a function is, is missing")

from cvat_cli._internal.common import FunctionLoader  # noqa: E402
from cvat_cli._internal.parsers import parse_function_parameter  # noqa: E402
from cvat_sdk import models  # noqa: E402
from cvat_sdk.attributes import attribute_value_validator  # noqa: E402
from cvat_sdk.auto_annotation import DetectionFunctionContext, DetectionFunctionSpec  # noqa: E402


class Context(DetectionFunctionContext):  # type: ignore[misc]  # cvat-sdk has no types
    frame_name = "a.jpg"
    conv_mask_to_poly = False

    def __init__(self, threshold: float | None) -> None:
        self._threshold = threshold

    @property
    def conf_threshold(self) -> float | None:
        return self._threshold


def loaded(*parameters: str) -> Any:
    """As `cvat-cli task auto-annotate … --function-module … -p …` loads it, with the checks it makes."""
    given = dict(parse_function_parameter(parameter) for parameter in parameters)
    return FunctionLoader("tightbox.integrations.cvat", None, given).load()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_model(nms_iou=1.0).save(tmp_path / "model")


def test_labels_carry_the_predicted_iou(checkpoint: Path) -> None:
    spec = loaded(f"checkpoint=str:{checkpoint}", "device=str:cpu").spec
    assert isinstance(spec, DetectionFunctionSpec)
    assert [(label.id, label.name, label.type) for label in spec.labels] == [
        (0, "cat", "rectangle"),
        (1, "dog", "rectangle"),
    ]
    for label in spec.labels:
        assert [attribute.name for attribute in label.attributes] == ["predicted_iou", "score"]


def test_boxes_are_those_of_predict(checkpoint: Path) -> None:
    function = loaded(f"checkpoint=str:{checkpoint}", "device=str:cpu")
    image = Image.effect_noise((80, 60), 90).convert("RGB")
    shapes = function.detect(Context(0.0), image)
    expected = tiny_model_like(checkpoint).predict(image)
    assert expected.ious is not None
    assert len(shapes) == len(expected) > 0
    attributes = {attribute.id: attribute for attribute in function.spec.labels[0].attributes}
    for i, shape in enumerate(shapes):
        assert isinstance(shape, models.LabeledShapeRequest)
        assert shape.type.value == "rectangle"
        assert shape.frame == 0
        assert not hasattr(shape, "id")
        assert not hasattr(shape, "source")
        assert shape.label_id == expected.labels[i]
        assert shape.points == pytest.approx(expected.boxes[i].tolist(), abs=5.1e-4)  # rounded to a thousandth
        values = {attributes[value.spec_id].name: value.value for value in shape.attributes}
        wanted = {"predicted_iou": expected.ious[i], "score": expected.scores[i]}
        assert values == {name: str(round(100 * value.item())) for name, value in wanted.items()}
        for value in shape.attributes:
            attribute_value_validator(attributes[value.spec_id])(value.value)


def tiny_model_like(checkpoint: Path) -> Any:
    from tightbox.models import load

    return load(checkpoint)


def test_thresholds(checkpoint: Path) -> None:
    image = Image.effect_noise((80, 60), 90).convert("RGB")
    everything = tiny_model_like(checkpoint).predict(image)
    middle = everything.scores.sort().values[len(everything) // 2].item()
    function = loaded(f"checkpoint=str:{checkpoint}", "device=str:cpu")
    assert len(function.detect(Context(middle), image)) == int((everything.scores >= middle).sum())
    assert len(function.detect(Context(None), image)) == int((everything.scores >= 0.3).sum())
    tight = loaded(f"checkpoint=str:{checkpoint}", "device=str:cpu", f"min_iou=float:{middle}")
    assert len(tight.detect(Context(0.0), image)) == int((everything.ious >= middle).sum())


def test_a_detector_without_predicted_ious(tmp_path: Path) -> None:
    path = tiny_unitbox(2, threshold=0.0, score_threshold=0.0).save(tmp_path / "unitbox")
    shapes = loaded(f"checkpoint=str:{path}", "device=str:cpu").detect(Context(0.0), Image.new("RGB", (64, 64)))
    assert len(shapes) > 0
    assert all([value.spec_id for value in shape.attributes] == [1] for shape in shapes)  # the score alone
