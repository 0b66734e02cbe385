"""`--classes`: some classes of a data set that has more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import TINY
from tests.helpers.data import annotation, categories_of, noise_image
from tightbox.checkpoint import read_card
from tightbox.cli import main
from tightbox.data.layout import read_data
from tightbox.errors import UserError

SMALL = [*TINY, "--batch-size", "2", "--mosaic", "0"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images in each split; a cat, a dog and a bird in the first to train on, a dog in the first to validate."""
    root = tmp_path / "data"
    for split, labels in {"train": [1, 2, 3], "val": [2]}.items():
        images = [{"id": i, "file_name": f"{split}{i}.png", "width": 64, "height": 64} for i in (1, 2)]
        for i in (1, 2):
            noise_image(root / "images" / f"{split}{i}.png", 64, 64, seed=i)
        content = {
            "images": images,
            "annotations": [annotation(label, 1, [10 * label, 5, 9, 9], label, area=81) for label in labels],
            "categories": categories_of(["cat", "dog", "bird"]),
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def test_only_classes(data: Path) -> None:
    some = read_data(data, "train").only_classes(["bird", "cat"])
    assert some.class_names == ("bird", "cat")
    assert some.category_ids == (3, 1)
    first, second = some.records  # the second stays, as background
    assert first.labels.tolist() == [1, 0]
    assert first.boxes.tolist() == [[10, 5, 19, 14], [30, 5, 39, 14]]
    assert first.areas.tolist() == [81, 81]
    assert len(first.crowd) == 2
    assert len(second.boxes) == 0
    with pytest.raises(UserError, match=r"train split of .* has no class fish, cow; choose from cat, dog, bird"):
        read_data(data, "train").only_classes(["cat", "fish", "cow"])


def test_ids_of_classes_that_are_left_out_are_given_to_no_other(data: Path) -> None:
    some = read_data(data, "train").only_classes(["cat"])
    assert some.left_out == {"dog": 2, "bird": 3}
    known = some.with_classes(["dog", "owl", "cat"])  # as a model has them: dogs keep their id, owls get a new one
    assert known.category_ids == (2, 4, 1)
    assert known.left_out == {"bird": 3}
    assert [record.labels.tolist() for record in known.records] == [[2], []]


def test_train_and_eval(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train = ["train", "--model", "unitbox", "--data", str(data), "--out", str(out), *SMALL, "--classes", "dog", "cat"]
    assert main(train) == 0
    assert "classes dog, cat" in capsys.readouterr().out
    assert read_card(out / "last")["class_names"] == ["dog", "cat"]
    assert main(["eval", str(out / "last"), "--data", str(data), "--classes", "dog", "cat"]) == 0
    # The training split has a bird, of which the model knows nothing.
    evaluation = ["eval", str(out / "last"), "--data", str(data), "--split", "train"]
    assert main(evaluation) == 2
    assert main([*evaluation, "--classes", "cat", "dog", "--suppress", "greedy"]) == 0
    capsys.readouterr()
    # The resumed run knows them from its configuration.
    assert main(["train", "--out", str(out), "--resume", "--epochs", "2"]) == 0
    assert "classes dog, cat" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "eval"])
def test_an_unknown_class_is_one_sentence(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(data), "--classes", "fish", "--out", str(tmp_path / "run")]
    assert main([command, *(["no-checkpoint"] if command == "eval" else SMALL), *given]) == 2
    error = capsys.readouterr().err
    assert "has no class fish; choose from cat, dog, bird" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
