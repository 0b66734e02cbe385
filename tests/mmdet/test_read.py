from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tightbox.errors import UserError
from tightbox.models.mmdet.read import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.num_batches_tracked": torch.tensor(3)}


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


class Code:
    """What a pickle with code in it is: reading it calls a function."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("modern", [True, False])  # a zip file, or one from before PyTorch 1.6
@pytest.mark.parametrize(
    "content",
    [
        STATE,  # bare
        {"state_dict": STATE},
        {"state_dict": collections.OrderedDict(STATE), "meta": None, "optimizer": {"state": {}, "param_groups": []}},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}},  # from a distributed wrapper
        {"state_dict": STATE | {"ema_a_weight": torch.zeros(2, 3)}},  # mmdetection 2's copies for averaging
        {"state_dict": STATE, "ema_state_dict": {"module.a.weight": torch.zeros(2, 3)}},  # mmdetection 3's
    ],
)
def test_weights_are_found(tmp_path: Path, content: Any, modern: bool) -> None:
    file = read_checkpoint(save(tmp_path / "a.pth", content, _use_new_zipfile_serialization=modern))
    assert file.tensors.keys() == STATE.keys()
    assert all(file.tensors[name].equal(value) for name, value in STATE.items())
    assert file.class_names is None


def test_a_name_that_begins_with_ema_is_no_copy_of_itself(tmp_path: Path) -> None:
    assert "ema_b" in read_checkpoint(save(tmp_path / "a.pth", STATE | {"ema_b": torch.ones(1)})).tensors


def test_meta_may_hold_what_real_files_hold(tmp_path: Path) -> None:
    meta = {
        "env_info": "sys.platform: linux",
        "CLASSES": ("cat", "dog"),
        "PALETTE": [(220, 20, 60), (119, 11, 32)],
        "hook_msgs": collections.OrderedDict(best_score=np.float64(0.41), last=np.float32(0.4), seen=np.int64(12)),
        "flag": np.bool_(True),
        "name": np.str_("bbox_mAP"),
        "history": np.array([[0.1, 0.2], [0.3, 0.4]]),
        "epoch": 12,
        "time": 0.5,
        "nothing": None,
    }
    path = save(tmp_path / "a.pth", {"meta": meta, "state_dict": STATE})
    assert read_checkpoint(path).class_names == ("cat", "dog")


def test_numpy_1_names_its_module_otherwise(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"meta": {"x": np.float64(1), "y": np.ones(2)}, "state_dict": STATE},
                _use_new_zipfile_serialization=False)  # fmt: skip
    content = path.read_bytes()
    assert content.count(b"numpy._core.multiarray") > 0
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(path).tensors.keys() == STATE.keys()


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"CLASSES": ["cat", "dog"]}, ("cat", "dog")),
        ({"CLASSES": "cat"}, ("cat",)),  # one class, as its users write it
        ({"dataset_meta": {"classes": ("cat", "dog"), "palette": []}}, ("cat", "dog")),  # mmdetection 3
        ({"dataset_meta": {"CLASSES": ("cat", "dog")}}, ("cat", "dog")),
        ({"CLASSES": None, "dataset_meta": None}, None),
        ({"CLASSES": ()}, None),
        ("a text", None),
    ],
)
def test_class_names(tmp_path: Path, meta: Any, names: tuple[str, ...] | None) -> None:
    assert read_checkpoint(save(tmp_path / "a.pth", {"meta": meta, "state_dict": STATE})).class_names == names


@pytest.mark.parametrize("modern", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, modern: bool) -> None:
    target = tmp_path / "run"
    path = save(tmp_path / "a.pth", {"meta": Code(target), "state_dict": STATE}, _use_new_zipfile_serialization=modern)
    with pytest.raises(
        UserError, match=r"a\.pth needs .*getattr.* to be read, and a file that runs code is never opened"
    ):
        read_checkpoint(path)
    assert not target.exists()


class Config(dict):  # type: ignore[type-arg]
    """A class of somebody else's."""


def test_a_class_of_somebody_elses_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"meta": {"config": Config(a=1)}, "state_dict": STATE})
    with pytest.raises(UserError, match=r"needs tests\.mmdet\.test_read\.Config to be read, .*save its weights alone"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is cut off or is no PyTorch checkpoint"),
        (b"hello, world\n", "is cut off or is no PyTorch checkpoint"),
        (b"\x89PNG\r\n\x1a\n", "is cut off or is no PyTorch checkpoint"),
        (b"PK\x03\x04", "is cut off or is no PyTorch checkpoint"),
        (pickle.dumps({"a": 1}), "is cut off or is no PyTorch checkpoint"),  # a pickle, but none of PyTorch's
        ([1, 2], "holds no weights"),
        (torch.ones(3), "holds no weights"),
        ({}, "holds no weights"),
        ({"state_dict": {}}, "holds no weights"),
        ({"state_dict": None, "meta": {}}, "holds no weights"),
        ({"model": STATE}, "holds no weights"),
        (STATE | {"step": 3}, "its entry step is not a tensor"),
        (dict[Any, Any](STATE) | {7: torch.ones(1)}, "its entry 7 is not a tensor"),
    ],
)
def test_other_files(tmp_path: Path, content: Any, sentence: str) -> None:
    path = tmp_path / "a.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(path, content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(UserError, match="is not a file; give"):
            read_checkpoint(path)


@pytest.mark.parametrize("modern", [True, False])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999), flip=st.booleans())
def test_damaged_files_are_one_sentence(tmp_path: Path, modern: bool, share: float, flip: bool) -> None:
    path = save(
        tmp_path / "a.pth", {"meta": {"x": np.ones(3)}, "state_dict": STATE}, _use_new_zipfile_serialization=modern
    )
    content = bytearray(path.read_bytes())
    place = int(share * len(content))
    if flip:
        content[place] ^= 0xFF
    else:
        del content[place:]
    path.write_bytes(content)
    sentence = ""
    try:
        read_checkpoint(path)
    except UserError as error:
        sentence = str(error)
    # A flipped bit of a weight is a weight; half a file is none.
    assert (flip and not sentence) or (str(path) in sentence and "\n" not in sentence)


def test_what_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "plain.pth", {"state_dict": {"a": torch.zeros(10**6)}})
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"unpacks to 40.* as no file of PyTorch does"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_tensor_that_repeats_one_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds tensors larger than itself"):
        read_checkpoint(save(tmp_path / "a.pth", {"state_dict": {"a": torch.zeros(1).expand(10**6, 10**6)}}))
