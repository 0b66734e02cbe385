"""TIDE's kinds of error in words."""

from typing import NamedTuple


class Kind(NamedTuple):
    """How an error is called in a table, in a sentence about all of its kind, and on the card of one."""

    column: str
    all: str
    one: str


KINDS = {
    "classification": Kind("class", "the wrong class", "on an object of another class"),
    "localisation": Kind("location", "loose boxes", "on its object, but too loose"),
    "both": Kind("both", "loose boxes of the wrong class", "loosely on an object of another class"),
    "duplicate": Kind("duplicate", "second boxes on one object", "a second box on an object that was found"),
    "background": Kind("background", "boxes on no object", "on no object"),
    "missed": Kind("missed", "missed objects", "an object that was missed"),
}
