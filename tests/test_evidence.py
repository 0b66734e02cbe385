"""The rule by which docs/claims.md tells a difference from chance, and that the page is what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("benchmarks", "recipes"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


@pytest.mark.parametrize(
    ("after", "sign", "expected"),
    [
        # Differences 2, 3, 4: mean 3, standard deviation 1, standard error 1/√3 = 0.577. Student's t of two degrees of
        # freedom is 4.303 at 2.5 %, and 3 > 2.484, but 2 is not.
        ([12.0, 23.0, 34.0], 1, "shows"),
        ([12.0, 23.0, 34.0], -1, "the opposite"),
        ([11.0, 22.0, 33.0], 1, "within the spread"),
        ([10.0, 20.0, 30.0], 1, "within the spread"),
        ([11.0, 22.0], 1, "too few seeds"),
    ],
)
def test_a_difference_is_told_from_chance(after: list[float], sign: int, expected: str) -> None:
    from evidence import Evidence

    before = {0: 10.0, 1: 20.0, 2: 30.0}
    evidence = Evidence("scenes", before, dict(enumerate(after)), "page", "command", sign)
    assert evidence.verdict == expected


def test_the_verdict_over_data_sets_leaves_out_what_has_too_few_seeds() -> None:
    from evidence import Evidence, verdict

    before = {0: 10.0, 1: 20.0, 2: 30.0}
    up = Evidence("a", before, {0: 12.0, 1: 23.0, 2: 34.0}, "page", "command")
    same = Evidence("b", before, before, "page", "command")
    few = Evidence("c", before, {0: 12.0}, "page", "command")
    assert verdict([up, few]) == "shows"
    assert verdict([up, same]) == "shows in 1 of 2 comparisons"
    assert verdict([same]) == "does not show"
    assert verdict([few]) == "too few seeds"
    assert verdict([]) == "not measured"
    assert up.line() == "| a | 20.0 → 23.0 | +3.0 ± 0.6 | 3 | shows |"


def test_the_page_is_what_the_records_say() -> None:
    import claims

    assert len(claims.CLAIMS) == 18
    assert "\n".join(claims.page()) + "\n" == claims.PAGE.read_text(encoding="utf-8"), "run python recipes/claims.py"
