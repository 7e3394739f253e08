"""Runs to put into tables, and readers of the tables."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from cli_helpers import m2h
from m2h_lightning.report.names import OLD_HEADLINES
from result_files import result, write_run


def write_two_runs(root: Path) -> Path:
    """Write two comparable runs of one experiment and a baseline for each task; return ``root``."""
    write_run(root, "nyud/a", seed=0)
    better = {"semseg": {"miou": 0.4583, "miou_per_image": 0.5}, "depth": {"rmse_m": 0.5501}, "edges": {"odsf": 0.7702}}
    write_run(root, "nyud/b", result(scores=better), seed=1)
    for task, score in {"semseg": 0.46, "depth": 0.55, "normals": 19.5, "edges": 0.76}.items():
        write_run(root, f"single/{task}", result((task,), {task: {OLD_HEADLINES[task][0]: score}}))
    return root


def output(capsys, *words):
    code = m2h("table", *words)
    got = capsys.readouterr()
    assert code == 0, got.err
    return got.out


def refusal(capsys, *words):
    code = m2h("table", *words)
    got = capsys.readouterr()
    assert code == 2, got.out
    assert got.out == ""
    lines = got.err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def tables(text):
    """Parse Markdown tables: a list of (line above, header, rows)."""
    found, lines = [], text.splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|( -+:? \|)+", line):
            cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in lines[number - 1 : _end(lines, number)]]
            cells = [[cell.strip() for cell in row] for row in cells]
            found.append((lines[number - 3], cells[0], cells[2:]))
    return found


def _end(lines, number):
    return next((i for i in range(number, len(lines)) if not lines[i].startswith("|")), len(lines))


def rows_of_csv(text):
    return list(csv.DictReader(io.StringIO(text)))
