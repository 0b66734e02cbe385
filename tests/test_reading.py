"""What readers refuse of every format, each by one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tightbox import reading
from tightbox.errors import UserError
from tightbox.reading import (
    any_numbers,
    exists,
    is_file,
    naming,
    numbers,
    read_json,
    read_lines,
    read_text,
    read_xml,
    read_yaml,
    shown,
)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_as_windows_writes_it(encoding: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a", "Käse\r\n\r\n b \n".encode(encoding))
    assert read_text(path).splitlines() == ["Käse", "", " b "]
    assert read_lines(path) == ["Käse", "b"]
    assert read_json(written(tmp_path / "b", '{"ä": 1}'.encode(encoding))) == {"ä": 1}
    assert read_yaml(written(tmp_path / "c", "ä: 1".encode(encoding))) == {"ä": 1}


@pytest.mark.parametrize("read", [read_text, read_json, read_yaml, read_xml])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "cannot read .*nowhere: No such file"),
        (".", "it is not a file"),
        ("a" * 300, "File name too long"),
        ("a\0b", "it is no path"),
        ("\ud800", "it is no path"),
        ("/dev/zero", "it is not a file"),
    ],
)
def test_what_cannot_be_opened(read: object, path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path / path)  # type: ignore[operator]
    assert not is_file(tmp_path / path)
    assert not exists(tmp_path / path / "nowhere")


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    with open(path, "w") as file:
        os.truncate(file.fileno(), 3 * reading.YAML_BYTES)
    with pytest.raises(UserError, match="has 3 MB, and more than 1 MB are not read of such a file"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 3000 + "]" * 3000, "nested more than 100 levels"),
        ("[" * 101 + "]" * 101, "nested more than 100 levels"),
        ('{"a":' * 1500 + "1" + "}" * 1500, "nested more than 100 levels"),
        ('["]]]]]]]]", ' + "[" * 101 + "]" * 101 + "]", "nested more than 100 levels"),  # brackets in a text
        ("9" * 5000, "thousands of digits"),
        ('["\\ud800"]', "holds half a character"),
        ('["\\\\", "\\udc00"]', "holds half a character"),
        (b'["\xff"]', "is not text at byte 2; save it as UTF-8"),
        ("", r"is empty; .* written as \[\]"),
        ('{"a": [1, 2', "not valid JSON at line 1 column 12 .* cut off"),
    ],
)
def test_json_that_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_json(written(tmp_path / "a.json", content))
    assert "\n" not in str(caught.value)


def test_json_that_is_read(tmp_path: Path) -> None:
    depth = reading.DEPTH
    assert read_json(written(tmp_path / "a.json", "[" * depth + "]" * depth))
    assert read_json(written(tmp_path / "a.json", '["\\ud83d\\ude00", "\\\\ud800"]')) == ["😀", "\\ud800"]
    names = ["[" * 60, "{" * 60]  # no nesting, as they are in texts
    assert read_json(written(tmp_path / "a.json", f'["{names[0]}", "{names[1]}"]')) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &x [1]\nb: *x", r"has a reference \(\*name\)"),
        ("a: &x [1]\nb: &y [*x,*x,*x]\nc: [*y,*y,*y]", "has a reference"),  # what grows to gigabytes
        ("[" * 300, "nested more than 100 levels"),
        ("- " * 300 + "1", "nested more than 100 levels"),
        ("a: 0x" + "f" * 5000, "more than 63 bits"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 2024-13-45", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!python/object:os.system {}", "a.yaml:1 is not valid YAML"),
        ("a: [1\nb", "a.yaml:2 is not valid YAML"),
        ("{[1]: 2}", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_yaml_that_is_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(written(tmp_path / "a.yaml", content))
    assert "\n" not in str(caught.value)


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><a>&c;</a>'
FILE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS, "declares entities of its own"),
        (FILE, "declares entities of its own"),
        ("<a>" * 200 + "</a>" * 200, "nested more than 100 levels"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "not valid XML|names an encoding"),
        ("<a><b></a>", "not valid XML at line 1, column 8"),
        (b"<a>\xff</a>", "not valid XML"),
        ("", "not valid XML"),
    ],
)
def test_xml_that_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_xml(written(tmp_path / "a.xml", content))
    assert "\n" not in str(caught.value)


def test_numbers() -> None:
    assert numbers(" 1 -2.5\t3e2 ") == [1, -2.5, 300]
    assert str(any_numbers("nan inf")) == "[nan, inf]"
    for text in ("1_0", "one", "0x10"):
        with pytest.raises(ValueError, match=text):
            any_numbers(text)
    for text in ("nan", "inf", "1e15"):
        with pytest.raises(ValueError, match=text):
            numbers(text)


def test_values_are_shown_short() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert len(shown(deep)) < 30
    assert len(shown("a" * 10**6)) < 80
    assert shown([0, 0, 4, 4]) == "[0, 0, 4, 4]"


def test_a_refusal_names_the_file() -> None:
    with pytest.raises(UserError, match=r"^r\.json: result 1 is wrong$"), naming("r.json"):
        raise UserError("result 1 is wrong")
