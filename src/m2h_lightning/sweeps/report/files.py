"""Writes the report of a sweep: PATH.md, PATH.csv, PATH.json and the pictures PATH-*.png."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.report.ablation import raw_unit
from m2h_lightning.report.ablation_text import conclusions, cost_table, difference_table, grid, score_table
from m2h_lightning.report.render import csv_text, markdown_text
from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.planning.again import from_here, run_command
from m2h_lightning.sweeps.planning.cells import as_text
from m2h_lightning.sweeps.planning.parameters import SEED
from m2h_lightning.sweeps.report.build import draw
from m2h_lightning.sweeps.report.cells import shown_value
from m2h_lightning.sweeps.report.efficiency import FOR_P95
from m2h_lightning.sweeps.report.model import Report
from m2h_lightning.sweeps.report.record import KIND, as_json
from m2h_lightning.sweeps.report.search import BEST, trial_table

PICTURES = {
    "scores": "Scores over what was swept: means with 95 % intervals, a dot per seed, the baseline dashed; intervals "
    "much wider than the spread of all seeds are cut",
    "pareto": "Accuracy against latency",
    "history": "Course of the search",
    "importance": "Importance of the parameters",
}
_ENDINGS = (".md", ".csv", ".json")
BUSY = 0.15
"""Share of the machine's cores that others use, above which a measurement is told to be slowed."""


def check_target(base: Path) -> None:
    """Refuse to write a report over anything but a report.

    Args:
        base: Path of the report's files without an ending.

    Raises:
        ConfigError: The folder is missing, or other files have these names.
    """
    if not base.parent.is_dir():
        raise ConfigError(f"-o {base}: there is no folder {base.parent}; create it")
    there = [path for ending in _ENDINGS if (path := base.with_name(base.name + ending)).exists()]
    if not there:
        return
    try:
        kind = json.loads(base.with_name(f"{base.name}.json").read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != KIND:
        raise ConfigError(f"-o {base}: {there[0]} is there and is no report of a sweep; choose another name")


def write(report: Report, base: Path, pictures: bool) -> str:
    """Write all files of a report; return its Markdown.

    Args:
        report: The report.
        base: Path of the files without an ending.
        pictures: Whether pictures are drawn.

    Raises:
        ConfigError: Other files are in the way.
        DataError: A file cannot be written.
    """
    check_target(base)
    try:
        if pictures:
            draw(report, base)
        text = markdown(report, base.name)
        runs.write_text(base.with_name(f"{base.name}.md"), text)
        runs.write_text(base.with_name(f"{base.name}.csv"), long_csv(report))
        runs.write_json(base.with_name(f"{base.name}.json"), as_json(report))
        for kind in PICTURES.keys() - report.pictures.keys():  # of an earlier report: they show other numbers
            base.with_name(f"{base.name}-{kind}.png").unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"-o {base}: cannot be written ({error.strerror}); choose another place") from error
    return text


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────────────────────────


def markdown(report: Report, name: str) -> str:
    """Return the report as a page.

    Args:
        report: The report.
        name: Name of its files without an ending, for links.
    """
    lines = [f"# {markdown_text(report.plan.name)}", "", *_intro(report), ""]
    lines += [line for warning in report.warnings for line in (f"> **Warning:** {markdown_text(warning)}", "")]
    lines += _trials(report) if report.plan.searches else _tables(report)
    for kind, file in report.pictures.items():
        lines += [f"![{PICTURES[kind]}]({file})", ""]
    if report.notes:
        lines += [*(f"- {markdown_text(note)}" for note in report.notes), ""]
    lines += _missing(report)
    lines += [f"Scores of every seed: [{name}.json]({name}.json), [{name}.csv]({name}.csv)."]
    return "\n".join(lines).rstrip() + "\n"


def _intro(report: Report) -> list[str]:
    plan, cells = report.plan, report.cells
    some = cells.done[0].result
    swept = [p for p in plan.parameters.values() if p.swept and p.name != SEED]
    what = " × ".join(
        f"`{p.name}` ({_choices(p.values)})" if p.values else f"`{p.name}` ({p.low:.4g} to {p.high:.4g})" for p in swept
    )
    seeds = sorted({seed for variant in report.variants for seed in variant.planned})
    data = (some.get("data") or {}).get("name")
    repeated = f" with {len(seeds)} seed{'s' * (len(seeds) != 1)}" if not plan.searches else f" by {plan.method} search"
    where = f" on {markdown_text(str(data))}" if data else ""
    experiment = f" (experiment `{plan.experiment}`)" if plan.experiment else ""
    what, verb = what or "Nothing but the seed", "were" if len(swept) > 1 else "was"
    state = f"{len(cells.done)} of {cells.planned} cells are in the tables"
    unfinished = Counter(missing.state for missing in cells.missing)
    if unfinished:
        state += f" ({', '.join(f'{count} {kind}' for kind, count in unfinished.items())})"
    lines = [f"{what} {verb} swept{repeated}{where}{experiment}. {state}.", "", "```sh", run_command(from_here(plan))]
    lines += [shlex.join(["m2h", "sweep", "report", *report.words]), "```", "", _where(report)]
    return lines


def _choices(values: Sequence[Any]) -> str:
    groups = any(isinstance(value, Mapping) for value in values)
    return markdown_text(("; " if groups else ", ").join(shown_value(value) for value in values))


def _where(report: Report) -> str:
    """Return hardware, date, commit and data of the finished cells in words."""
    results = [done.result for done in report.cells.done]
    parts = []
    devices = Counter(_device(result) for result in results if result.get("device"))
    if devices:
        parts.append("cells ran on " + "; ".join(markdown_text(device) for device in devices))
    times = sorted(str(result["time"])[:10] for result in results if result.get("time"))
    if times:
        parts.append(times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}")
    commits = dict.fromkeys(str(r["git"]["commit"])[:12] for r in results if (r.get("git") or {}).get("commit"))
    if commits:
        parts.append(f"commit {', '.join(commits)}")
    torch = dict.fromkeys(str(r["versions"]["torch"]) for r in results if (r.get("versions") or {}).get("torch"))
    if torch:
        parts.append(f"torch {', '.join(torch)}")
    tests = dict.fromkeys(str((r.get("data") or {}).get("test_fingerprint") or "") for r in results)
    if any(tests):
        parts.append(f"test set {', '.join(f'`{test}`' for test in tests if test)}")
    text = "; ".join(parts)
    protocol = report.protocol.replace("_", " ")
    text = f"{text[:1].upper()}{text[1:]}" if text else "Where the cells ran is not known"
    return f"{text}; protocol: {protocol}. This report: {runs.timestamp()[:10]}."


def _device(result: Mapping[str, Any]) -> str:
    device = result["device"]
    threads = device.get("threads")
    count = device.get("processes", 1)
    text = f"{device.get('type')} ({device.get('name')})" + (f" × {count}" if count != 1 else "")
    return f"{text}, {threads} thread{'s' * (threads != 1)} each, {device.get('precision')}" if threads else text


def _tables(report: Report) -> list[str]:
    lines = ["## Scores", "", *score_table(report.variants, report.baseline, report.measures, report.delta), ""]
    counts = [len(variant.done) for variant in report.variants]
    if max(counts) > 1:
        lines += ["Mean ± half width of the 95 % interval of Student's t over seeds; the test split."]
    else:
        lines += ["One seed: there are no intervals, and no difference can be told from noise."]
    if report.delta:
        lines[-1] += f" Δm: mean relative gain over {markdown_text(report.delta_over)}, one headline per task."
    short = [variant for variant in report.variants if len(variant.done) < len(variant.planned)]
    if short:
        lines += ["", f"Fewer seeds than planned: {', '.join(markdown_text(variant.label) for variant in short)}."]
    lines.append("")
    if report.comparisons:
        lines += ["## Differences from the baseline", ""]
        if report.baseline is not None:
            lines += [f"Baseline: {markdown_text(report.baseline.label)}. Differences of cells of the same seed.", ""]
        lines += [*difference_table(report.comparisons, report.measures), ""]
        for line in conclusions(report.comparisons):
            lines += [line] if line.startswith("- ") else ["", line]
        lines.append("")
    lines += _costs(report)
    return [line for index, line in enumerate(lines) if line or (index and lines[index - 1])]


def _costs(report: Report) -> list[str]:
    table = cost_table(report.variants, report.cost, report.memory)
    if not table:
        return []
    lines = ["## Cost", "", *table, ""]
    if report.measured:
        lines.append(_measured(report))
    if report.memory:
        lines.append("Peak memory is that of training with the test, mean over seeds, of the process of rank 0.")
    return [*lines, ""]


def _measured(report: Report) -> str:
    """Say how latency and throughput were measured."""
    m, rounds = report.measured, report.measured["rounds"]
    sizes = ", ".join(dict.fromkeys("×".join(map(str, own["size"])) for own in report.cost.values()))
    text = (
        f"Latency (batch size 1, {rounds['latency']} rounds) and throughput (batch size {m['batch']}, "
        f"{rounds['throughput']} rounds) of the forward pass, images of {sizes} pixels, {m['precision']}: measured "
        f"{str(m['date'])[:10]} on {markdown_text(m['device'])} with {m['threads']} thread{'s' * (m['threads'] != 1)}, "
        f"torch {m['torch']}. "
    )
    if m["networks"] > 1:
        text += f"In each round the {m['networks']} different networks took turns in one process, "
    else:
        text += "All variants have the same network; it was measured "
    text += f"after {m['warm_up']} passes to warm up, with random weights (the speed does not depend on them)."
    if rounds["latency"] < FOR_P95:
        text += f" No p95: {rounds['latency']} rounds are too few, it needs {FOR_P95}."
    if m["others"] is not None and m["others"] > BUSY * m["cores"]:
        text += (
            f" **The machine was busy**: other processes used {m['others']:.1f} of its {m['cores']} cores meanwhile, "
            "so these times are too long, and their order may be chance: measure again when it is idle (--rounds 50); "
            "one thread (OMP_NUM_THREADS=1) suffers least."
        )
    return text


def _trials(report: Report) -> list[str]:
    shown = min(BEST, len(report.trials))
    lines = [f"## The best {shown} of {len(report.trials)} runs", "", *trial_table(report.plan, report.trials), ""]
    lines += ["Each run has one seed: repeat the best values with a grid over seeds before believing a difference.", ""]
    if report.importance:
        shares = ", ".join(f"{markdown_text(name)} {share:.2f}" for name, share in report.importance.items())
        lines += [f"Importance of the parameters (PED-ANOVA, shares of 1): {shares}.", ""]
    return lines


def _missing(report: Report) -> list[str]:
    missing = report.cells.missing
    if not missing:
        return []
    rows = [
        [markdown_text(m.cell), markdown_text(m.label), m.seed, m.state, markdown_text(m.reason) or "–"]
        for m in missing
    ]
    head = ["cell", "variant", "seed", "state", "reason"]
    return [f"## Not in the tables: {len(missing)} cells", "", *grid(head, rows, words=5), ""]


# ── CSV ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def long_csv(report: Report) -> str:
    """Return one line per finished cell and score, and one per cell that has none; text is never a formula."""
    keys = list(dict.fromkeys(key for variant in report.cells.variants for key in variant.values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*map(csv_text, ("sweep", "cell", "variant", "seed", "state", *keys, "metric", "unit", "value"))])
    for variant in report.cells.variants:
        values = [csv_text(as_text(variant.values[key])) if key in variant.values else "" for key in keys]
        for done in variant.done.values():
            start = [csv_text(text) for text in (report.plan.name, done.cell, variant.label, done.seed)]
            for metric, value in sorted(done.scores.items()):
                number = "NaN" if value is None else f"{value:.10g}"
                writer.writerow([*start, "finished", *values, csv_text(metric), csv_text(raw_unit(metric)), number])
        for missing in report.cells.missing:
            if missing.label == variant.label:
                start = [csv_text(text) for text in (report.plan.name, missing.cell, missing.label, missing.seed)]
                writer.writerow([*start, missing.state, *values, "", "", ""])
    return buffer.getvalue()
