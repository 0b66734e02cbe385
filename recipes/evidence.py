"""Comparisons of what the studies recorded, and the rule by which one is told from chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from statistics import mean, stdev
from typing import Any

from scipy.stats import t
from training import HERE

DATA = ("scenes", "bccd", "vehicles", "aquarium")
FEWEST = 3  # seeds
SHOWS, OPPOSITE, NOT, FEW = "shows", "the opposite", "within the spread", "too few seeds"
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Evidence:
    """One comparison on one data set.

    Attributes:
        data: its name, and what else tells this comparison from others.
        before: the figure without what is claimed to help, by seed.
        after: the figure with it.
        page: the study's page in `recipes/`.
        command: what measured it.
        sign: 1 if the claim has the figure rise, -1 if it has it fall.
        digits: shown.
    """

    data: str
    before: BySeed
    after: BySeed
    page: str
    command: str
    sign: int = 1
    digits: int = 1

    @property
    def seeds(self) -> list[int]:
        """Those that have both figures."""
        return sorted({*self.before} & {*self.after})

    @property
    def differences(self) -> list[float]:
        """One for each of the seeds."""
        return [self.after[seed] - self.before[seed] for seed in self.seeds]

    @property
    def verdict(self) -> str:
        """Whether the mean difference is one from 0 by Student's test of pairs at 5 %, and in which direction."""
        found = self.differences
        if len(found) < FEWEST:
            return FEW
        if abs(mean(found)) <= t.ppf(0.975, len(found) - 1) * stdev(found) / sqrt(len(found)):
            return NOT
        return SHOWS if self.sign * mean(found) > 0 else OPPOSITE

    def line(self) -> str:
        """A line of a table."""
        found, digits = self.differences, self.digits
        error = f" ± {stdev(found) / sqrt(len(found)):.{digits}f}" if len(found) > 1 else ""
        ours = " → ".join(f"{mean(side[seed] for seed in self.seeds):.{digits}f}" for side in (self.before, self.after))
        cells = (self.data, ours, f"{mean(found):+.{digits}f}{error}", str(len(found)), self.verdict)
        return f"| {' | '.join(cells)} |"


@cache
def record(name: str) -> dict[str, Any]:
    """The record of a study; nothing if there is none."""
    path = HERE / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def trainings(name: str, data: str, variant: str, images: int | None = None) -> dict[int, Any]:
    """The results of a kind of training by seed, of the longest ones if not said.

    The record's keys are `data | variant | images | seed`; of VFNet's study, `data | images | variant | seed`.
    """
    found: dict[int, dict[int, Any]] = {}
    for key, result in record(name).items():
        parts = key.split(" | ")
        if name == "vfnet":
            parts[1], parts[2] = parts[2], parts[1]
        if parts[:2] == [data, variant] and images in (None, int(parts[2])):
            found.setdefault(int(parts[2]), {})[int(parts[3])] = result
    return found[max(found)] if found else {}


def by_seed(results: Mapping[int, Any], *path: str, times: float = 100.0) -> dict[int, float]:
    """A figure of every result, found by its keys; in per cent if not said."""
    found = {}
    for seed, result in results.items():
        for key in path:
            result = result[key]
        found[seed] = times * float(result or 0.0)
    return found


def command_of(results: Mapping[int, Any]) -> str:
    """What measured them."""
    return str(next(iter(results.values()))["command"])


def seeds_of(study: Mapping[str, Any]) -> dict[int, Any]:
    """The results of a study whose record has them by seed."""
    return {int(seed): result for seed, result in study["seeds"].items()}


def verdict(found: Sequence[Evidence]) -> str:
    """Over all data sets with enough seeds."""
    enough = [evidence for evidence in found if evidence.verdict != FEW]
    shown = [evidence for evidence in enough if evidence.verdict == SHOWS]
    if not enough:
        return "not measured" if not found else "too few seeds"
    if len(shown) == len(enough):
        return SHOWS
    return f"shows in {len(shown)} of {len(enough)} comparisons" if shown else "does not show"
