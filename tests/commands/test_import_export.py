"""`tightbox import` and `export`, and training that starts from what was imported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

import tightbox
from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.data import one_image_coco
from tests.helpers.models import small_state, small_vfnet
from tests.helpers.references import DATA_ROOTS, real_data


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of mmdetection for two classes whose names it does not hold."""
    path = tmp_path_factory.mktemp("published") / "vfnet_r18.pth"
    state = small_state(classes=2)
    for part in ("weight", "bias"):
        state[f"bbox_head.vfnet_cls.{part}"] += 1  # not where training starts
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def imported(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "r18"
    assert status(["import", str(published), "--out", str(folder), "--class-names", "cat", "dog"]) == 0
    return folder


def coco(root: Path, names: list[str], splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        one_image_coco(root / f"{split}.json", root / "images" / "a.png", names, (5, 5, 40, 30), (60, 40))
    return root


def test_import_says_what_it_found(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("traffic light\n\ndog\n")
    arguments = ["import", str(published), "--out", str(tmp_path / "r18"), "--top-k-of", "pairs"]
    assert status([*arguments, "--class-names", str(tmp_path / "names.txt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = len(small_state(classes=2))
    assert lines == [
        f"found VFNet on ResNet-18: {count} tensors, all used",
        "2 classes: traffic light, dog",
        f"written: {tmp_path / 'r18'}",
        f"next: tightbox predict {tmp_path / 'r18'} YOUR_IMAGES --out predictions",
    ]
    card = json.loads((tmp_path / "r18" / "card.json").read_text())
    assert card["class_names"] == ["traffic light", "dog"]
    assert card["metrics"] == {"imported_from": "vfnet_r18.pth"}
    assert card["preprocess"] == {"long_side": 1333, "short_side": 800}
    assert (card["backbone"]["frozen_stages"], card["backbone"]["frozen_norm"]) == (1, True)
    assert card["options"]["top_k_of"] == "pairs"
    assert tightbox.load(tmp_path / "r18").class_names == ("traffic light", "dog")


def test_there_and_back_is_exact(published: Path, imported: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.pth"
    assert status(["export", str(imported), "--format", "mmdet", "--out", str(back)]) == 0
    first, second = (torch.load(path, weights_only=True) for path in (published, back))
    assert second["meta"]["CLASSES"] == ("cat", "dog")
    assert second["state_dict"].keys() == first["state_dict"].keys()
    assert all(second["state_dict"][name].equal(value) for name, value in first["state_dict"].items())
    assert status(["import", str(back), "--out", str(tmp_path / "again")]) == 0  # the classes are in the file now
    assert (
        load_file(tmp_path / "again" / "weights.safetensors").keys()
        == load_file(imported / "weights.safetensors").keys()
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["import", "{published}", "--out", "{out}"], ["trained on 2 classes", "name them with --class-names"]),
        (["import", "{published}", "--out", "{out}", "--class-names", "a"], ["2 classes, and 1 class names are given"]),
        (
            ["import", "{published}", "--out", "{out}", "--class-names", "{published}"],
            ["is not text at byte", "save it as UTF-8"],
        ),
        (["import", "nowhere.pth", "--out", "{out}"], ["nowhere.pth is not a file"]),
        (["import", "{imported}", "--out", "{out}"], ["is not a file; give the .pth file"]),
        (["import", "{imported}/card.json", "--out", "{out}"], ["card.json is cut off or is no PyTorch checkpoint"]),
        (["import", "{imported}/weights.safetensors", "--out", "{out}"], ["looks like a tightbox model already"]),
        (["import", "{published}"], ["out"]),
        (["export", "{imported}", "--format", "tflite", "--out", "{out}"], ["--format", "tflite"]),
        (["export", "{imported}", "--out", "{out}"], ["format"]),
        (["export", "nowhere", "--format", "mmdet", "--out", "{out}"], ["nowhere is not a checkpoint"]),
        (["export", "{imported}", "--format", "mmdet", "--out", "{imported}"], ["is a folder; name the file to write"]),
    ],
)
def test_mistakes_are_one_sentence(
    published: Path,
    imported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    parts: list[str],
) -> None:
    out = tmp_path / "out"
    assert status([a.format(published=published, imported=imported, out=out) for a in arguments]) == 2
    assert_one_sentence(capsys, *parts)
    assert not out.exists()


# Fine-tuning

FAST = ["--epochs", "1", "--batch-size", "1", "--workers", "0", "--precision", "fp32", "--ema", "0", "--mosaic", "0"]
# Nothing moves: what is saved is what training started from.
STILL = ["--lr", "1e-30", "--weight-decay", "0", "--long-side", "64", "--short-side", "64"]


def fine_tune(imported: Path, data: Path, out: Path, *more: str) -> int:
    return status(["train", "--init", str(imported), "--data", str(data), "--out", str(out), *FAST, *STILL, *more])


@pytest.fixture
def _no_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def create(*args: object, pretrained: bool = False, **kwargs: object) -> object:
        assert not pretrained, "weights were asked for that the checkpoint overwrites"
        return real(*args, **kwargs)

    monkeypatch.setattr("timm.create_model", create)


@pytest.mark.usefixtures("_no_pretrained_weights")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog"], "all weights"),
        (["cat", "cow"], "all weights but those of the class layer, which starts anew because the class names differ"),
        (["cow"], "all weights but those of the class layer, which starts anew because the class names differ"),
    ],
)
def test_only_the_class_layer_starts_anew(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], message: str
) -> None:
    assert fine_tune(imported, coco(tmp_path / "data", names), tmp_path / "out", "--pretrained", "true") == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"starting from {imported}: {message}" in shown
    before = load_file(imported / "weights.safetensors")
    after = load_file(tmp_path / "out" / "last" / "weights.safetensors")
    assert before.keys() == after.keys()
    moved = {
        name
        for name in before
        if before[name].shape != after[name].shape or not torch.allclose(before[name], after[name])
    }
    assert moved == (set() if names == ["cat", "dog"] else {"head.classes.weight", "head.classes.bias"})
    assert tightbox.load(tmp_path / "out" / "last").class_names == tuple(names)


@pytest.mark.usefixtures("_no_pretrained_weights")
def test_options_that_are_not_given_come_from_the_checkpoint(imported: Path, tmp_path: Path) -> None:
    data = coco(tmp_path / "data", ["cow"], splits=("train",))
    (tmp_path / "recipe.yaml").write_text(f"init: {imported}\nvfnet:\n  nms_iou: 0.5\n")
    out = tmp_path / "out"
    arguments = ["--config", str(tmp_path / "recipe.yaml"), "--data", str(data), "--out", str(out), *FAST]
    assert status(["train", *arguments, "--short-side", "64", "--frozen-stages", "2", "--vfnet.top-k", "7"]) == 0
    card, first = (json.loads((folder / "card.json").read_text()) for folder in (out / "last", imported))
    assert card["backbone"] == first["backbone"] | {"frozen_stages": 2}
    assert card["options"] == first["options"] | {"nms_iou": 0.5, "top_k": 7}
    assert card["preprocess"] == {"long_side": 1333, "short_side": 64}
    assert yaml.safe_load((out / "config.yaml").read_text())["init"] == str(imported)


@pytest.mark.usefixtures("_no_pretrained_weights")
def test_a_run_that_started_from_a_checkpoint_is_resumed(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out, init = coco(tmp_path / "data", ["cow"]), tmp_path / "out", tmp_path / "init"
    shutil.copytree(imported, init)
    assert fine_tune(init, data, out) == 0
    trained = load_file(out / "last" / "weights.safetensors")["head.classes.weight"]
    capsys.readouterr()
    # The same command line and the short form; the run has its own weights, the checkpoint may be gone.
    assert fine_tune(init, data, out, "--epochs", "2", "--resume") == 0
    shutil.rmtree(init)
    assert status(["train", "--out", str(out), "--epochs", "3", "--resume"]) == 0
    assert "starting from" not in capsys.readouterr().out
    epochs = [json.loads(row)["epoch"] for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3]
    torch.testing.assert_close(load_file(out / "last" / "weights.safetensors")["head.classes.weight"], trained)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--init", "nowhere"], "nowhere is not a checkpoint: it has no card.json"),
        (["--vfnet.channels", "32"], "the model's"),
        (["--model", "iou_aware_retinanet"], "holds vfnet on resnet18, not iou_aware_retinanet on resnet18"),
        (
            ["--backbone", "resnet34"],
            "holds vfnet on resnet18, not vfnet on resnet34; leave out --model and --backbone",
        ),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_said(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert fine_tune(imported, coco(tmp_path / "data", ["cow"]), tmp_path / "out", *more) == 2
    assert_one_sentence(capsys, sentence)


def test_frozen_parts_of_an_imported_model_do_not_train(imported: Path) -> None:
    model = tightbox.load(imported).train()
    assert not any(p.requires_grad for p in model.backbone.body.layer1.parameters())
    assert all(p.requires_grad for p in model.backbone.body.layer2.parameters())
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert any(m.training for m in small_vfnet().train().modules() if isinstance(m, torch.nn.BatchNorm2d))


# COCO as it is downloaded


def test_evaluating_on_the_folder_that_coco_comes_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The zip of annotations holds three kinds for both splits; the images of val2017 alone are downloaded."""
    source, root = real_data(DATA_ROOTS[0], "coco-mini", tmp_path / "source"), tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    content = json.loads((source / "val.json").read_text())
    content["images"] = content["images"][:2]
    kept = {row["id"] for row in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    assert [row["id"] for row in content["categories"]][-1] == 90
    for row in content["images"]:
        (root / "val2017" / row["file_name"]).symlink_to(source / "images" / row["file_name"])
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    shutil.copy(source / "train.json", root / "annotations" / "instances_train2017.json")
    for kind in ("person_keypoints", "captions"):
        for split in ("train", "val"):
            (root / "annotations" / f"{kind}_{split}2017.json").write_text('{"images": [], "annotations": []}')
    names = [row["name"] for row in content["categories"]]
    state = small_state(classes=80)
    torch.save({"state_dict": state}, tmp_path / "vfnet.pth")
    folder = tmp_path / "r18"
    assert status(["import", str(tmp_path / "vfnet.pth"), "--out", str(folder)]) == 0
    card = json.loads((folder / "card.json").read_text())
    assert card["class_names"] == names
    card["preprocess"] = {"long_side": 96, "short_side": 64}  # quick
    card["options"]["score_threshold"] = 0.0
    (folder / "card.json").write_text(json.dumps(card))
    capsys.readouterr()
    out = tmp_path / "out"
    assert status(["eval", str(folder), "--data", str(root), "--out", str(out)]) == 0
    assert "found COCO (annotations/instances_val2017.json): 2 images" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert {row["image_id"] for row in results} == kept
    assert {row["category_id"] for row in results} <= {row["id"] for row in content["categories"]}

    # A data set of some of the classes under ids of its own: the others find nothing to be measured by.
    few = coco(tmp_path / "few", ["zebra", "person"])
    assert status(["eval", str(folder), "--data", str(few), "--out", str(out)]) == 0
    per_class = json.loads((out / "metrics.json").read_text())["per_class"]
    assert {name for name, figures in per_class.items() if figures is not None} >= {"zebra"}
    results = json.loads((out / "results.json").read_text())
    assert {row["category_id"] for row in results} - {1, 2}  # classes that the set lacks are found under ids it lacks


def test_exporting_to_where_nothing_can_be_written(
    imported: Path, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = published / "x.pth"  # in a file
    assert status(["export", str(imported), "--format", "mmdet", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tightbox: cannot write {out}: ")
    assert error.endswith("; choose another place\n")
    assert error.count("\n") == 1
