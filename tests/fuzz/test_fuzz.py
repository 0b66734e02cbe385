"""A short run of the harness with fixed cases; `make fuzz` runs it long."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.fuzz.__main__ import Run, table
from tests.fuzz.cases import Tally, run_rounds
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("kind", TARGETS)
def test_every_case_is_read_or_refused_by_a_sentence(kind: str, tmp_path: Path) -> None:
    target = TARGETS[kind](tmp_path / "files")
    tally = run_rounds({kind: target}, range(max(1, 150 // target.weight)))[kind]
    assert tally.faults == {}
    assert tally.hangs == []
    assert tally.refused + tally.accepted == tally.inputs


def test_runs_add_up() -> None:
    earlier = Run("a", 0, 5, {"COCO": Tally(10, 7, 1, 0.5, 3, 1.0, {"x": (3, "text")}, 1, [4])})
    run = Run.from_json(json.loads(json.dumps(dataclasses.asdict(earlier))))
    run.tallies["COCO"].add(Tally(5, 2, 2, 1.25, 12, 2.0, {"x": (11, "later"), "y": (12, "")}, 2, []))
    tally = run.tallies["COCO"]
    counts = (tally.inputs, tally.refused, tally.accepted, tally.slowest, tally.slowest_case, tally.fault_count)
    assert counts == (15, 9, 3, 1.25, 12, 3)
    assert {where: case for where, (case, _) in tally.faults.items()} == {"x": 3, "y": 12}  # the first of each place
    assert tally.hangs == [4]
    assert table(run.tallies).splitlines()[-1] == "| all | 15 | 9 | 3 | 3 | 1 | 1.25 |"
