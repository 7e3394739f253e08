"""The report of a sweep as JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from m2h_lightning.report import ablation
from m2h_lightning.report.ablation import Variant
from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.report.model import Report

KIND = "report of m2h sweep"
"""By which a report is known from other files."""


def as_json(report: Report) -> dict[str, Any]:
    """Return a report with the scores of every seed: all tables can be made anew from it."""
    plan = report.plan
    some = report.cells.done[0].result
    return {
        "kind": KIND,
        "time": runs.timestamp(),
        "command": ["m2h", "sweep", "report", *report.words],
        "sweep": {
            **{key: getattr(plan, key) for key in ("name", "file", "experiment", "method", "metric", "words", "made")},
            "goal": "maximize" if plan.higher_is_better else "minimize",
            "parameters": {name: dataclasses.asdict(p) for name, p in plan.parameters.items()},
            "cells": report.cells.planned,
            "finished": len(report.cells.done),
        },
        "provenance": {key: some.get(key) for key in ("git", "versions", "device", "data", "evaluation", "time")},
        "warnings": report.warnings,
        "protocol": report.protocol,
        "columns": [
            {"id": m.id, "title": m.title, "unit": m.name.unit, "higher_is_better": m.name.higher_is_better}
            for m in report.measures
        ],
        "baseline": report.baseline.label if report.baseline else None,
        "variants": [_variant_json(report, variant) for variant in report.variants],
        "comparisons": [
            {"variant": c.label, "column": c.measure.id, "mean": c.gap.mean, "half_width_95": c.gap.half, "n": c.gap.n}
            | {"p": c.gap.p, "p_holm": c.p, "verdict": c.verdict}
            for c in report.comparisons
        ],
        "delta_m_over": report.delta_over or None,
        "efficiency": report.measured or None,
        "trials": [
            {"cell": t.done.cell, "number": t.number, "values": t.variant.values, "score": t.value}
            for t in report.trials
        ],
        "given_up": [{"number": number, "score": value} for number, value in report.given_up],
        "importance": report.importance,
        "missing": [dataclasses.asdict(missing) for missing in report.cells.missing],
        "notes": report.notes,
    }


def _variant_json(report: Report, variant: Variant) -> dict[str, Any]:
    statistic = {}
    for measure in report.measures:
        found = ablation.spread(variant, measure)
        if found is not None:
            half = None if math.isnan(found[1]) else found[1]
            statistic[measure.id] = {"mean": found[0], "half_width_95": half, "n": found[2]}
    return {
        "label": variant.label,
        "values": variant.values,
        "planned_seeds": variant.planned,
        "cells": {seed: done.cell for seed, done in variant.done.items()},
        "scores": {measure.id: variant.scores(measure) for measure in report.measures},
        "statistics": statistic,
        "delta_m": report.delta.get(variant.label),
        "efficiency": report.cost.get(variant.label),
        "peak_memory_mb": report.memory.get(variant.label),
    }
