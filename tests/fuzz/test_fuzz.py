"""A short run of the harness with fixed cases; `make fuzz` runs it long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("kind", TARGETS)
def test_every_case_is_read_or_refused_by_a_sentence(kind: str, tmp_path: Path) -> None:
    rounds = 15 if TARGETS[kind].weight == 1 else max(1, 150 // TARGETS[kind].weight)
    tally = fuzz(tmp_path, kinds=[kind], first=0, rounds=rounds)[kind]
    assert tally.faults == {}
    assert tally.hangs == []
    assert tally.refused + tally.accepted == tally.inputs
