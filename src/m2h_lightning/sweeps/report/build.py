"""The report of a sweep: tables with intervals and tests, cost, pictures; as Markdown, CSV, JSON and PNG."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from m2h_lightning.errors import ConfigError, M2HError, did_you_mean
from m2h_lightning.report import ablation, plots
from m2h_lightning.report.ablation import Variant
from m2h_lightning.report.names import SUFFIXES
from m2h_lightning.report.plots_pareto import plot_pareto
from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.planning.cells import short_names
from m2h_lightning.sweeps.planning.parameters import SEED
from m2h_lightning.sweeps.planning.plan import Plan
from m2h_lightning.sweeps.report import efficiency
from m2h_lightning.sweeps.report.cells import (
    Cells,
    Ledgered,
    read_cells,
    read_ledger,
    separate,
    swept_keys,
    telling_names,
)
from m2h_lightning.sweeps.report.delta import references
from m2h_lightning.sweeps.report.model import Report, ReportOptions
from m2h_lightning.sweeps.report.search import given_up, importance, trials_of
from m2h_lightning.sweeps.view import provenance

CACHE = "efficiency.json"


def build(plan: Plan, options: ReportOptions) -> Report:
    """Read a sweep and compare its variants.

    Raises:
        ConfigError: No cell is finished, or an option does not fit the sweep.
        DataError: A file is damaged.
    """
    if options.pictures:
        plots.need_matplotlib()  # before anything takes time
    chosen = None if plan.searches else baseline_values(plan, options.baseline)
    if plan.searches and options.baseline:
        raise ConfigError("--baseline: a search has no variants with seeds; repeat its best runs with a grid")
    ledger = read_ledger(plan)
    cells = read_cells(plan, ledger)
    baseline = next((v for v in cells.variants if chosen is not None and _matches(v, chosen)), None)
    first = [*(baseline.done.values() if baseline else ()), *cells.done]
    separate(cells, next((done.run for done in first if done.run is not None), None))
    protocol, notes = _protocol(cells, options.protocol)
    measures = ablation.find_measures(cells.done, protocol, plan.metric, plan.higher_is_better)
    variants = [variant for variant in cells.variants if variant.done]
    report = Report(plan, cells, protocol, measures, variants, baseline, options.words, notes=notes)
    report.warnings = [*provenance.warnings(plan), *([ledger.warning] if ledger.warning and cells.missing else [])]
    report.memory = {variant.label: found for variant in variants if (found := _memory(variant)) is not None}
    if plan.searches:
        _search(report, ledger)
    else:
        _compare(report, options, chosen or {})
        _cost(report, options)
    return report


def baseline_values(plan: Plan, given: Sequence[str]) -> dict[str, Any]:
    """Return the values of the baseline: the first ones of the sweep file, those given instead.

    Raises:
        ConfigError: A key or a value is none of the sweep.
    """
    swept = {p.name: p for p in plan.parameters.values() if p.swept and p.name != SEED}
    chosen = {name: parameter.values[0] for name, parameter in swept.items()}
    names = {name: name for name in swept}
    for shorter in (short_names(list(swept)), telling_names(list(swept))):
        names |= {short: name for name, short in shorter.items()}
    for text in given:
        key, sign, word = text.partition("=")
        if not sign:
            raise ConfigError(f"--baseline {text}: give KEY=VALUE, such as {next(iter(swept), 'key')}=…")
        if key not in names:
            known = ", ".join(swept) or "none"
            raise ConfigError(f"--baseline {text}: the sweep does not vary {key}{did_you_mean(key, names)} ({known})")
        try:
            value = yaml.safe_load(word)
        except yaml.YAMLError as error:
            raise ConfigError(f"--baseline {text}: the value is not valid YAML") from error
        parameter = swept[names[key]]
        equal = [v for v in parameter.values if v == value and isinstance(v, bool) == isinstance(value, bool)]
        if not equal:
            known = ", ".join(map(str, parameter.values))
            raise ConfigError(f"--baseline {text}: is none of the values of {parameter.name} ({known})")
        chosen[parameter.name] = equal[0]
    return chosen


def _matches(variant: Variant, chosen: dict[str, Any]) -> bool:
    return all(variant.values.get(key) == value for key, value in runs.flatten(chosen).items())


def _protocol(cells: Cells, chosen: str | None) -> tuple[str, list[str]]:
    if chosen is not None:
        return chosen, []
    headings = {done.run.protocol for done in cells.done if done.run is not None and done.run.protocol is not None}
    if len(headings) == 1 and headings <= SUFFIXES.keys():
        return str(headings.pop()), []
    notes = ["The runs have different heading protocols; pooled scores are shown."] if len(headings) > 1 else []
    return "pooled", notes


def _memory(variant: Variant) -> tuple[str, float] | None:
    """Return kind and mean over seeds of the peak memory of training: of the GPU where one was used."""
    found = [done.result.get("peak_memory_mb") or {} for done in variant.done.values()]
    for key, kind in (("device", "GPU"), ("host", "host")):
        values = [float(peak[key]) for peak in found if isinstance(peak.get(key), int | float)]
        if values and len(values) == len(found):
            return kind, statistics.fmean(values)
    return None


# ── comparisons ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _compare(report: Report, options: ReportOptions, chosen: dict[str, Any]) -> None:
    baseline = report.baseline
    if baseline is None or not baseline.done:
        words = ", ".join(f"{key} {value}" for key, value in chosen.items())
        report.notes.append(
            f"The baseline ({words}) has no finished cell yet: there are no differences; --baseline chooses another."
        )
        report.baseline = baseline = None
    else:
        report.comparisons = ablation.compare_all(report.variants, baseline, report.measures)
        if len(report.variants) == 1:
            report.notes.append("There is one variant, so nothing to compare.")
    over = references(report, options.single, baseline)
    report.delta, notes = ablation.deltas(report.variants, over, report.measures)
    report.notes += notes
    if report.delta:
        names = list(dict.fromkeys(over[label].name for label in report.delta))
        report.delta_over = "; ".join(names)


# ── cost ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cost(report: Report, options: ReportOptions) -> None:
    """Add what the networks cost; equal networks share one measurement."""
    configs: dict[str, Path] = {}
    hashes: dict[str, str] = {}
    for variant in report.variants:
        config = report.plan.folder_of(next(iter(variant.done.values())).cell) / runs.CONFIG
        name = efficiency.network_hash(config)
        if name is not None:
            hashes[variant.label] = name
            configs.setdefault(name, config)
    if not configs:
        report.notes.append("The cost of the networks is not known: the cells have no config.yaml.")
        return
    path = report.plan.folder / "report" / CACHE
    try:
        found: dict[str, Any] | None
        if options.measure:
            found = efficiency.efficiency(path, configs, options.rounds)
        else:
            found = efficiency.cached(path, set(configs), None)
    except (M2HError, RuntimeError) as error:  # PyTorch's for too little memory too
        report.notes.append(f"The cost of the networks could not be measured: {' '.join(str(error).split())}")
        return
    if found is None:
        report.notes.append("The cost of the networks was not measured (--no-measure).")
        return
    batch = found["machine"]["batch"]
    report.cost = {label: {**found["networks"][name], "batch": batch} for label, name in hashes.items()}
    report.measured = {key: found[key] for key in ("date", "others", "rounds")}
    report.measured |= {**found["machine"], "networks": len(configs)}


# ── searches and pictures ───────────────────────────────────────────────────────────────────────────────────────────


def _search(report: Report, ledger: Ledgered) -> None:
    report.trials = trials_of(report.plan, report.cells)
    report.given_up = given_up(report.plan, ledger)
    report.importance, sentence = importance(report.plan, ledger)
    report.notes += [sentence] if sentence else []


def draw(report: Report, base: Path) -> None:
    """Draw the pictures of a report beside its files, and note their names.

    Args:
        report: The report.
        base: Path of its files without an ending.
    """

    def place(kind: str) -> Path:
        report.pictures[kind] = f"{base.name}-{kind}.png"
        return base.with_name(report.pictures[kind])

    if report.plan.searches:
        metric, higher = report.plan.metric, report.plan.higher_is_better
        finished = [(t.number, t.value) for t in report.trials]
        plots.plot_history(place("history"), finished, report.given_up, metric, higher)
        if report.importance:
            plots.plot_importance(place("importance"), report.importance)
        return
    swept = swept_keys([variant.values for variant in report.variants])
    plots.plot_scores(place("scores"), report.variants, report.baseline, report.measures, swept)
    timed = [variant for variant in report.variants if variant.label in report.cost]
    headlines = [measure for measure in report.measures if measure.headline]
    if not timed or not headlines:
        return
    if report.measured["networks"] < 2:
        report.notes.append("All variants have the same network, so there is no trade of accuracy against latency.")
        return
    delta = dict(report.delta)
    if report.baseline is not None and delta and report.delta_over.startswith("the baseline"):
        delta[report.baseline.label] = 0.0
    latency = {variant.label: report.cost[variant.label]["latency_p50_ms"] for variant in timed}
    plot_pareto(place("pareto"), timed, latency, headlines, delta, report.baseline)
