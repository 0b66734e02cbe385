from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

import tightbox
from tests.helpers.models import tiny_model
from tightbox.errors import UserError
from tightbox.models import create_model, load, start_from
from tightbox.options import BackboneOptions, Preprocess


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model().save(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({k: v for k, v in (card | changes).items() if v is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "weights.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    model = tiny_model(class_names=["b", "a", "ä"], preprocess=Preprocess(long_side=96, short_side=64), nms_iou=0.5)
    model.train()
    model.loss([torch.rand(3, 64, 64)], [_nothing()])  # batch norms with statistics of their own
    model.metrics = {"ap": 0.5}
    folder = model.save(tmp_path / "new" / "model")
    loaded = tightbox.load(folder)
    assert loaded.class_names == ("b", "a", "ä")
    assert loaded.preprocess == Preprocess(long_side=96, short_side=64)
    assert loaded.options == model.options
    assert loaded.backbone.options == model.backbone.options
    assert loaded.metrics == {"ap": 0.5}
    assert not loaded.training
    image = torch.rand(3, 50, 70)
    ours, theirs = model.eval().predict(image), loaded.predict(image)
    assert len(ours) > 0
    for name in ("boxes", "scores", "labels", "ious"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_card_is_readable_and_says_everything(saved: Path) -> None:
    assert sorted(os.listdir(saved)) == ["card.json", "weights.safetensors"]
    card = json.loads((saved / "card.json").read_text())
    assert card["format"] == 1
    assert card["class_names"] == ["cat", "dog"]
    assert card["preprocess"] == {"long_side": 64, "short_side": 64}
    assert card["backbone"]["name"] == "test_resnet"
    assert card["options"]["channels"] == 32


def test_loading_asks_for_no_pretrained_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_card(folder, backbone={"name": "test_resnet", "pretrained": True})
    asked: list[bool] = []
    real = timm.create_model

    def create(*args: Any, **options: Any) -> Any:
        asked.append(options.get("pretrained", False))
        return real(*args, **options)

    monkeypatch.setattr("timm.create_model", create)
    assert load(folder).backbone.options == BackboneOptions(name="test_resnet", pretrained=False)
    assert asked == [False, False]


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    loaded = load(folder).state_dict()
    assert torch.get_rng_state().equal(before)
    stored = safetensors.torch.load_file(folder / "weights.safetensors")
    assert all(value.equal(stored[name]) for name, value in loaded.items())
    tiny_model()
    assert not torch.get_rng_state().equal(before)


def _drop_card(folder: Path) -> None:
    (folder / "card.json").unlink()


def _cut_card(folder: Path) -> None:
    path = folder / "card.json"
    path.write_bytes(path.read_bytes()[:100])


def _cut_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_drop_card, "is not a checkpoint: it has no card.json; give the folder"),
        (_cut_card, "card.json is damaged .*; copy the checkpoint again"),
        (lambda f: (f / "card.json").write_text("[]"), "card.json is damaged"),
        (lambda f: (f / "card.json").write_bytes(b"\xff\xfe\x00"), "card.json is damaged"),
        (lambda f: edit_card(f, format=2), "has format 2; this tightbox reads 1: upgrade tightbox"),
        (lambda f: edit_card(f, options=None), "card.json is damaged .*options"),
        (lambda f: edit_card(f, preprocess={"size": 3}), "card.json is damaged"),
        (
            lambda f: edit_card(f, preprocess={"long_side": 10**9}),
            r"card.json: long_side is .*; it must be from 32",
        ),
        (lambda f: edit_card(f, options={"channels": 10**9}), r"card.json: channels is 1000000000; it must be at most"),
        (lambda f: edit_card(f, options={"tower_depth": 10**9}), r"card.json: tower_depth is 1000000000; it must be"),
        (lambda f: edit_card(f, class_names=[1, 2]), r"card.json: class_names are \[1, 2\]"),
        (lambda f: edit_card(f, model=[]), r"card.json: there is no model named"),
        (lambda f: (f / "card.json").write_text("[" * 5000), "nested more than 100 levels"),
        (lambda f: (f / "card.json").unlink() or (f / "card.json").mkdir(), "is not a checkpoint"),
        (lambda f: edit_card(f, model="yolo"), "no model named 'yolo'; there is: vfnet"),
        (lambda f: edit_card(f, options={"chanels": 32}), "vfnet has no option chanels; it has"),
        (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors cannot be read"),
        (_cut_weights, "weights.safetensors cannot be read .*; copy the checkpoint again"),
        (lambda f: (f / "weights.safetensors").write_bytes(b""), "weights.safetensors cannot be read"),
        (lambda f: edit_card(f, class_names=["a", "b", "c"]), r"head.classes.* is \(2.*, the model's \(3"),
        (
            lambda f: edit_weights(f, lambda t: (t.pop("head.box.bias"), t.pop("fpn.p6.bias"))),
            "lacks fpn.p6.bias and 1 more tensors",
        ),
        (lambda f: edit_weights(f, lambda t: t.update(z=torch.ones(1))), "holds z and 0 more tensors"),
    ],
)
def test_damage_is_one_sentence(folder: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a checkpoint"):
        load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("file", ["weights.safetensors", "card.json"])
def test_a_full_disk_keeps_the_previous_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real: dict[str, Callable[..., int]] = {"write_bytes": Path.write_bytes, "write_text": Path.write_text}

    def refuse(name: str) -> Callable[..., int]:
        def write(path: Path, *args: Any, **kwargs: Any) -> int:
            if file in path.name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real[name](path, *args, **kwargs)

        return write

    other = tiny_model(class_names=["other", "classes", "three"])
    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(Path, name, refuse(name))
        with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
            other.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert load(folder).class_names == ("cat", "dog")


def test_nothing_is_unpickled() -> None:
    source = Path(tightbox.__file__).parent
    hits = {
        str(path.relative_to(source)): re.findall(r"(?:torch|np|pickle)\.loads?\(.*|joblib|Unpickler\(", text)
        for path in source.rglob("*.py")
        if (text := path.read_text(encoding="utf-8"))
    }
    # mmdetection's files are read by PyTorch's own reader of tensors and plain values, which runs nothing.
    reader = 'torch.load(path, map_location="cpu", weights_only=True)'
    assert {name: found for name, found in hits.items() if found} == {"models/mmdet/read.py": [reader]}


@pytest.mark.parametrize(("names", "same"), [(["cat", "dog"], True), (["dog", "cat"], False), (["cow"], False)])
def test_starting_from_a_checkpoint(saved: Path, names: list[str], same: bool) -> None:
    torch.manual_seed(1)
    model = tiny_model(class_names=names)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    assert start_from(model, saved) is same
    first = safetensors.torch.load_file(saved / "weights.safetensors")
    for name, value in model.state_dict().items():
        anew = not same and name in ("head.classes.weight", "head.classes.bias")
        assert value.equal((fresh if anew else first)[name]), name
    with pytest.raises(UserError, match=r"weights\.safetensors: .* is \(32, .*, the model's \(64"):
        start_from(tiny_model(channels=64), saved)


@pytest.mark.parametrize(
    ("name", "backbone", "sentence"),
    [
        ("unitbox", "test_resnet", "holds vfnet on test_resnet, not unitbox on test_resnet; leave out --model and"),
        ("vfnet", "test_convnext", "holds vfnet on test_resnet, not vfnet on test_convnext; leave out --model and"),
    ],
)
def test_starting_from_another_kind_of_model(saved: Path, name: str, backbone: str, sentence: str) -> None:
    model = create_model(name, class_names=["cat", "dog"], backbone=backbone, pretrained_backbone=False)
    with pytest.raises(UserError, match=sentence):
        start_from(model, saved)


def _nothing() -> tightbox.Targets:
    return tightbox.Targets.of(torch.zeros(0, 4), torch.zeros(0))
