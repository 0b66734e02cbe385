"""The one place where text, JSON, YAML and XML of a user's files are read: bounded, and refused by one sentence.

What is bounded: the size of a file, how deep its content is nested, the digits of its whole numbers, references of YAML
and entities of XML, which a few hundred bytes expand to gigabytes.
"""

import json
import os
import re
import reprlib
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from tightbox.errors import UserError

MB = 2**20
TEXT_BYTES, JSON_BYTES, YAML_BYTES, XML_BYTES = 256 * MB, 4096 * MB, MB, 16 * MB
DEPTH = 100
LARGEST_NUMBER = 1e15  # refuses NaN and infinity too, and whatever float32 areas cannot hold
LARGEST_INTEGER = 2**63 - 1  # what NumPy and other readers of the same files can hold

_AGAIN = "copy or export it again"
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(number for number in range(256) if number not in b"[]{}")


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 or UTF-32 if it begins with the mark of one, as Windows writes them.

    Raises:
        UserError: if it cannot be opened, is larger than `TEXT_BYTES`, or is no such text.
    """
    return _decoded(path, _content(path, TEXT_BYTES))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold anything, without the spaces around them; raises as `read_text`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_json(path: Path, *, each_object: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        each_object: what becomes of every object, as soon as it is read; it can leave out what would fill the memory.

    Raises:
        UserError: as `read_text`; or if it is no JSON, is nested deeper than `DEPTH`, or holds a whole number or a text
            that no other program could take over.
    """
    text = _decoded(path, _content(path, JSON_BYTES))
    if not text.strip():
        raise UserError(f"{path} is empty; copy or write it again (results without any detection are written as [])")
    if _depth(text) > DEPTH:
        raise _too_deep(path)
    try:
        content = json.loads(text, object_hook=each_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno} (character {error.pos} of {len(text)})"
        raise UserError(f"{path} is not valid JSON at {place}: {error.msg}; it may be cut off: {_AGAIN}") from error
    except ValueError as error:  # more digits than Python converts
        raise UserError(f"{path} holds a whole number of thousands of digits; correct it") from error
    except RecursionError as error:
        raise _too_deep(path) from error
    _refuse_half_characters(path, text)
    return content


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: as `read_json`; or if a value is a reference to another.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values only, each written where it stands, and not nested too deep."""

        nesting = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise UserError(f"{path} has a reference (*name) to another value; write the value itself there")
            self.nesting += 1
            if self.nesting > DEPTH:
                raise _too_deep(path)
            node = super().compose_node(parent, index)
            self.nesting -= 1
            return node

    try:
        content = yaml.load(_decoded(path, _content(path, YAML_BYTES)), Loader)
    except UserError:
        raise
    except Exception as error:  # PyYAML passes on whatever converting a value raises
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place} is not valid YAML; correct it or write it anew") from error
    for value in _plain_values(content):
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise UserError(f"{path} holds a whole number of more than 63 bits; correct it")
        if isinstance(value, str) and not is_whole(value):
            raise UserError(f"{path} holds half a character; save it as UTF-8")
    return content


def read_xml(path: Path) -> Element:
    """The root element of an XML file.

    Raises:
        UserError: if it cannot be opened, is larger than `XML_BYTES`, is no XML, is nested deeper than `DEPTH`, or
            declares entities.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root: Element = fromstring(_content(path, XML_BYTES))
    except ParseError as error:
        place = "line {}, column {}".format(*error.position)
        raise UserError(f"{path} is not valid XML at {place}; it may be cut off: {_AGAIN}") from error
    except DefusedXmlException as error:
        raise UserError(f"{path} declares entities of its own, which are not expanded here; remove them") from error
    except (ValueError, LookupError) as error:
        raise UserError(f"{path} names an encoding that is unknown here; save it as UTF-8") from error
    level = [root]
    for _ in range(DEPTH):
        level = [child for element in level for child in element]
        if not level:
            return root
    raise _too_deep(path)


def any_numbers(text: str) -> list[float]:
    """The numbers of a line, between spaces; NaN and infinity too.

    Raises:
        ValueError: if one of them is no number.
    """
    if "_" in text:  # which Python's own numbers may hold
        raise ValueError(text)
    return [float(part) for part in text.split()]


def numbers(text: str) -> list[float]:
    """The same; raises also if one of them is not finite, or so large that it is of no use in pixels."""
    found = any_numbers(text)
    if not all(-LARGEST_NUMBER < number < LARGEST_NUMBER for number in found):
        raise ValueError(text)
    return found


def is_file(path: Path) -> bool:
    """Whether there is such a file; no, too, for what can be no path: too long, or with a zero byte."""
    return os.path.isfile(path)


def exists(path: Path) -> bool:
    """Whether there is a file or folder of this path; no, too, for what can be no path."""
    return os.path.exists(path)


def shown(value: object) -> str:
    """A value from a file for a sentence: short, however large or deep it is."""
    return _shorten.repr(value)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Within it, a refusal that knows only rows says which file they are of."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60
_shorten.maxlevel = 3


def _content(path: Path, limit: int) -> bytes:
    try:
        state = os.stat(path)
        if not (stat.S_ISREG(state.st_mode) or stat.S_ISFIFO(state.st_mode)):
            raise UserError(f"cannot read {path}: it is not a file; give the path of one")
        if state.st_size > limit:
            size = f"{state.st_size / MB:.0f} MB, and more than {limit // MB} MB are not read"
            raise UserError(f"{path} has {size} of such a file; it may be another file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
    except ValueError as error:  # a zero byte, or half a character
        raise UserError(f"cannot read {str(path)!r}: it is no path; correct it") from error


def _decoded(path: Path, content: bytes) -> str:
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text at byte {error.start}; save it as UTF-8, or {_AGAIN}") from error


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text are nested, those within its texts not counted."""
    depth, paired = _bracket_depth(text)
    if paired and depth <= DEPTH:
        return depth
    # Brackets in texts are rare, and leaving texts out takes longer than reading the file.
    return _bracket_depth(_JSON_TEXT.sub("", text))[0]


def _bracket_depth(text: str) -> tuple[int, bool]:
    """How deep all brackets are nested, and whether each has its other."""
    import numpy as np

    brackets = np.frombuffer(text.encode().translate(None, _NO_BRACKETS), np.uint8)
    depth = np.cumsum(np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1))
    return int(depth.max(initial=0)), len(depth) == 0 or bool(depth[-1] == 0 and depth.min() >= 0)


def _refuse_half_characters(path: Path, text: str) -> None:
    r"""JSON can write half of a character, such as \ud800, which no file name and no other file can hold."""
    if re.search(r"\\u[dD][89a-fA-F]", text) is None:
        return
    for found in _JSON_TEXT.finditer(text):
        if "\\u" in found[0] and not is_whole(json.loads(found[0])):
            raise UserError(f"{path} holds half a character, {shown(found[0])}; correct it")


def is_whole(text: str) -> bool:
    """Whether a text, such as the name of a file, has whole characters only, so that it can be written as UTF-8."""
    return not re.search("[\ud800-\udfff]", text)


def _plain_values(content: Any) -> Iterator[Any]:
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        else:
            yield value


def _too_deep(path: Path) -> UserError:
    return UserError(f"{path} is nested more than {DEPTH} levels deep; it may be another file")
