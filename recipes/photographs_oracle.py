"""The first table of VarifocalNet on photographs: what FCOS with ATSS would reach if one output were the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from studies import Job, Plan, row, rows_of, table, validation

from budget import Training, trained  # isort: skip - found by way of `training`
from tightbox.inference.oracle import oracle_study

TITLE = "The oracle study"
BASELINE = "FCOS + ATSS, centerness"
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {"varifocal": False, "star": False, "refine": False, "centerness": True},
    "VFNet": {},
}


def jobs(plan: Plan) -> dict[str, Job]:
    """Every training with its study."""
    return {
        plan.key(data, variant, plan.images, seed): partial(
            measure, plan.training("vfnet", data, seed, plan.images, options=options)
        )
        for variant, options in VARIANTS.items()
        for data in plan.data
        for seed in plan.seeds
    }


def measure(job: Training) -> dict[str, Any]:
    """Train, then replace."""
    model, spent = trained(job)
    study = oracle_study(model, validation(job, model))
    return {
        "alone": {v.name: v.alone.ap for v in study.variants if v.alone is not None},
        "with estimate": {v.name: v.with_estimate.ap for v in study.variants if v.with_estimate is not None},
        "pearson": {name: value.pearson for name, value in study.correlations.items()},
        **spent,
    }


def page(record: Mapping[str, Any]) -> Iterator[str]:
    """The tables."""
    yield "AP with one output of the candidates that learn an object replaced before suppression, ranked by the class"
    yield "score alone, and by the detector's own rules with its centerness."
    for data in sorted({key.split(" | ")[0] for key in record}):
        lines = []
        for variant in VARIANTS:
            found = rows_of(record, data, variant)
            for column in ("alone", "with estimate"):
                for name in found[0][column] if found else ():
                    lines.append(row(f"{variant} | {name} | {column}", [[r[column][name] for r in found]], len(found)))
        yield from ("", f"## {data}")
        yield from table(["detector", "replaced", "ranked", "AP", "seeds"], lines)
