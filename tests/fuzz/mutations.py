"""Random changes to bytes, to lines of text, and to the structure of JSON."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

_RAW = "@raw{}@"
# Written into JSON as they are: no value of Python's becomes these texts.
RAW = [
    "9" * 5000,
    "-" + "9" * 400,
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "[" * 3000,
    "[" * 3000 + "]" * 3000,
    '{"a":' * 1500 + "1" + "}" * 1500,
    '"\\ud800"',
    '"\\u0000"',
    "1" * 30,
    "-0",
    "0x10",
    "",
]
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        -0.5,
        1.5,
        1e-320,
        1e14,
        1e15,
        1e300,
        -1e300,
        2**31,
        2**53,
        2**63,
        2**64,
        -(2**63),
    ),
    *(10**400, "", "0.5", "1", "cat", "nan", "ä", "\n", "../../..", "/", "a" * 300, "a/" * 3000, "\x00", "☃.png"),
    *([], {}, [1], [[]], {"id": 1}, [0, 0, 4, 4], ["1", "2", "3", "4"], [True, True, True, True], [0, 0, -5, -5]),
    *([0, 0, 1e300, 1e300], [[1, 2], 3, 4], [0, 0, 10**400, 1], list(range(50))),
]
TOKENS = [
    *("0", "-1", "1", "2", "0.5", "1e9", "1e400", "-1e400", "nan", "inf", "1_0", "٣", "²", "9" * 5000, "0x1F", "1:30"),
    *(
        "",
        "cat",
        "ä",
        "\ufeff",
        "\x00",
        "\x85",
        "\u2028",
        "a" * 300,
        "x/" * 3000,
        "../../..",
        "/",
        ".",
        "~",
        "null",
        "yes",
    ),
    *("[", "]", "{", "}", "[" * 300, "- " * 300, "&a", "*a", "<<: *a", "!!python/object:os.system", "!!int ''"),
    *("!!timestamp x", "2024-13-45", "!!binary ?", "!!set {a}", "? a", "<", ">", "&lol;", "<!DOCTYPE a>", "<![CDATA["),
    *("0x" + "f" * 5000, "'", '"', "#", "%", ": ", "\t", "\r\n"),
]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]
_WORD = re.compile(r"[\w.+-]+")


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """A few bytes flipped, left out, repeated or put in; or the end cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1) if data else 0
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            del data[at : at + rng.choice((1, 2, 10, 100))]
        elif kind == 3:
            data[at:at] = data[at : at + rng.choice((1, 8, 64))] * rng.choice((1, 2, 50))
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
        elif data:
            del data[at % len(data) :]
    return bytes(data)


def changed_text(rng: random.Random, text: str) -> bytes:
    """Words replaced, lines left out, repeated or exchanged; at times in another encoding, or with bytes changed."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        lines, word = text.split("\n"), _WORD.search(text, rng.randrange(len(text) + 1))
        at, kind = rng.randrange(len(lines)), rng.randrange(7)
        if kind <= 2 and (word := word or _WORD.search(text)):
            text = text[: word.start()] + rng.choice(TOKENS) + text[word.end() :]
        elif kind == 3:
            del lines[at]
            text = "\n".join(lines)
        elif kind == 4:
            lines[at:at] = [lines[at]] * rng.choice((1, 2, 30))
            text = "\n".join(lines)
        elif kind == 5:
            rng.shuffle(lines)
            text = "\n".join(lines)
        else:
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(TOKENS) + text[place:]
    encoding = rng.choice(ENCODINGS) if rng.random() < 0.1 else "utf-8"
    content = text.encode(encoding, errors="replace")
    return changed_bytes(rng, content) if rng.random() < 0.2 else content


def changed_json(rng: random.Random, content: Any) -> bytes:
    """Values of other types or sizes, fields left out, repeated or renamed; at times the bytes are changed too."""
    content = copy.deepcopy(content)
    raw: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(content))
        if not places:
            break
        parent, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind <= 3:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 4:
            mark = _RAW.format(len(raw))
            raw[f'"{mark}"'] = rng.choice(RAW)
            parent[key] = mark
        elif kind == 5:
            del parent[key]
        elif kind == 6 and isinstance(parent, list):
            parent[key:key] = [copy.deepcopy(parent[key])] * rng.choice((1, 2, 30))
        elif isinstance(parent, dict):
            parent[rng.choice(("id", "bbox", "image_id", "ID", "", "\n", key + " "))] = parent.pop(key)
        else:
            parent[key] = [parent[key]]
    text = json.dumps(content)
    for mark, value in raw.items():
        text = text.replace(mark, value)
    data = text.encode(rng.choice(ENCODINGS), errors="replace") if rng.random() < 0.05 else text.encode()
    return changed_bytes(rng, data) if rng.random() < 0.15 else data


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within."""
    found: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        value = waiting.pop()
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in pairs:
            found.append((value, key))
            waiting.append(inner)
    return found
