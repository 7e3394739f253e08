"""``m2h table``: what is refused, that names of runs can do no harm, and how files are written."""

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2h_lightning.report.render import csv_text, latex_text, markdown_text
from result_files import result, write_run
from table_helpers import output, refusal, rows_of_csv, tables, write_two_runs

NASTY = "|x_*[b](http://e.vil)<script>&\\{$^~%#}\n=1+1 中 `q` \ud800 -- \"'"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nyud(here):
    return write_two_runs(here)


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


def _put(folder, content):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(content if isinstance(content, str) else json.dumps(content))


def _without(*keys):
    content = result()
    for key in keys:
        del content[key]
    return content


def _test(value):
    return result() | {"metrics": {"test": value}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "damaged or no JSON"),
        ("{", "damaged or no JSON"),
        (json.dumps(result())[:200], "damaged or no JSON"),
        ("[" * 100_000, "damaged or no JSON"),
        ("[]", "is no result of a run"),
        ("3", "is no result of a run"),
        ("{}", "is no result of a run"),
        ({"status": "finished"}, "is no result of a run"),
        (result(status="running"), "is not finished, its status is 'running'"),
        (result(fast_dev_run=True), "fast_dev_run"),
        (result(metrics={"val": {"loss": 1}}), "has no test metrics"),
        (result(metrics={}), "has no test metrics"),
        (result(metrics=None), "is not as a run writes it"),
        (result(metrics=[1]), "is not as a run writes it"),
        (_test([1]), "no table of tasks"),
        (_test({"semseg": {"miou": "0.4"}}), "metrics.test.semseg.miou is '0.4', not a number"),
        (_test({"semseg": {"miou": True}}), "not a number"),
        (_test({"semseg": {"miou": [0.4]}}), "not a number"),
        (_test({"semseg": 3}), "is not as a run writes it"),
        (result(evaluation=None) | {"evaluation": {}}, "KeyError: 'protocol'"),
        (result() | {"evaluation": {"protocol": "pooled"}}, "KeyError: 'crop'"),
        (result() | {"evaluation": 3}, "is not as a run writes it"),
        (result() | {"data": 3}, "is not as a run writes it"),
        (result() | {"network": 3}, "is not as a run writes it"),
        (result() | {"headlines": [1]}, "is not as a run writes it"),
        (result() | {"headlines": {"depth": {"pooled": "rmse_m"}}}, "KeyError: 'higher_is_better'"),
        (result() | {"headlines": {"depth": {"higher_is_better": False}}}, "KeyError: 'pooled'"),
        (_test({"semseg": {"miou": 10**400}}), "OverflowError"),
        (result() | {"tasks": 3}, "is not as a run writes it"),
        (result() | {"budget": 3}, "is not as a run writes it"),
    ],
)
def test_what_is_no_result_is_one_line(nyud, capsys, content, words):
    _put(nyud / "bad" / "x", content)
    line = refusal(capsys, "nyud", "bad/x")
    assert words in line
    assert "bad/x/result.json" in line


def test_missing_and_unfinished_runs_are_named(nyud, capsys):
    assert "absent: there is no such run" in refusal(capsys, "nyud", "absent")
    (nyud / "empty").mkdir()
    assert "empty: is no run folder and holds none" in refusal(capsys, "nyud", "empty")
    assert "no such run" in refusal(capsys, "x" * 5000) or "cannot be read" in refusal(capsys, "x" * 5000)
    folder = write_run(nyud, "half/a")
    (folder / "result.json").unlink()
    line = refusal(capsys, "nyud", folder)
    assert "is not finished" in line
    assert "--run.resume" in line
    (folder / "failure.txt").write_text("DataError: the disk is full\nmore")
    assert "(DataError: the disk is full)" in refusal(capsys, folder)
    assert "none of its 1 runs has test metrics" in refusal(capsys, "half")


def test_an_experiment_leaves_out_unfinished_runs_and_says_so(nyud, capsys):
    (write_run(nyud, "nyud/c") / "result.json").unlink()
    write_run(nyud, "nyud/d", result(metrics={"val": {"loss": 1.0}}))
    text = output(capsys, "nyud")
    assert "nyud: 2 of 4 runs left out, without a finished test" in text
    assert len(tables(text)[0][2]) == 2


def test_damage_inside_an_experiment_is_told(nyud, capsys):
    (nyud / "nyud" / "a" / "result.json").write_text("{")
    assert "nyud/a/result.json: is damaged" in refusal(capsys, "nyud")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--paper"],
        ["nyud", "--protocol", "per_batch"],
        ["nyud", "--format", "html"],
        ["nyud", "--metrics", "some"],
        ["nyud", "--variant", "x", "--single", "single"],
        ["nyud", "--single"],
        ["nyud", "--nonsense"],
        ["nyud", "--form", "csv"],
        ["nyud", "--out", "absent/t.md"],
        ["nyud", "--out", "nyud"],
        ["nyud", "--out", "nyud/a/config.yaml"],
        ["nyud", "--out", "nyud/a/result.json"],
        ["nyud", "--out"],
        ["nyud", "--sort", "loss"],
        ["nyud", "--single", "absent"],
    ],
)
def test_bad_words_are_one_line_and_write_nothing(nyud, capsys, words):
    before = {path: path.read_bytes() for path in nyud.rglob("*") if path.is_file()}
    assert refusal(capsys, *words).startswith("m2h: error: ")
    assert {path: path.read_bytes() for path in nyud.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_missing_rights_are_one_line(nyud, capsys):
    (nyud / "nyud" / "a" / "result.json").chmod(0)
    assert "cannot be read" in refusal(capsys, "nyud")


def test_a_link_is_not_written_through(nyud, capsys):
    (nyud / "t.md").symlink_to(nyud / "nyud" / "a" / "config.yaml")
    assert "is no plain file" in refusal(capsys, "nyud", "--out", "t.md")


# ── formats ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_ending_chooses_the_format_and_files_are_whole(nyud, capsys):
    for name, start in (("t.md", "**Test results"), ("t.csv", "group,run,"), ("t.tex", "% \\usepackage{booktabs}")):
        assert output(capsys, "nyud", "--out", name) == f"table: {name}\n"
        first = (nyud / name).read_text(encoding="utf-8")
        assert first.startswith(start)
        output(capsys, "nyud", "--out", name)  # a table may be written again
        assert (nyud / name).read_text(encoding="utf-8") == first
    assert output(capsys, "nyud", "--out", "t.md", "--format", "csv")
    assert (nyud / "t.md").read_text(encoding="utf-8").startswith("group,run,")
    assert [path.name for path in nyud.glob(".*")] == []


def nasty_run(root):
    folder = write_run(root, "nasty/a")
    content = json.loads((folder / "result.json").read_text())
    content |= {"run": NASTY, "experiment": "=cmd|' /C calc'!A0", "seed": "@SUM(1)"}
    content["data"]["fingerprint"] = NASTY
    content["network"]["backbone"]["name"] = "+evil"
    (folder / "result.json").write_text(json.dumps(content))


def test_names_cannot_break_markdown(nyud, capsys):
    markdown_it = pytest.importorskip("markdown_it")
    nasty_run(nyud)
    text = output(capsys, "nyud", "nasty", "--paper")
    for _, head, rows in tables(text):
        assert all(len(row) == len(head) for row in rows)
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(text)
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}
    bad = {"html_inline", "html_block", "link_open", "image", "code_inline", "em_open", "fence", "code_block"}
    assert not kinds & bad
    cells = ["".join(child.content for child in t.children or ()) for t in tokens if t.type == "inline"]
    assert any("x_*[b](http://e.vil)<script>&\\{$^~%#} =1+1 中 `q`" in cell for cell in cells)
    assert "+evil" in cells


MATH = r"\$(\\(pm|times|Delta|delta|uparrow|downarrow|Sigma)|\^\\circ|-)\$"
MACRO = r"\\([A-Za-z]+|[{}$&#%_`])"


def test_names_cannot_break_latex(nyud, capsys):
    nasty_run(nyud)
    text = output(capsys, "nyud", "nasty", "--format", "latex", "--paper")
    columns = len(re.search(r"\\begin\{tabular\}\{(l+r+)\}", text)[1])
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line and not line.startswith((r"\midrule", r"\multicolumn"))]
    assert any("script" in line for line in lines)
    for line in lines:
        assert line.endswith(r" \\")
        bare = re.sub(MACRO, "", re.sub(MATH, "", line.removesuffix(r"\\")))
        assert bare.count("&") == columns - 1, line
        assert not set(bare) & set("\\$#%_^~[]*") - set("[]*"), line
        assert re.search(r"(?<!\{)[\[*]", bare) is None, line
    assert text.isascii()
    depth = 0
    for brace in re.findall(r"[{}]", re.sub(r"\\[{}]", "", text)):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0


def test_no_cell_of_csv_is_a_formula_and_numbers_stay_numbers(nyud, capsys):
    nasty_run(nyud)
    rows = rows_of_csv(output(capsys, "nyud", "nasty", "--format", "csv"))
    assert len(rows) == 3
    assert len({len(row) for row in rows}) == 1
    for row in rows:
        for key, cell in row.items():
            assert not cell.startswith(("=", "+", "@", "-")), (key, cell)
            assert "\n" not in cell
    text = output(capsys, "nyud", "--single", "single", "--format", "csv")
    deltas = [float(row["delta_m (%)"]) for row in rows_of_csv(text)]
    assert min(deltas) < 0  # a negative number is no formula


@given(st.text())
def test_escapes_hold_for_any_text(text):
    cell = markdown_text(text)
    assert "\n" not in cell
    assert set(re.sub(r"\\.", "", cell)) & set("|<>`*[]{}$~&") == set()
    latex = latex_text(text)
    assert latex.isascii()
    assert "\n" not in latex
    assert set(re.sub(MACRO, "", re.sub(MATH, "", latex))) & set("\\$&#%_^~") == set()
    assert not csv_text(text).startswith(("=", "+", "-", "@"))
    assert len(csv_text(text).splitlines()) <= 1
