from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from tests.helpers.commands import TINY, assert_one_sentence, status
from tests.helpers.data import cats_and_dogs, write_video
from tests.helpers.data import noise_image as image
from tests.helpers.models import tiny_model
from tightbox import __version__
from tightbox.cli import COMMANDS, build_parser, with_underscores
from tightbox.commands import train
from tightbox.models import load
from tightbox.options import BackboneOptions, Preprocess, VFNetOptions
from tightbox.training.optimizer import learning_rate_factor

SMALL = [*TINY, "--batch-size", "3", "--vfnet.channels", "32", "--vfnet.tower-depth", "1"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model().save(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A COCO folder with three training and two validation images of cats and dogs."""
    return cats_and_dogs(tmp_path / "data", {"train": range(3), "val": range(3, 5)})


# The help


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from tightbox.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = sorted({'torch', 'torchvision', 'timm', 'accelerate', 'PIL', 'numpy'} & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tightbox" in done.stdout
    assert done.stderr == ""


def test_no_command_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert status([]) == 2
    assert "train" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command: str) -> None:
    commands = build_parser()._subcommands_action
    assert commands is not None
    parser = commands._name_parser_map[command]
    bare = [action.dest for action in parser._actions if not (action.help or "").strip()]
    assert bare == []


def test_help_shows_options_with_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--batch-size" in text
    assert "--vfnet.top-k" in text
    assert "--batch_size" not in text


def test_dashes_and_underscores_are_the_same() -> None:
    given = ["train", "--batch-size=8", "--vfnet.top-k", "3", "--data", "my-data", "--out=my-out", "a--b-c"]
    assert with_underscores(given) == [
        "train", "--batch_size=8", "--vfnet.top_k", "3", "--data", "my-data", "--out=my-out", "a--b-c",
    ]  # fmt: skip
    parser = build_parser()
    dashed, underscored = (
        parser.parse_args(with_underscores(["train", "--data", "d", "--out", "o", *rest]))
        for rest in (["--batch-size", "3", "--frozen-stages", "1"], ["--batch_size", "3", "--frozen_stages", "1"])
    )
    assert dashed.as_dict() == underscored.as_dict()
    assert dashed["train"]["batch_size"] == 3


# Mistakes


def _cut_json(root: Path) -> None:
    path = root / "train.json"
    path.write_bytes(path.read_bytes()[:200])


def _lose_image(root: Path) -> None:
    (root / "images" / "1.png").unlink()


def _leave(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "arguments", "parts"),
    [
        (_leave, ["--data", "nowhere"], ["the data folder nowhere does not exist"]),
        (_leave, ["--data", "{out}"], ["no data set was recognised"]),
        (_cut_json, [], ["train.json is not valid JSON at line", "cut off"]),
        (_lose_image, [], ["1.png", "there is no such file", "--skip-unreadable true"]),
        (_lose_image, ["--workers", "1"], ["1.png", "there is no such file", "--skip-unreadable true"]),
        (_leave, ["--resume"], ["nothing to resume", "start without --resume"]),
        (_leave, ["--schedule", "linear"], ["--schedule", "cosine"]),
        (_leave, ["--lr", "fast"], ["--lr"]),
        (_leave, ["--lr", "0"], ["lr is 0.0; it must be more than 0"]),
        (_leave, ["--epochs", "0"], ["epochs is 0; it must be at least 1"]),
        (_leave, ["--workers", "-1"], ["workers is -1; it must be 0 or more"]),
        (_leave, ["--seed", "-1"], ["seed is -1; it must be 0 or more"]),
        (_leave, ["--seed", "99999999999999999999"], ["seed has more than 63 bits"]),
        (_leave, ["--scale-max", "1e9"], ["scale_max is 1000000000.0; it must be at most 10"]),
        (_leave, ["--vfnet.tower-depth", "-1"], ["tower_depth is -1; it must be 0 or more"]),
        (_leave, ["--flip", "1.5"], ["flip is 1.5; it must be in [0, 1]"]),
        (_leave, ["--color", "-1"], ["color is -1.0; it must be in [0, 1]"]),
        (_leave, ["--long-side", "8"], ["long_side is 8; it must be from 32 to 16384"]),
        (
            _leave,
            ["--vfnet.channels", "40"],
            ["channels is 40; with neck_norm or lateral_norm it must be a multiple of 32"],
        ),
        (_leave, ["--vfnet.top-k", "0"], ["top_k is 0; it must be at least 1"]),
        (_leave, ["--vfnet.assigner", "best"], ["--vfnet.assigner", "atss"]),
        (_leave, ["--backbone", "resnet81"], ["no model named 'resnet81'; did you mean"]),
        (_leave, ["--frozen-stages", "7"], ["cannot tell where stage 7"]),
        (_leave, ["--no-such-option", "1"], ["no_such_option"]),
        (_leave, ["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_mistakes_in_training_are_one_sentence(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    arguments: list[str],
    parts: list[str],
) -> None:
    damage(data)
    out = tmp_path / "out"
    given = ["train", "--data", str(data), "--out", str(out), *SMALL, *arguments]
    (tmp_path / "empty").mkdir()
    assert status([a.format(out=tmp_path / "empty") for a in given]) == 2
    assert_one_sentence(capsys, *parts)
    assert not (out / "last").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("epochs: [1", "config"),  # not YAML
        ("epochz: 1", "epochz"),  # an unknown option
        ("epochs: many", "epochs"),  # of a wrong type
        ("- 1\n- 2", "config"),  # a list
        ("epochs: 1\nmodel:", "--model is None; choose from vfnet"),  # nothing
        ("epochs: 1\nvfnet:", "vfnet has no options in the configuration"),
    ],
)
def test_mistakes_in_a_configuration_are_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, part: str
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    arguments = ["train", "--config", str(tmp_path / "bad.yaml"), "--data", str(data), "--out", str(tmp_path / "out")]
    assert status(arguments) == 2
    assert_one_sentence(capsys, part)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["--data", "--out"])
def test_required_options(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"--data": "d", "--out": "o"}
    del given[missing]
    assert status(["train", *(part for pair in given.items() for part in pair)]) == 2
    assert_one_sentence(capsys, missing[2:])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["explode"], ["explode"]),
        (["eval", "{checkpoint}", "--data", "nowhere"], ["nowhere does not exist"]),
        (["eval", "nowhere", "--data", "{data}"], ["nowhere is not a checkpoint: it has no card.json"]),
        (["eval", "{checkpoint}", "--data", "{data}", "--split", "test"], ["has no split 'test'; it has train, val"]),
        (["eval", "{checkpoint}", "--data", "{data}", "--batch-size", "0"], ["--batch-size"]),
        (["eval", "{checkpoint}", "--data", "{data}", "--workers", "-1"], ["--workers"]),
        (["predict", "nowhere", "{data}/images", "--out", "{out}"], ["nowhere is not a checkpoint"]),
        (["predict", "{checkpoint}", "no/*.jpg", "--out", "{out}"], ["there is no image or video at no/*.jpg"]),
        (["predict", "{checkpoint}", "{out}/nothing.jpg", "--out", "{out}"], ["there is no image or video at"]),
        (["predict", "{checkpoint}", "{checkpoint}", "--out", "{out}"], ["there is no image or video at"]),
        (["predict", "{checkpoint}", "{data}/images", "--out", "{out}", "--score-threshold", "2"], ["between 0 and 1"]),
        (["predict", "{checkpoint}", "{data}/images", "--out", "{out}", "--score-threshold", "x"], ["threshold"]),
        (["predict", "{checkpoint}", "{data}/images", "--out", "{out}", "--device", "abacus"], ["--device abacus"]),
        (
            ["predict", "{checkpoint}", "{data}/images", "--out", "{data}/train.json"],
            ["train.json is the name of a file", "name a folder"],
        ),
        (["doctor", "nowhere"], ["nowhere does not exist"]),
    ],
)
def test_mistakes_in_other_commands_are_one_sentence(
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    parts: list[str],
) -> None:
    out = tmp_path / "out"
    assert status([a.format(checkpoint=checkpoint, data=data, out=out) for a in arguments]) == 2
    assert_one_sentence(capsys, *parts)
    assert not out.exists()


def test_evaluating_unknown_classes_is_one_sentence(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data / "val.json"
    path.write_text(path.read_text().replace('"dog"', '"cow"'))
    assert status(["eval", str(checkpoint), "--data", str(data)]) == 2
    assert_one_sentence(capsys, "classes that were not trained: cow; leave them out with --classes")


# Training


def test_the_published_recipe_is_the_published_model() -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "coco_r50_1x.yaml"
    parsed = build_parser().parse_args(["train", "--config", str(recipe), "--data", "coco", "--out", "out"])
    backbone, preprocess, options, _, chosen = train.choices(parsed.train)
    # What `tightbox train` sets for small models must not leak into it: the defaults are the published model.
    assert VFNetOptions(**chosen) == VFNetOptions()
    assert backbone == BackboneOptions(frozen_stages=1, frozen_norm=True)
    assert preprocess == Preprocess()
    assert (options.optimizer, options.lr, options.schedule, options.epochs) == ("sgd", 0.01, "step", 12)


def test_vfnet_x_is_the_published_one() -> None:
    """Figures of configs/vfnet/vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco.py, whose 59 epochs are 41 and 18."""
    recipe = Path(__file__).parents[2] / "recipes" / "vfnet_x.yaml"
    parsed = build_parser().parse_args(["train", "--config", str(recipe), "--data", "coco", "--out", "out"])
    backbone, preprocess, options, augment, chosen = train.choices(parsed.train)
    assert VFNetOptions(**chosen) == VFNetOptions(
        channels=384,
        tower_depth=4,
        deformable=True,
        neck="pafpn",
        neck_norm=True,
        neck_deformable=True,
        suppress="soft_linear",
        nms_iou=0.65,
    )
    assert (backbone.name, backbone.deformable, backbone.res2net_pool) == ("res2net101d", True, False)
    assert (options.epochs, options.swa_epochs) == (41, 18)
    factor = learning_rate_factor(options, steps_per_epoch=1000)
    drops = [epoch for epoch in range(1, 41) if factor(1000 * epoch - 1) > factor(1000 * epoch)]
    assert drops == [36, 40]
    assert (augment.side_crop, augment.cutout) == (0.5, 0.5)
    assert preprocess is not None
    # Shorter sides of 500 to 1400 pixels.
    assert augment.scale_min * preprocess.short_side == pytest.approx(500, abs=1)
    assert augment.scale_max * preprocess.short_side == pytest.approx(1400, abs=1)


def test_vfnet_x_trains_and_averages_at_a_small_size(data: Path, tmp_path: Path) -> None:
    recipe, out = Path(__file__).parents[2] / "recipes" / "vfnet_x.yaml", tmp_path / "x"
    # On a backbone that takes no time, which has no bottlenecks to be deformed.
    tiny = [*TINY, "--deformable", "false", "--res2net-pool", "true", "--frozen-stages", "0"]
    tiny += ["--epochs", "1", "--swa-epochs", "1", "--batch-size", "3", "--workers", "0", "--warmup", "0"]
    start = ["train", "--config", str(recipe), "--data", str(data), "--out", str(out), "--vfnet.channels", "32"]
    assert status([*start, *tiny]) == 0
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(math.isfinite(row[name]) for row in rows for name in ("class", "box", "initial_box"))
    model = load(out / "last")
    assert isinstance(model.options, VFNetOptions)
    assert (model.options.neck, model.options.suppress) == ("pafpn", "soft_linear")


def test_training_leaves_a_checkpoint_that_evaluates_and_a_configuration_that_repeats_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert status(["train", "--data", str(data), "--out", str(first), *SMALL, "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "found COCO (train.json): 3 training images, classes cat, dog" in " ".join(shown.split())
    configuration = yaml.safe_load((first / "config.yaml").read_text())
    assert configuration["seed"] == 3
    assert configuration["vfnet"]["channels"] == 32
    assert configuration["backbone"] == "test_resnet"
    assert (configuration["optimizer"], configuration["lr"]) == ("muon", 0.003)  # what was not given is there too

    assert status(["train", "--config", str(first / "config.yaml"), "--out", str(second)]) == 0
    same = ("last/weights.safetensors", "last/card.json")
    assert (first / same[0]).read_bytes() == (second / same[0]).read_bytes()
    assert yaml.safe_load((second / "config.yaml").read_text()) == configuration | {"out": str(second)}

    capsys.readouterr()
    assert status(["train", "--data", str(data), "--out", str(first), *SMALL]) == 2
    assert_one_sentence(capsys, "already holds a run; continue it with --resume, or choose another --out")

    assert status(["eval", str(first / "last"), "--data", str(data), "--out", str(tmp_path / "eval")]) == 0
    assert "all classes" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert set(metrics["per_class"]) == {"cat", "dog"}
    assert isinstance(json.loads((tmp_path / "eval" / "results.json").read_text()), list)

    assert status(["train", "--resume", "--out", str(first), "--epochs", "2"]) == 0
    rows = [json.loads(row) for row in (first / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert yaml.safe_load((first / "config.yaml").read_text()) == configuration | {"epochs": 2}


def _train(data: Path, out: Path, *more: str) -> int:
    return status(["train", "--data", str(data), "--out", str(out), *SMALL, *more])


def _resume(out: Path, *more: str) -> int:
    return status(["train", "--resume", "--out", str(out), *more])


def test_a_resumed_run_stays_the_same_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _train(data, out) == 0
    configuration = (out / "config.yaml").read_bytes()
    advice = f"or start a new run in another --out, perhaps with --init {out / 'last'}"
    (tmp_path / "other.yaml").write_text("vfnet:\n  top_k: 7\n")
    for given, sentence in [
        (["--model", "unitbox"], "model vfnet, not unitbox; leave --model out"),
        (["--classes", "dog"], "classes None, not ['dog']; leave --classes out"),
        (["--vfnet.channels", "64"], "vfnet.channels 32, not 64; leave --vfnet.channels out"),
        (["--config", str(tmp_path / "other.yaml")], "vfnet.top-k 1000, not 7; leave --vfnet.top-k out"),
        (["--backbone", "test_convnext"], "backbone test_resnet, not test_convnext"),
        (["--long-side", "96"], "long-side 64, not 96"),
        (["--lr", "0.5"], "lr 0.003, not 0.5"),
    ]:
        capsys.readouterr()
        assert _resume(out, "--epochs", "2", *given) == 2
        assert_one_sentence(capsys, f"the run in {out} has {sentence}", advice)
        assert (out / "config.yaml").read_bytes() == configuration

    # Another data set is refused, and the same one elsewhere is not.
    moved = data.rename(tmp_path / "moved")
    rows = json.loads((moved / "train.json").read_text())
    fewer = rows | {"images": rows["images"][:2], "annotations": rows["annotations"][:2]}
    (moved / "train.json").write_text(json.dumps(fewer))
    assert _resume(out, "--data", str(moved), "--epochs", "2") == 2
    assert f"learns from 3 images, but {moved} has 2" in capsys.readouterr().err
    (moved / "train.json").write_text(json.dumps(rows).replace("dog", "cow"))
    val = (moved / "val.json").read_text()
    (moved / "val.json").write_text(val.replace("dog", "cow"))
    assert _resume(out, "--data", str(moved), "--epochs", "2") == 2
    assert f"learns the classes cat, dog, but {moved} has cat, cow" in capsys.readouterr().err
    assert (out / "config.yaml").read_bytes() == configuration
    (moved / "train.json").write_text(json.dumps(rows))
    (moved / "val.json").write_text(val)
    assert _resume(out, "--data", str(moved), "--epochs", "2", "--eval-every", "1", "--cache", "0") == 0
    changed = {"data": str(moved), "epochs": 2, "eval_every": 1, "cache": 0}
    assert yaml.safe_load((out / "config.yaml").read_text()) == yaml.safe_load(configuration) | changed
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2

    # Neither is this run's checkpoint one of another model.
    capsys.readouterr()
    assert _train(moved, tmp_path / "new", "--init", str(out / "last"), "--model", "unitbox") == 2
    assert "holds vfnet on test_resnet, not unitbox on test_resnet; leave out" in capsys.readouterr().err


def test_a_run_that_died_before_it_saved_anything_starts_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    lost = (data / "images" / "1.png").rename(tmp_path / "1.png")
    assert _train(data, out) == 2
    assert {path.name for path in out.iterdir()} == {".lock", "config.yaml", "metrics.jsonl"}
    capsys.readouterr()
    assert _resume(out) == 2
    assert f"there is nothing to resume in {out}: no state was saved; start without --resume" in capsys.readouterr().err
    lost.rename(data / "images" / "1.png")
    assert _train(data, out) == 0
    shutil.rmtree(out / "resume")  # checkpoints but no state
    assert _train(data, out) == 2
    capsys.readouterr()
    assert _resume(out) == 2
    assert f"no state was saved; start anew in another --out, from the run's weights with --init {out / 'last'}" in (
        capsys.readouterr().err
    )


def test_training_passes_over_unreadable_images_if_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _lose_image(data)
    arguments = ["train", "--data", str(data), "--out", str(tmp_path / "out"), *SMALL, "--skip-unreadable", "true"]
    assert status(arguments) == 0
    assert "1.png" in "".join(capsys.readouterr().out.split("\n"))


# Predicting


def predict(checkpoint: Path, out: Path, *sources: Path | str, threshold: str = "0.0") -> int:
    arguments = ["predict", str(checkpoint), *map(str, sources), "--out", str(out), "--score-threshold", threshold]
    return status([*arguments, "--device", "cpu"])


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    return rows


def test_predicting_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    image(source / "a.jpg", 60, 40)
    image(source / "a.png", 200, 100, seed=1)  # the same stem
    image(source / "deep" / "b.BMP", 30, 90, seed=2)
    (source / "notes.txt").write_text("no image")
    assert predict(checkpoint, out, source) == 0
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*.jpg"))
    assert written == ["a.jpg", "a_png_1.jpg", "deep/b.jpg"]
    sizes = {"a.jpg": (60, 40), "a_png_1.jpg": (200, 100), "deep/b.jpg": (30, 90)}
    for name, size in sizes.items():
        with Image.open(out / name) as drawn:
            assert drawn.width == size[0]
            assert drawn.height >= size[1]  # with a legend below where there are many boxes
    rows = rows_of(out)
    names = {str(source / "a.jpg"): (60, 40), str(source / "a.png"): (200, 100), str(source / "deep/b.BMP"): (30, 90)}
    assert {row["file_name"] for row in rows} == set(names)
    assert len({(row["file_name"], row["image_id"]) for row in rows}) == 3
    for row in rows:
        x, y, width, height = row["bbox"]
        limit = names[row["file_name"]]
        assert min(x, y) >= 0
        assert x + width <= limit[0] + 0.01
        assert y + height <= limit[1] + 0.01
        assert row["class"] == ["cat", "dog"][row["category_id"] - 1]
        assert row["iou"] == pytest.approx(row["score"])  # VFNet's score is its estimate
    assert max(row["bbox"][2] for row in rows if row["file_name"].endswith("a.png")) > 60  # not in network pixels


def test_predicting_patterns_and_files(checkpoint: Path, tmp_path: Path) -> None:
    first, second = image(tmp_path / "in" / "a.png"), image(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "folder.png").mkdir()
    other = image(tmp_path / "elsewhere" / "a.png", seed=4)
    out = tmp_path / "out"
    assert predict(checkpoint, out, tmp_path / "in" / "*.png", first, other) == 0
    assert {row["file_name"] for row in rows_of(out)} == {str(first), str(second), str(other)}
    assert len(list(out.glob("*.jpg"))) == 3


def test_the_threshold_leaves_boxes_out(checkpoint: Path, tmp_path: Path) -> None:
    source, out = image(tmp_path / "a.png"), tmp_path / "out"
    assert predict(checkpoint, out, source, threshold="0.9") == 0
    assert rows_of(out) == []
    with Image.open(out / "a.jpg") as drawn:
        assert drawn.size == (60, 40)


def test_a_cut_off_image_is_named_and_the_rest_is_done(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        image(source / name)
    broken = source / "b.jpg"
    broken.write_bytes(broken.read_bytes()[:900])
    assert predict(checkpoint, out, source) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert error[0].startswith(f"tightbox: cannot read {broken}: ")
    assert error[1] == "tightbox: 1 files could not be read"
    assert {row["file_name"] for row in rows_of(out)} == {str(source / "a.jpg"), str(source / "c.jpg")}
    assert sorted(p.name for p in out.iterdir()) == ["a.jpg", "c.jpg", "results.json"]


def test_a_image_that_is_stored_turned_is_drawn_upright(checkpoint: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    source = image(tmp_path / "in" / "a.jpg", 60, 40, exif=exif)
    assert predict(checkpoint, tmp_path / "out", source, threshold="1.0") == 0
    with Image.open(tmp_path / "out" / "a.jpg") as drawn:
        assert drawn.size == (40, 60)


def test_sources_are_never_overwritten(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = image(tmp_path / "in" / "a.jpg")
    before = source.read_bytes()
    assert predict(checkpoint, source.parent, source) == 2
    assert_one_sentence(capsys, "would be overwritten; choose another folder")
    assert source.read_bytes() == before


def film(path: Path, frames: int, width: int = 64, height: int = 48) -> Path:
    return write_video(path, [np.full((height, width, 3), i * 20, np.uint8) for i in range(frames)])


def test_predicting_a_video(checkpoint: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs the extra video")
    source, out = film(tmp_path / "film.mp4", 5), tmp_path / "out"
    still = image(tmp_path / "film.jpg")
    assert predict(checkpoint, out, source, still) == 0
    with av.open(str(out / "film.mp4")) as written:
        frames = [frame.to_ndarray(format="rgb24") for frame in written.decode(video=0)]
        assert written.streams.video[0].average_rate == 10
    assert len(frames) == 5
    assert all(frame.shape == (48, 64, 3) for frame in frames)
    rows = [row for row in rows_of(out) if "frame" in row]
    assert {row["frame"] for row in rows} == set(range(5))
    assert {row["file_name"] for row in rows} == {str(source)}
    assert (out / "film.jpg").is_file()


def test_a_video_is_turned_upright(checkpoint: Path, tmp_path: Path) -> None:
    """As telephones have it: stored sideways, with a matrix [[0, 1], [−1, 0]] that turns it clockwise."""
    av = pytest.importorskip("av", reason="needs the extra video")
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255  # white in the upper left corner, which is the upper right one once it is turned
    source = write_video(tmp_path / "film.mp4", [pixels])
    content = bytearray(source.read_bytes())
    matrix = content.find(b"tkhd") + 44  # behind the name: version, times, ids, duration, layer, volume
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    source.write_bytes(content)
    assert predict(checkpoint, tmp_path / "out", source) == 0
    with av.open(str(tmp_path / "out" / "film.mp4")) as written:
        (frame,) = (frame.to_ndarray(format="rgb24") for frame in written.decode(video=0))
    assert frame.shape == (64, 48, 3)
    quarters = frame[:32, :24], frame[:32, 24:], frame[32:, :24], frame[32:, 24:]  # boxes are drawn in all of them
    assert np.argmax([np.median(quarter) for quarter in quarters]) == 1


def test_odd_sides_lose_a_pixel(checkpoint: Path, tmp_path: Path) -> None:
    """H.264 has even sides only, unlike other codecs."""
    av = pytest.importorskip("av", reason="needs the extra video")
    frames = [np.full((47, 63, 3), i, np.uint8) for i in range(3)]
    source = write_video(tmp_path / "film.avi", frames, "ffv1", "bgr0")
    assert predict(checkpoint, tmp_path / "out", source) == 0
    with av.open(str(tmp_path / "out" / "film.mp4")) as written:
        assert [(f.width, f.height) for f in written.decode(video=0)] == [(62, 46)] * 3


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_cut_off_video_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: float
) -> None:
    source = film(tmp_path / "film.mp4", 5)
    content = source.read_bytes()
    source.write_bytes(content[: int(cut * len(content))])
    assert predict(checkpoint, tmp_path / "out", source) == 1
    assert f"cannot read {source}: " in capsys.readouterr().err.splitlines()[0]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    pytest.importorskip("av", reason="needs the extra video")
    (tmp_path / "bad.mp4").write_bytes(content)
    still = image(tmp_path / "a.jpg")
    assert predict(checkpoint, tmp_path / "out", tmp_path / "bad.mp4", still) == 1
    assert "bad.mp4" in capsys.readouterr().err.splitlines()[0]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.jpg", "results.json"]


def test_a_video_without_the_extra_says_how_to_get_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").write_bytes(b"")
    assert predict(checkpoint, tmp_path / "out", tmp_path / "film.mp4") == 2
    assert_one_sentence(capsys, "pip install 'tightbox[video]'")


# The doctor


def test_doctor_of_a_sound_data_set(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["doctor", str(data), "--json", str(tmp_path / "findings.json")]) == 0
    assert "train: 3 images, 3 boxes" in capsys.readouterr().out
    findings = json.loads((tmp_path / "findings.json").read_text())
    assert all(finding["severity"] != "error" for finding in findings)


@pytest.mark.parametrize("damage", [_cut_json, _lose_image])
def test_doctor_of_a_broken_data_set(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    damage(data)
    assert status(["doctor", str(data), "--json", str(tmp_path / "findings.json")]) == 1
    assert "ERROR" in capsys.readouterr().out
    findings = json.loads((tmp_path / "findings.json").read_text())
    assert any(finding["severity"] == "error" for finding in findings)


def test_module_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "tightbox", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tightbox {__version__}\n"
