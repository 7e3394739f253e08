"""Builds the table of some runs: which columns, which rows may stand together, and what has to be said below."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from m2h_lightning.report.collect import Run, differences, shown
from m2h_lightning.report.compare import Baselines, check_protocols, check_seeds, compare, seedless_key, unlike
from m2h_lightning.report.model import DELTA, NONE, Cell, Column, Group, Row, Table, rank, sort_rows
from m2h_lightning.report.names import METRICS, SUFFIXES, MetricName, all_metrics, metric_key, metric_name, task_order
from m2h_lightning.report.published import PublishedGroup, published

UNKNOWN = "evaluation settings unknown, written by an older version: not ranked"


@dataclass(frozen=True)
class Options:
    """What the table shows.

    Args:
        protocol: "pooled", "per_image", "both", or None for the heading protocol of the runs.
        metrics: "headline" shows one metric per task, "all" shows all that are compared.
        variant: Metrics that Δm is the mean of: "headline" or "all".
        paper: Whether published results of the same data sets are added.
        mean: Whether runs that differ in the seed alone become one row.
        sort: Task by whose first column the rows of a group are sorted; None keeps the order of the command line.
    """

    protocol: str | None = None
    metrics: str = "headline"
    variant: str = "headline"
    paper: bool = False
    mean: bool = False
    sort: str | None = None


def build(runs: Sequence[Run], singles: Sequence[Run], options: Options, notes: Sequence[str] = ()) -> Table:
    """Build the table of some runs.

    Args:
        runs: At least one.
        singles: Single-task runs; with them there is a column Δm and a row of the baselines.
        options: What to show.
        notes: Sentences to print below.

    Raises:
        ConfigError: Δm was asked for and runs cannot be compared; seeds that repeat; an unknown task to sort by.
        DataError: A ``config.yaml`` that is needed is damaged.
    """
    notes = list(notes)
    protocols = _protocols(runs, singles, options.protocol, notes)
    merged = _merge(runs) if options.mean else [[run] for run in runs]
    papers = published({run.data for run in runs}) if options.paper else []
    columns = _columns([*runs, *singles], papers, protocols, options.metrics)
    rows = [_row(same, columns, runs) for same in merged]
    groups = _groups(merged, rows)
    deltas: list[Column] = []
    if singles:
        baselines = Baselines.of(singles)
        deltas = [Column("", DELTA, protocol, MetricName("Δm", True, "", 2)) for protocol in protocols]
        notes += _add_deltas(merged, rows, deltas, baselines, options.variant)
        # Had a run been in another group than the baselines, it would have been refused.
        groups[0].rows.insert(0, _baseline_row(baselines, columns, deltas))
    if options.paper:
        notes += _relations(merged, papers, protocols)
        groups += [_paper_group(group, columns, protocols) for group in papers]
    for group in groups:
        rank(group, [*columns, *deltas])
    if options.sort:
        sort_rows(groups, columns, options.sort)
    notes += _explanations(groups, columns, protocols)
    title = f"Test results, protocol: {' and '.join(protocol.replace('_', ' ') for protocol in protocols)}"
    return Table(title, [*columns, *deltas], groups, list(dict.fromkeys(notes)), bool(papers), options.mean)


def _protocols(runs: Sequence[Run], singles: Sequence[Run], chosen: str | None, notes: list[str]) -> list[str]:
    if chosen is not None:
        return list(SUFFIXES) if chosen == "both" else [chosen]
    if singles:
        check_protocols([*runs, *singles])
    headings = {run.protocol for run in runs if run.protocol is not None}
    if len(headings) > 1:
        notes.append("the runs have different heading protocols: pooled is shown, --protocol chooses another")
    elif headings and headings <= SUFFIXES.keys():
        return list(headings)
    elif headings:
        notes.append("scores per batch depend on the batch size and are not compared: pooled is shown")
    return ["pooled"]


def _merge(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs together that differ in the seed alone, at the place of the first."""
    merged: dict[str, list[Run]] = {}
    for run in runs:
        merged.setdefault(seedless_key(run) or f"no configuration: {run.path}", []).append(run)
    for same in merged.values():
        check_seeds(same)
    return list(merged.values())


def _columns(
    runs: Sequence[Run], papers: Sequence[PublishedGroup], protocols: Sequence[str], which: str
) -> list[Column]:
    names: dict[tuple[str, str], MetricName] = {}
    for run in runs:
        for task in run.tasks:
            if (headline := run.headlines.get(task)) is not None:
                base = headline.keys["pooled"]
                name = metric_name(task, base, headline.higher_is_better)
                if name is not None:
                    names.setdefault((task, base), name)
            for base in all_metrics(task, set(run.metrics[task])) if which == "all" else ():
                if (name := metric_name(task, base)) is not None:
                    names.setdefault((task, base), name)
    for task, base in (key for group in papers for row in group.rows for key in row.values):
        if (name := metric_name(task, base)) is not None:
            names.setdefault((task, base), name)

    def order(key: tuple[str, str]) -> tuple[tuple[int, str], int, str]:
        known = list(METRICS.get(key[0], {}))
        return task_order(key[0]), known.index(key[1]) if key[1] in known else len(known), key[1]

    return [
        Column(task, base, protocol, names[task, base])
        for task, base in sorted(names, key=order)
        for protocol in (protocols[:1] if names[task, base].whole_set else protocols)
    ]


def _row(same: Sequence[Run], columns: Sequence[Column], runs: Sequence[Run]) -> Row:
    """Return the row of a run, or of several that differ in the seed alone."""
    run = same[0]
    cells = {}
    for column in columns:
        found = [one.metrics.get(column.task, {}) for one in same]
        key = metric_key(column.task, column.base, column.protocol)
        if all(key in metrics for metrics in found):
            cells[column] = _mean([float("nan") if (v := metrics[key]) is None else v for metrics in found])
    name = run.name if len(same) == 1 else f"{run.experiment} (n = {len(same)})"
    if sum(one.name == run.name for one in runs) > 1:  # copied run folders: their places tell them apart
        name = str(run.path.parent) if len(same) == 1 else f"{run.path.parent.parent} (n = {len(same)})"
    return Row(
        name=name,
        backbone=NONE if run.backbone is None else shown(run.backbone["name"]),
        seed=", ".join(one.seed or NONE for one in same),
        source="predictions" if run.command == "evaluate" else "run",
        cells=cells,
    )


def _mean(values: Sequence[float]) -> Cell:
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _groups(merged: Sequence[Sequence[Run]], rows: Sequence[Row]) -> list[Group]:
    """Put rows together that were scored on the same data with the same settings; say why others stand apart."""
    groups: dict[str, Group] = {}
    first = next((same[0].conditions for same in merged if same[0].conditions is not None), None)
    for (run, *_), row in zip(merged, rows, strict=True):
        if run.conditions is None or first is None:
            row.marks.append(UNKNOWN)
            groups.setdefault("unknown", Group("evaluation settings unknown", [], ranked=False)).rows.append(row)
            continue
        if differing := differences(run.conditions, first):
            row.marks.append(f"not comparable with the first group; this / first: {'; '.join(differing)}")
        groups.setdefault(run.conditions_key, Group(_title(run), [])).rows.append(row)
    return sorted(groups.values(), key=lambda group: not group.ranked)


def _title(run: Run) -> str:
    known = run.conditions or {}
    labels = "labels at their own size" if known["labels"] == "own" else "labels resized to the input"
    size = "" if known["eval_size"] is None else f", input {shown(known['eval_size'])}"
    crop = "no crop" if known["crop"] == "none" else f"crop {shown(known['crop'])}"
    cap = "no cap" if known["cap"] is None else f"cap {shown(known['cap'])} {known['depth_unit'] or ''}".rstrip()
    odsf = "no odsF" if known["odsf"] == "none" else f"odsF {known['odsf']}, tolerance {shown(known['max_dist'])}"
    return f"{run.data}, {known['test'] or 'test'}; {labels}{size}; depth: {crop}, {cap}; {odsf}"


def _add_deltas(
    merged: Sequence[Sequence[Run]],
    rows: Sequence[Row],
    deltas: Sequence[Column],
    baselines: Baselines,
    variant: str,
) -> list[str]:
    """Fill the columns Δm; return what has to be said about it."""
    how = "one metric per task" if variant == "headline" else "the metrics of a task averaged first, then the tasks"
    text = f"Δm in percent, variant '{variant}' ({how}): mean relative gain over the single-task networks"
    notes = []
    for same, row in zip(merged, rows, strict=True):
        alike = all(other[0].tasks == same[0].tasks for other in merged)
        for column in deltas:
            found = [compare(run, baselines, column.protocol, variant) for run in same]
            row.cells[column] = cell = _mean([delta.percent for delta in found])
            cell.mark = None if alike else f"Δm over {', '.join(same[0].tasks)}: the runs have different tasks"
            metrics = "; ".join(f"{task} {', '.join(keys)}" for task, keys in found[0].metrics.items())
            notes.append(f"{text}; metrics: {metrics}")
    sources = "; ".join(f"{task} {', '.join(r.name for r in same)}" for task, same in baselines.runs.items())
    notes.append(f"single-task networks: {sources}")
    if odd := list(dict.fromkeys(text for same in merged for run in same for text in unlike(run, baselines))):
        notes.append(f"multi-task and single-task networks differ in: {'; '.join(odd)}")
    return notes


def _baseline_row(baselines: Baselines, columns: Sequence[Column], deltas: Sequence[Column]) -> Row:
    cells = {}
    for column in columns:
        value = baselines.value(column.task, column.base, column.protocol)
        if value is not None:
            cells[column] = Cell(value)
    runs = baselines.all_runs
    name = f"single-task networks ({len(runs)})"
    seeds = ", ".join(sorted({run.seed or NONE for run in runs}))
    backbone = shown((runs[0].backbone or {}).get("name"))
    return Row(name, backbone, seeds, "run", {**cells, **{column: Cell(0.0) for column in deltas}})


def _paper_group(group: PublishedGroup, columns: Sequence[Column], protocols: Sequence[str]) -> Group:
    rows = []
    for paper in group.rows:
        marks = [paper.mark] if paper.mark else []
        if group.protocol is not None and group.protocol not in protocols:
            marks.append(f"scored {group.protocol.replace('_', ' ')}, another protocol than the table's")
        cells = {}
        for (task, base), printed in paper.values.items():
            own = [column for column in columns if (column.task, column.base) == (task, base)]
            # Of a protocol that the table does not show, or that is unknown, values stand in the first column.
            column = next((column for column in own if column.protocol == group.protocol), own[0])
            cells[column] = Cell(
                float(printed) / column.name.scale, mark=paper.marks.get((task, base)), printed=printed
            )
        rows.append(Row(paper.method, NONE, NONE, paper.source, cells, marks))
    return Group(group.title, rows, group.ranked)


def _relations(
    merged: Sequence[Sequence[Run]], papers: Sequence[PublishedGroup], protocols: Sequence[str]
) -> list[str]:
    """Say how the runs were scored differently from published results, or that no difference is known."""
    notes = []
    for run in (same[0] for same in merged):
        own = [paper for paper in papers if paper.data == run.data]
        if not own:
            notes.append(f"there are no published results of the data set '{run.data}' here")
        for paper in own:
            if not paper.conditions or paper.protocol not in protocols or run.conditions is None:
                continue
            differing = differences({key: run.conditions[key] for key in paper.conditions}, paper.conditions)
            notes.append(
                f"the group '{_title(run)}' is not comparable with '{paper.title}'; they differ in: "
                f"{'; '.join(differing)}"
                if differing
                else f"the group '{_title(run)}' has the settings of '{paper.title}', as far as these are known; they "
                "are not ranked together: data and scorer are not known to be the same"
            )
    return notes


def _explanations(groups: Sequence[Group], columns: Sequence[Column], protocols: Sequence[str]) -> list[str]:
    notes = []
    if any(column.name.unit == "%" for column in columns):
        notes.append("shares between 0 and 1, such as mIoU and odsF, are printed in percent, as papers print them")
    if "per_image" in protocols and any(column.name.whole_set for column in columns):
        notes.append("odsF, oisF and AP are of the whole set by definition: the same under every protocol")
    if any(cell.best for group in groups for row in group.rows for cell in row.cells.values()):
        notes.append("bold is the best of its group; groups are not comparable and are not ranked together")
    return notes
