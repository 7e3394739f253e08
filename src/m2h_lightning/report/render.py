"""Writes a table as Markdown, CSV or LaTeX. Names of runs come from files and are escaped in each."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence

from m2h_lightning.report.model import NONE, Column, Group, Row, Table

_LETTERS = "abcdefghijklmnoprstuvwxyz"  # no q: Unicode has no superscript of it in common fonts
_SUPERSCRIPTS = dict(zip(_LETTERS, "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True))

_BREAK = "\u200b"
"""Stands between two hyphens, which LaTeX would draw as one dash; ``plain`` removes it from all other text."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",
    "`": r"\`{}",
    "[": "{[}",  # an optional argument after a line break
    "]": "{]}",
    "*": "{*}",  # the starred line break
    _BREAK: "{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "°": r"$^\circ$",
    "Δ": r"$\Delta$",
    "δ": r"$\delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "Σ": r"$\Sigma$",
}


def plain(text: str) -> str:
    """Return text on one line: what cannot be printed, such as line breaks, becomes a space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def markdown_text(text: str) -> str:
    """Escape text for a cell of a Markdown table; underscores inside words need no escape."""
    escaped = re.sub(r"([\\`*{}\[\]<>#|~&!$@]|:(?=//)|(?<=www)\.)", r"\\\1", plain(text))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def latex_text(text: str) -> str:
    """Escape text for LaTeX; characters that not every TeX engine knows are written as their code point."""
    text = re.sub("-(?=-)", f"-{_BREAK}", plain(text))
    return "".join(_LATEX.get(c, c if ord(c) < 128 else f"U+{ord(c):04X}") for c in text)


def csv_text(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    text = plain(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def header(column: Column, protocols: int) -> str:
    """Return the header of a column: label, protocol where the table has several, direction and unit."""
    name = column.name
    protocol = f" {column.protocol.replace('_', ' ')}" if protocols > 1 and not name.whole_set else ""
    unit = "%" if not column.task else name.unit
    return f"{name.label}{protocol} {'↑' if name.higher_is_better else '↓'}" + (f" ({unit})" if unit else "")


class _Footnotes:
    """Gives each remark a letter in the order in which it is used."""

    def __init__(self) -> None:
        self.letters: dict[str, str] = {}

    def __call__(self, marks: Sequence[str]) -> str:
        return ",".join(self._letter(mark) for mark in marks)

    def _letter(self, mark: str) -> str:
        if mark not in self.letters:
            times, index = divmod(len(self.letters), len(_LETTERS))
            self.letters[mark] = _LETTERS[index] * (times + 1)
        return self.letters[mark]


def _cells(
    row: Row,
    table: Table,
    footnotes: _Footnotes,
    text: Callable[[str], str],
    bold: Callable[[str], str],
    raised: Callable[[str], str],
) -> list[str]:
    """Return the cells of a row in a format that has bold text and footnotes."""
    cells = [text(row.name) + raised(footnotes(row.marks)), text(row.backbone), text(row.seed)]
    if table.with_source:
        cells.append(text(row.source))
    for column in table.columns:
        cell = row.cells.get(column)
        if cell is None:
            cells.append(text(NONE))
            continue
        number = text(cell.text(column))
        cells.append((bold(number) if cell.best else number) + raised(footnotes([cell.mark] if cell.mark else [])))
    return cells


def _head(table: Table) -> list[str]:
    """Return the headers of all columns."""
    names = ["run", "backbone", "seed", *(["source"] if table.with_source else [])]
    protocols = len({column.protocol for column in table.columns if not column.name.whole_set})
    return [*names, *(header(column, protocols) for column in table.columns)]


def markdown(table: Table) -> str:
    """Return one Markdown table per group, with footnotes and notes."""

    def raised(letters: str) -> str:
        return "".join(_SUPERSCRIPTS.get(letter, "˒") for letter in letters)

    footnotes = _Footnotes()
    head = _head(table)
    numbers = len(table.columns)
    lines = [f"**{markdown_text(table.title)}**"]
    for group in table.groups:
        rows = [_cells(row, table, footnotes, markdown_text, "**{}**".format, raised) for row in group.rows]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        first_number = len(head) - numbers

        def line(cells: Sequence[str], widths: list[int] = widths, first: int = first_number) -> str:
            padded = (
                c.rjust(w) if i >= first else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            return f"| {' | '.join(padded)} |"

        rule = [f"{'-' * (w - 1)}:" if i >= first_number else "-" * w for i, w in enumerate(widths)]
        lines += ["", markdown_text(group.title), "", line(head), line(rule), *(line(row) for row in rows)]
    remarks = [f"{raised(letter)} {markdown_text(mark)}  " for mark, letter in footnotes.letters.items()]
    if remarks:
        lines += ["", *remarks]
    if table.notes:
        lines += ["", *(f"- {markdown_text(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def latex(table: Table) -> str:
    """Return a LaTeX table; it needs the package booktabs."""

    def raised(letters: str) -> str:
        return rf"\textsuperscript{{{letters}}}" if letters else ""

    footnotes = _Footnotes()
    head = _head(table)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{{'l' * (len(head) - len(table.columns))}{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(latex_text(name) for name in head) + r" \\",
    ]
    for group in table.groups:
        lines += [r"\midrule", rf"\multicolumn{{{len(head)}}}{{l}}{{\emph{{{latex_text(group.title)}}}}} \\"]
        for row in group.rows:
            cells = _cells(row, table, footnotes, latex_text, r"\textbf{{{}}}".format, raised)
            lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    remarks = [f"{raised(letter)} {latex_text(mark)}." for mark, letter in footnotes.letters.items()]
    remarks += [f"{latex_text(note)}." for note in table.notes]
    if remarks:
        lines += [r"\par\smallskip", r"{\footnotesize\raggedright", "\\par\n".join(remarks), r"\par}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def csv_table(table: Table) -> str:
    """Return one line per row for programs: full precision, empty where there is no value; text is never a formula."""
    head = ["group", "run", "backbone", "seed", "source"]
    for column in table.columns:
        unit = "%" if not column.task else column.name.unit
        key = column.key + (f" ({unit})" if unit else "")
        head += [key, f"{key} std"] if table.with_std else [key]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*map(csv_text, head), "remarks"])
    for group in table.groups:
        for row in group.rows:
            writer.writerow(_csv_row(group, row, table))
    return buffer.getvalue()


def _csv_row(group: Group, row: Row, table: Table) -> list[str]:
    texts = (group.title, row.name, row.backbone, row.seed, row.source)
    cells = ["" if text == NONE else csv_text(text) for text in texts]
    remarks = list(row.marks)
    for column in table.columns:
        cell = row.cells.get(column)
        values = (None, None) if cell is None else (cell.value, cell.std)
        for value in values if table.with_std else values[:1]:
            cells.append("" if value is None else "NaN" if math.isnan(value) else f"{value * column.name.scale:.10g}")
        if cell is not None and cell.mark:
            remarks.append(f"{column.key}: {cell.mark}")
    return [*cells, csv_text("; ".join(remarks))]


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "csv": csv_table, "latex": latex}
ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
