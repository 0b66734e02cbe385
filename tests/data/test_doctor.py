from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.data import annotation as box
from tests.helpers.data import noise_image
from tests.helpers.references import DATA_ROOTS, real_data
from tightbox.data.doctor import Finding, Severity, examine, print_report

shot = partial(noise_image, width=40, height=30)


def healthy(root: Path) -> dict[str, dict[str, Any]]:
    """A set that nothing is wrong with: ten boxes in train, one in val."""
    sets = {}
    for start, split in ((1, "train"), (11, "val")):
        shot(root / "images" / f"{split}.png", seed=start)
        sets[split] = {
            "images": [{"id": start, "file_name": f"{split}.png", "width": 40, "height": 30}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [box(i, start, [i, i, 10, 10]) for i in range(start, 11 + start // 11)],
        }
    return sets


def write(root: Path, sets: dict[str, dict[str, Any]]) -> list[Finding]:
    for split, content in sets.items():
        (root / f"{split}.json").write_text(json.dumps(content))
    return examine(root).findings


def test_a_healthy_set_has_no_findings(tmp_path: Path) -> None:
    assert write(tmp_path, healthy(tmp_path)) == []


Change = Callable[[dict[str, Any], Path], object]


def another(content: dict[str, Any], **changes: Any) -> None:
    content["images"].append({"id": 2, "file_name": "b.png", "width": 40, "height": 30} | changes)
    content["annotations"].append(box(50, content["images"][-1]["id"], [0, 0, 5, 5]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize(
    ("check", "severity", "message", "change"),
    [
        ("missing-image", "error", r"b.png does not exist", lambda c, r: another(c)),
        ("unreadable-image", "error", "truncated", lambda c, r: cut(r / "images" / "train.png")),
        ("size-mismatch", "error", "says 41x30 but .* is 40x30", lambda c, r: c["images"][0].update(width=41)),
        ("unreadable-image", "error", "no such file", lambda c, r: another(c, width=None)),
        ("duplicate-file", "error", "2 entries in the train split", lambda c, r: another(c, file_name="train.png")),
        ("duplicate-image-id", "error", "id 1 to both train.png and b.png", lambda c, r: another(c, id=1)),
        (
            "unknown-image",
            "error",
            "of image 77",
            lambda c, r: c["annotations"].append(box(50, 77, [0, 0, 1, 1])),
        ),
        (
            "unknown-category",
            "error",
            "category id 5",
            lambda c, r: c["annotations"].append(box(50, 1, [0, 0, 1, 1], 5)),
        ),
        (
            "bbox",
            "error",
            "not 4 finite",
            lambda c, r: c["annotations"].append(box(50, 1, [0, 0, float("nan"), 1])),
        ),
        ("iscrowd", "error", "the iscrowd '0', which is neither", lambda c, r: c["annotations"][3].update(iscrowd="0")),
        ("category", "error", "train.json has no categories", lambda c, r: c.update(categories=[], annotations=[])),
        (
            "category",
            "error",
            "empty name to category id 2",
            lambda c, r: c["categories"].append({"id": 2, "name": ""}),
        ),
        ("box-degenerate", "warning", "0 wide", lambda c, r: c["annotations"].append(box(50, 1, [5, 5, 0, 9]))),
        (
            "box-degenerate",
            "warning",
            "-3 wide",
            lambda c, r: c["annotations"].append(box(50, 1, [5, 5, -3, 9])),
        ),
        (
            "box-outside",
            "warning",
            "reaches 7 px .* 40x30",
            lambda c, r: c["annotations"].append(box(50, 1, [37, 5, 10, 9])),
        ),
        (
            "box-outside",
            "warning",
            "reaches 70 px",
            lambda c, r: c["annotations"].append(box(50, 1, [100, 5, 10, 9])),
        ),
        ("box-tiny", "warning", "0.5 wide", lambda c, r: c["annotations"].append(box(50, 1, [5, 5, 0.5, 9]))),
        (
            "box-duplicate",
            "warning",
            "2 times",
            lambda c, r: c["annotations"].append(box(50, 1, [3, 3, 10, 10])),
        ),
        (
            "duplicate-annotation-id",
            "note",
            "id 3 more",
            lambda c, r: c["annotations"].append(box(3, 1, [0, 0, 9, 9])),
        ),
        ("class-missing", "warning", "class dog has no", lambda c, r: c["categories"].append({"id": 2, "name": "dog"})),
        ("class-rare", "note", "only 1 example in train", lambda c, r: c.update(annotations=c["annotations"][:1])),
        ("class-unknown", "error", "cat has 1 boxes in val", lambda c, r: c["categories"][0].update(name="dog")),
        ("duplicate-class", "error", "with 'cat'", lambda c, r: c["categories"].append({"id": 2, "name": "cat"})),
        ("empty-images", "note", r"1 of 1 images \(100.0%\)", lambda c, r: c.update(annotations=[])),
        ("empty-split", "error", "train split .* no images", lambda c, r: c.update(images=[], annotations=[])),
        ("unused-images", "note", "1 images .* extra.png", lambda c, r: shot(r / "images" / "extra.png", seed=5)),
        ("split-overlap", "warning", r"\(train\) and .*\(val\)", lambda c, r: shot(r / "images" / "val.png", seed=1)),
        ("image-mode", "note", "mode RGBA", lambda c, r: Image.new("RGBA", (40, 30)).save(r / "images" / "train.png")),
    ],
)
def test_each_thing_is_found(tmp_path: Path, check: str, severity: str, message: str, change: Change) -> None:
    sets = healthy(tmp_path)
    change(sets["train"], tmp_path)
    findings = write(tmp_path, sets)
    (found,) = [finding for finding in findings if finding.check == check]
    assert found.severity == Severity(severity)
    assert re.search(message, found.message)


def test_a_image_without_a_size_is_reported_once(tmp_path: Path) -> None:
    sets = healthy(tmp_path)
    another(sets["train"], width=None)
    (found,) = write(tmp_path, sets)
    assert found.check == "unreadable-image"
    assert found.fix == "replace the file or leave it out"


def test_copies_within_a_split(tmp_path: Path) -> None:
    sets = healthy(tmp_path)
    another(sets["train"])
    shot(tmp_path / "images" / "b.png", seed=1)  # the same pixels as train.png
    (found,) = write(tmp_path, sets)
    assert (found.check, found.severity) == ("same-image", Severity.WARNING)
    assert "train.png (train) and" in found.message
    assert "b.png (train)" in found.message


def test_turned_images_are_noted_and_small_overhang_is_not(tmp_path: Path) -> None:
    sets = healthy(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    shot(tmp_path / "images" / "train.png", seed=1, width=30, height=40, exif=exif)
    sets["train"]["annotations"].append(box(50, 1, [30, 5, 10.4, 9]))
    (found,) = write(tmp_path, sets)
    assert (found.check, found.severity) == ("exif-orientation", Severity.NOTE)
    assert "EXIF orientation 6" in found.message


def test_a_cut_off_file_hides_nothing_else(tmp_path: Path) -> None:
    sets = healthy(tmp_path)
    sets["val"]["annotations"].append(box(60, 11, [0, 0, 0, 0]))
    write(tmp_path, sets)
    cut_off = (tmp_path / "train.json").read_text()[:-20]
    (tmp_path / "train.json").write_text(cut_off)
    findings = examine(tmp_path).findings
    assert [finding.check for finding in findings] == ["json", "box-degenerate", "unused-images"]  # worst first
    assert "train.json is not valid JSON at line 1" in findings[0].message
    assert findings[0].fix == "it may be cut off: copy or export it again"


def test_yolo_lines_are_one_finding_each(tmp_path: Path) -> None:
    shot(tmp_path / "images" / "train" / "a.png", seed=1)
    shot(tmp_path / "images" / "train" / "b.png", seed=2)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 .5 .5 .1 .1\n7 .5 .5 .1 .1\n0 .5\n0 9 .5 .1 .1\n")
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no image")
    (tmp_path / "data.yaml").write_text("names: [cat]")
    findings = [finding for finding in examine(tmp_path).findings if finding.severity is Severity.ERROR]
    assert [finding.check for finding in findings] == ["unreadable-image", *["yolo-line"] * 3]
    assert [finding.message.split(": ")[0][-7:] for finding in findings[1:]] == ["a.txt:2", "a.txt:3", "a.txt:4"]
    assert findings[1].image == str(tmp_path / "images" / "train" / "a.png")


def test_voc_files_are_one_finding_each(tmp_path: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a", "b", "c"):
        shot(tmp_path / "JPEGImages" / f"{name}.png", seed=ord(name))
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation>\n<object>")
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    for split in ("train", "val"):  # the broken file belongs to both, but is reported once
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text("a\nb\nc\n")
    findings = [finding for finding in examine(tmp_path).findings if finding.severity is Severity.ERROR]
    assert [finding.check for finding in findings] == ["bndbox", "missing-annotation", "missing-annotation", "xml"]


def test_no_data_set_is_a_finding_too(tmp_path: Path) -> None:
    (found,) = examine(tmp_path).findings
    assert (found.check, found.severity) == ("layout", Severity.ERROR)
    assert found.message.startswith("no data set was recognised")
    assert found.fix.startswith("looked for COCO")


def test_progress_and_counts(tmp_path: Path) -> None:
    sets = healthy(tmp_path)
    sets["val"]["annotations"].append(box(60, 11, [0, 0, 20, 20]) | {"iscrowd": 1})
    write(tmp_path, sets)
    calls: list[tuple[int, int]] = []
    report = examine(tmp_path, lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]
    train, val = report.splits
    assert (train.split, train.layout, train.images, train.boxes) == ("train", "COCO (train.json)", 1, 10)
    assert (val.boxes, val.crowd, val.class_counts) == (2, 1, {"cat": 1})


def test_report_is_limited_and_shows_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = healthy(tmp_path)
    sets["train"]["annotations"] += [box(i, 1, ["[red]", i]) for i in range(100, 125)]
    write(tmp_path, sets)
    monkeypatch.setenv("COLUMNS", "200")
    print_report(examine(tmp_path))
    text = capsys.readouterr().out
    assert "ERROR bbox (25)" in text
    assert text.count("which is not 4 finite numbers") == 20
    assert "and 5 more" in text
    assert "['[red]', 100]" in text  # not taken for rich's markup
    assert "train: 1 images, 10 boxes (0 crowd), COCO (train.json)" in text
    assert "25 errors, 0 warnings, 0 notes" in text


@pytest.mark.parametrize("root", DATA_ROOTS)
def test_real_set_is_healthy(root: Path, tmp_path: Path) -> None:
    findings = examine(real_data(root, "coco-mini", tmp_path)).findings
    assert {finding.check for finding in findings} == {"class-missing", "class-rare", "empty-images", "small-objects"}


def test_photographs_are_those_of_their_annotations(tmp_path: Path) -> None:
    """Six JPEG files of the blood cells as published; the other images are stand-ins."""
    folder = real_data(DATA_ROOTS[0], "bccd", tmp_path)
    assert len([path for path in (folder / "images").iterdir() if path.is_symlink()]) == 6
    assert {finding.check for finding in examine(folder).findings} == {"class-rare"}  # platelets
