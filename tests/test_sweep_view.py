"""What a person sees of a sweep: the picture, lines, status, retry, and warnings about cells that do not compare."""

from __future__ import annotations

import datetime
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cli_helpers import m2h
from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.sweeps.arguments import add_sweep_arguments, split
from m2h_lightning.sweeps.arguments import planned as plan_of
from m2h_lightning.sweeps.ledger.study import Entry, Ledger
from m2h_lightning.sweeps.ledger.workers import register
from m2h_lightning.sweeps.planning.again import run_command
from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.plan import Plan, Request, load_plan, make_plan
from m2h_lightning.sweeps.view import live, provenance
from m2h_lightning.sweeps.view.picture import middle, picture
from m2h_lightning.sweeps.view.progress import TAIL, Progress, Reader
from m2h_lightning.sweeps.view.status import best, duration, eta, read_status

CELL = """
import json, os, pathlib, sys, time
args = dict(word.lstrip("-").split("=") for word in sys.argv[1:])
x = int(args["model.x"])
folder = pathlib.Path(os.environ["M2H_CELL"])
folder.mkdir(parents=True, exist_ok=True)
while os.path.exists("hold"):
    time.sleep(0.02)
if os.path.exists(f"fail-{x}"):
    print("first line")
    sys.exit("it is [red]broken[/red]")
(folder / "result.json").write_text(json.dumps({"metrics": {"test": {"score": x / 10}}}))
"""
SWEEP = """
method: grid
metric: {name: test/score, goal: maximize}
parameters:
  model.x: {values: [1, 2, 3]}
command: [python, cell.py, "${args}"]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a sweep of three cells of a program of ours."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cell.py").write_text(CELL)
    (tmp_path / "fake.yaml").write_text(SWEEP)
    return tmp_path


def planned(place: Path, **asked: object) -> Plan:
    plan = make_plan(read_sweep(Path("fake.yaml")), Request(**asked))  # type: ignore[arg-type]
    plan.save()
    return plan


def status_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    assert m2h("sweep", "status", "runs/fake", "--json", *words) == 0
    return json.loads(capsys.readouterr().out)


def entry(cell: str, state: str, seconds: float = 10.0, **more: object) -> Entry:
    """An entry whose last attempt began ``seconds`` before it ended, or before now."""
    now = datetime.datetime.now()
    began = {} if state == "waiting" else {"started": now - datetime.timedelta(seconds=seconds), "attempts": 1}
    ended = {"ended": now} if state in ("done", "failed", "pruned") else {}
    return Entry(**{"cell": cell, "state": state, "attempts": 0, **began, **ended, **more})  # type: ignore[arg-type]


def drawn(
    plan: Plan, entries: list[Entry], width: int, height: int, progress: dict | None = None, note: str = ""
) -> str:
    console = Console(width=width, height=height, record=True, file=io.StringIO(), force_terminal=True)
    console.print(picture(plan, entries, 2, progress or {}, width, height, note))
    return console.export_text().rstrip("\n")


# ── the picture ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [20, 40, 60, 79, 120, 200])
@pytest.mark.parametrize("height", [8, 24, 60])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_picture_fits_every_terminal(place: Path, width: int, height: int, count: int) -> None:
    plan = planned(place)
    states = ("done", "pruned", "failed", "running", "waiting")
    owner = {"host": "a-host-with-a-long-name", "pid": 12345, "slot": "GPU 0,1,2,3", "slurm": {"job": "77"}}
    entries = [
        entry(
            f"wmca.window_size-{n}-ggfm.enabled-true-seed-{n % 5}-{n:08x}",
            states[n % 5],
            owner=owner,
            value=0.5 if n % 5 == 0 else None,
            reason="a very long reason " * 20,
        )
        for n in range(count)
    ]
    progress = {e.cell: Progress(3, 50, 100, None, "val/score", 0.25) for e in entries if e.state == "running"}
    text = drawn(plan, entries, width, height, progress, "stopping")
    lines = text.split("\n")
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert f"{sum(e.state in ('done', 'pruned', 'failed') for e in entries)}/{count}" in text
    if count == 500 and height == 24:
        assert re.search(r"and \d+ more", text)


def test_picture_tells_what_runs_how_far_it_is_and_what_is_best(place: Path) -> None:
    plan = planned(place)
    entries = [
        entry("a", "done", value=0.25),
        entry("b", "done", value=0.75),
        entry("c", "running", seconds=83, owner={"host": "node", "pid": 7, "slot": "GPU 1"}),
        entry("d", "failed", reason="out of memory"),
        entry("e", "waiting"),
    ]
    text = drawn(plan, entries, 120, 30, {"c": Progress(2, 4, 20, None, "val/score", 0.125)})
    row = next(line for line in text.splitlines() if line.startswith("c "))
    assert re.search(r"node:7, GPU 1 +1:2\d +epoch 2/4 +val/score 0\.125", row), row
    assert "best test/score 0.75  b" in text
    assert "2 done, 1 failed, 1 running, 1 waiting" in text
    assert "failed d: out of memory" in text
    assert "3/5" in text
    lower = replace(plan, higher_is_better=False)
    assert "best test/score 0.25  a" in drawn(lower, entries, 120, 30)


def test_picture_takes_what_looks_like_markup_as_text(place: Path) -> None:
    plan = replace(planned(place), name="[red]sweep[/red]", experiment="[/bold]x.yaml")
    text = drawn(plan, [entry("a", "failed", reason="[/nothing] opened [red]")], 120, 30)
    assert "[red]sweep[/red]  [/bold]x.yaml" in text
    assert "failed a: [/nothing] opened [red]" in text


def test_middle_keeps_both_ends() -> None:
    assert middle("abcdefghij", 10) == "abcdefghij"
    assert middle("abcdefghijk", 10) == "abc…fghijk"
    assert [len(middle("x" * 50, width)) for width in range(0, 20)] == list(range(0, 20))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90000, "1 d 1 h")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


# ── how long it takes ───────────────────────────────────────────────────────────────────────────────────────────────


def test_eta_deals_what_is_left_to_the_workers(place: Path) -> None:
    plan = planned(place)
    done = [entry("a", "done", 100, value=1.0), entry("b", "done", 300, value=1.0), entry("c", "done", 200, value=1.0)]
    rest = [entry(name, "waiting") for name in "defgh"]
    assert eta(plan, done, 2, {}) == 0
    assert eta(plan, rest, 2, {}) is None
    assert eta(plan, [*done, *rest], 2, {}) == pytest.approx(3 * 200)  # 5 cells, 2 at a time, the median each
    assert eta(plan, [*done, *rest], 5, {}) == pytest.approx(200)
    running = entry("r", "running", 150)
    assert eta(plan, [*done, running], 2, {}) == pytest.approx(50, abs=5)


def test_eta_knows_that_variants_differ_in_length(place: Path) -> None:
    plan = planned(place, seeds=(0, 1))
    first, second = plan.cells[0], plan.cells[1]
    again = [cell for cell in plan.cells[3:] if cell.overrides["model.x"] == first.overrides["model.x"]]
    entries = [entry(first.id, "done", 10, value=1.0), entry(second.id, "done", 1000, value=1.0)]
    assert eta(plan, [*entries, entry(again[0].id, "waiting")], 1, {}) == pytest.approx(10)


def test_eta_before_the_first_end_comes_from_what_the_running_ones_have_done(place: Path) -> None:
    plan = planned(place)
    entries = [entry("a", "running", 100), entry("b", "waiting")]
    assert eta(plan, entries, 1, {"a": Progress(1, 4)}) is None  # the first epoch tells nothing
    assert eta(plan, entries, 1, {"a": Progress(3, 4)}) == pytest.approx(100 + 200, abs=5)
    resumed = [replace(entries[0], attempts=2), entries[1]]
    assert eta(plan, resumed, 1, {"a": Progress(3, 4)}) is None  # its attempt is younger than its progress


def test_eta_does_not_learn_from_an_attempt_that_went_on(place: Path) -> None:
    plan = planned(place)
    entries = [entry("a", "done", 300, value=1.0), entry("b", "done", 1, value=1.0, attempts=2), entry("c", "waiting")]
    assert eta(plan, entries, 1, {}) == pytest.approx(300)


def test_best_needs_a_value_and_prefers_the_first(place: Path) -> None:
    plan = planned(place)
    entries = [entry("a", "running"), entry("b", "done", value=-1.0), entry("c", "done", value=-1.0)]
    found = best(plan, entries)
    assert found is not None and found.cell == "b"
    assert best(plan, entries[:1]) is None


# ── progress ────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_run(folder: Path, rows: list[str], config: str = "trainer: {max_epochs: 4, max_steps: -1}") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.csv").write_text("\n".join(["epoch,step,train/loss,val/score", *rows, ""]))


def test_progress_reads_the_last_rows(tmp_path: Path) -> None:
    reader = Reader("test/score")
    assert reader.read(tmp_path / "none") == Progress()
    write_run(tmp_path, ["0,9,3.5,"])
    assert reader.read(tmp_path) == Progress(1, 4, 10, None, "train/loss", 3.5)
    write_run(tmp_path, ["0,9,3.5,", "0,9,,0.25", "1,19,2.5,"])
    found = reader.read(tmp_path)
    assert found == Progress(2, 4, 20, None, "val/score", 0.25)
    assert (str(found), found.fraction) == ("epoch 2/4", 0.25)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("3,99,1.5,0.7")  # torn: no line break yet
    assert reader.read(tmp_path).epoch == 2
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("5\n4,100,nan,\n")  # the test after the last epoch, and a loss that is no number
    assert reader.read(tmp_path) == Progress(4, 4, 101, None, "val/score", 0.75)


def test_progress_of_a_long_run_reads_its_end_only(tmp_path: Path) -> None:
    rows = [f"{n // 100},{n},{n}.5," for n in range(20000)]
    write_run(tmp_path, rows)
    assert (tmp_path / "metrics.csv").stat().st_size > 3 * TAIL
    found = Reader("test/score").read(tmp_path)
    assert (found.epoch, found.step, found.value) == (4, 20000, 19999.5)


@pytest.mark.parametrize(
    ("config", "epochs", "steps"),
    [
        ("trainer: {max_epochs: null, max_steps: 50}", None, 50),
        ("{trainer: {max_epochs: 7}, model: {stages: [{epochs: 3}, {epochs: 2}]}}", 5, None),
        ("trainer: {max_epochs: -1}", None, None),
        ("something: else", None, None),
        ("[1, 2", None, None),
    ],
)
def test_progress_takes_the_planned_length(tmp_path: Path, config: str, epochs: int | None, steps: int | None) -> None:
    write_run(tmp_path, ["0,9,3.5,"], config)
    found = Reader("test/score").read(tmp_path)
    assert (found.epochs, found.steps) == (epochs, steps)
    assert found.fraction == (0.2 if steps else 0.0 if epochs else None)


def test_progress_of_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, ["0,9,3.5,"])
    reader = Reader("test/score")
    first = reader.read(tmp_path)
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("it was read again"))
    assert reader.read(tmp_path) == first


# ── lines and the live table ────────────────────────────────────────────────────────────────────────────────────────


def test_lines_tell_every_change_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = live.Lines(planned(place), 1)
    waiting = [entry("a", "waiting"), entry("b", "waiting")]
    running = [entry("a", "running"), waiting[1]]
    ended = [entry("a", "failed", reason="[red] exit code 1"), entry("b", "done", value=0.5)]
    with lines as shown:
        for entries in (waiting, running, running, ended, ended):
            shown.show(entries)
        shown.stopping(1)
        shown.stopping(2)
    lines.close(ended)
    said = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert said[:3] == [
        "[0/2] a running",
        "[2/2] a failed in 0:10: [red] exit code 1",
        "[2/2] b done test/score 0.5 in 0:10",
    ]
    assert said[3].startswith("stopping:") and said[4].startswith("ending now")
    assert said[5].startswith("fake: 1 done, 1 failed (")
    assert any("m2h sweep retry" in line for line in said[6:])


def test_a_closed_output_does_not_end_a_sweep(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        tries = 0

        def write(self, _: str) -> int:
            Closed.tries += 1
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    lines = live.Lines(planned(place), 1)
    lines.show([entry("a", "running")])
    lines.close([entry("a", "done", value=1.0)])
    assert Closed.tries == 1


def test_view_is_a_table_in_a_terminal_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(place)
    assert type(live.view(plan, 1)) is live.Lines
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert type(live.view(plan, 1)) is live.Lines
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert type(live.view(plan, 1)) is live.Table


def test_table_draws_at_most_four_times_a_second(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, height=24)
    table = live.Table(planned(place), 1, console)
    pictures = []
    monkeypatch.setattr(
        "m2h_lightning.sweeps.view.picture.picture", lambda *args: pictures.append(args) or "one picture"
    )
    clock = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    with table:
        for step in range(100):  # 10 seconds
            clock[0] = 100 + step / 10
            table.show([entry("a", "running")])
        assert 30 <= len(pictures) <= 40
        table.stopping(1)
        assert "stopping" in pictures[-1][-1]
    assert "\x1b[?25h" in output.getvalue()  # the cursor is shown again


def run_in_terminal(place: Path, *words: str, keys: list[int] = [], wait_for: bytes = b"running") -> tuple[int, str]:  # noqa: B006
    """Run m2h in a pseudo-terminal; press Ctrl-C for each of ``keys`` once the output tells of ``wait_for``."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="60", LINES="24")
        os.execv(sys.executable, [sys.executable, "-m", "m2h_lightning", *words])
    output, keys = b"", list(keys)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            output += os.read(terminal, 65536)
        except OSError:  # closed by its end
            break
        if keys and wait_for in output:
            keys.pop()
            os.write(terminal, b"\x03")
            wait_for = b"stopping:"
    else:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code, re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", output).decode()


def test_sweep_in_a_terminal(place: Path) -> None:
    (place / "fail-2").touch()
    code, text = run_in_terminal(place, "sweep", "run", "fake.yaml")
    assert code == 1, text
    assert "3/3" in text
    assert "best test/score 0.3" in text
    assert re.search(r"failed .*: exit code 1: it is \[red\]broken", text)
    last = [line for line in text.replace("\r", "").splitlines() if line][-4:]
    assert last[0].startswith("fake: 2 done, 1 failed")
    assert "m2h sweep retry" in last[2]


def test_ctrl_c_in_a_terminal(place: Path) -> None:
    (place / "hold").touch()
    code, text = run_in_terminal(place, "sweep", "run", "fake.yaml", "--grace", "1", keys=[1])
    assert code == 130, text
    assert "stopping: cells leave a checkpoint" in text
    assert "to go on: the same command again" in text


# ── status and retry ────────────────────────────────────────────────────────────────────────────────────────────────


def test_status_of_done_failed_and_waiting(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(place)
    before = status_of(capsys)
    assert before["counts"]["waiting"] == 3
    assert not (plan.folder / "ledger.journal").exists(), "status wrote a ledger"
    (place / "fail-2").touch()
    assert m2h("sweep", "run", "fake.yaml") == 1
    journal = (plan.folder / "ledger.journal").read_bytes()
    found = status_of(capsys)
    assert (plan.folder / "ledger.journal").read_bytes() == journal
    assert found["counts"] == {
        "done": 2, "pruned": 0, "failed": 1, "running": 0, "lost": 0, "waiting": 0, "total": 3,
    }  # fmt: skip
    assert found["best"] == {"cell": plan.cells[2].id, "value": 0.3}
    assert (found["eta_s"], found["workers"], found["warnings"]) == (0, [], [])
    failed = found["cells"][1]
    assert failed["state"] == "failed" and failed["attempts"] == 1
    assert failed["reason"] == "exit code 1: it is [red]broken[/red]"
    assert "first line" in failed["log"] and Path(failed["log_file"]).is_file()
    assert failed["command"] == [sys.executable, "cell.py", "--model.x=2"]
    assert m2h("sweep", "status", "fake.yaml", "--cells", "--name", "fake") == 0
    text = capsys.readouterr().out
    assert "cells    3: 2 done, 1 failed" in text
    assert "    | it is [red]broken[/red]" in text
    assert re.search(rf"failed  {plan.cells[1].id}", text) and re.search(rf"done    {plan.cells[2].id} +0\.3 ", text)
    assert f"m2h sweep retry {plan.folder}" in text


def test_status_of_running_and_lost(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(place)
    ledger, me = Ledger(plan), register(plan.folder, "1 thread")
    ledger.enroll()
    claim = ledger.claim(me)
    assert claim is not None
    write_run(plan.folder_of(claim.cell), ["1,19,2.5,0.25"])
    found = status_of(capsys)
    assert found["counts"]["running"] == 1 and found["counts"]["lost"] == 0
    assert [worker["alive"] for worker in found["workers"]] == [True]
    assert found["cells"][0]["progress"] == {
        "epoch": 2, "epochs": 4, "step": 20, "steps": None, "name": "val/score", "value": 0.25,
    }  # fmt: skip
    assert m2h("sweep", "status", str(plan.folder)) == 0
    text = capsys.readouterr().out
    assert re.search(rf"{claim.cell}  .*:{os.getpid()}, 1 thread  since .*  epoch 2/4  val/score 0\.25", text)
    dead = subprocess.Popen(["true"])
    dead.wait()
    me.pid = dead.pid
    me.save()  # as if that process had claimed it
    found = status_of(capsys)
    assert found["counts"]["running"] == 0 and found["counts"]["lost"] == 1
    assert found["cells"][0]["state"] == "lost" and found["eta_s"] is None
    assert m2h("sweep", "status", str(plan.folder)) == 0
    assert "its worker died" in (text := capsys.readouterr().out) and "run again to go on" in text
    assert "to go on: m2h sweep run fake.yaml" in text
    assert ledger.entries()[0].state == "running", "status changed the ledger"


def test_a_cell_that_ends_while_status_reads_is_not_lost(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(place)
    ledger, me = Ledger(plan), register(plan.folder)
    ledger.enroll()
    claim = ledger.claim(me)
    assert claim is not None

    def end_meanwhile(_: Path) -> list:
        ledger.finish(claim, 1.0)
        me.leave()
        return []

    monkeypatch.setattr("m2h_lightning.sweeps.view.status.read_workers", end_meanwhile)
    status = read_status(plan)
    assert not status.lost and status.entries[0].state == "done"


def test_status_knows_results_that_the_ledger_has_not(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(place)
    folder = plan.folder_of(plan.cells[0].id)
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"metrics": {"test": {"score": 0.5}}}))
    found = status_of(capsys)
    assert found["counts"]["done"] == 1 and found["best"]["value"] == 0.5
    (folder / "result.json").write_text("{")
    found = status_of(capsys)
    assert found["counts"]["waiting"] == 3 and "is damaged" in found["cells"][0]["reason"]


@pytest.mark.parametrize("damage", ["no json\n{}\n", '{"op_code": 99}\n', '{"op_code": 1, "study_id": 5}\n', "[]\n"])
def test_status_of_a_damaged_ledger_is_one_line(place: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    plan = planned(place)
    Ledger(plan).enroll()
    with open(plan.folder / "ledger.journal", "a") as file:
        file.write(damage)
    assert m2h("sweep", "status", "runs/fake") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "ledger" in said.err and "finished cells are kept" in said.err


def test_status_without_a_sweep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["runs/fake"], ["fake.yaml"], ["none.yaml"]):
        assert m2h("sweep", "status", *words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    planned(place)
    (place / "runs" / "fake" / "plan.json").write_text("{")
    assert m2h("sweep", "status", "runs/fake") == 2
    assert "is damaged" in capsys.readouterr().err


def test_failed_cells_run_again_after_retry_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for x in (1, 2):
        (place / f"fail-{x}").touch()
    plan = load_plan(planned(place).folder)
    one, two, three = (cell.id for cell in plan.cells)
    assert m2h("sweep", "run", "fake.yaml") == 1
    (place / "fail-1").unlink()
    assert m2h("sweep", "run", "fake.yaml") == 1
    assert [cell["attempts"] for cell in status_of(capsys)["cells"]] == [1, 1, 1], "run tried failed cells again"
    assert m2h("sweep", "retry", "runs/fake", three, one) == 0
    text = capsys.readouterr().out
    assert f"{three} is done: nothing to retry" in text and f"{one} waits again" in text and two not in text
    assert "to run it: m2h sweep run fake.yaml" in text
    found = status_of(capsys)
    assert [cell["state"] for cell in found["cells"]] == ["waiting", "failed", "done"], "retry started something"
    assert m2h("sweep", "run", "fake.yaml") == 1
    found = status_of(capsys)
    assert [(cell["state"], cell["attempts"]) for cell in found["cells"]] == [("done", 2), ("failed", 1), ("done", 1)]
    (place / "fail-2").unlink()
    assert m2h("sweep", "retry", "runs/fake") == 0
    assert m2h("sweep", "run", "fake.yaml") == 0
    capsys.readouterr()
    assert m2h("sweep", "retry", "runs/fake") == 0
    assert "no cell failed" in capsys.readouterr().out
    assert m2h("sweep", "retry", "runs/fake", one[:-1] + "x") == 2
    assert f"did you mean '{one}'?" in capsys.readouterr().err


def test_a_cell_whose_result_was_removed_runs_again_after_retry(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(place)
    one = plan.cells[0].id
    assert m2h("sweep", "run", "fake.yaml") == 0
    (plan.folder_of(one) / "result.json").unlink()
    capsys.readouterr()
    assert m2h("sweep", "status", "runs/fake") == 0
    assert f"{one}: done by the ledger, but its result.json is gone" in capsys.readouterr().out
    assert m2h("sweep", "retry", "runs/fake") == 0
    assert f"{one} waits again" in capsys.readouterr().out
    assert m2h("sweep", "run", "fake.yaml") == 0
    assert (plan.folder_of(one) / "result.json").is_file()
    assert [cell["attempts"] for cell in status_of(capsys)["cells"]] == [2, 1, 1]


def test_the_command_that_goes_on_makes_the_same_plan(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "exp.yaml").write_text("")
    text = (
        SWEEP.replace("cell.py", 'cell.py, "${envvar:EXPERIMENT}"')
        + "early_terminate: {type: hyperband, min_iter: 1}\n"
    )
    (place / "fake.yaml").write_text(text)
    asked: list[dict] = [
        {},
        {"seeds": (3,)},
        {"seeds": (0, 1), "name": "other", "words": ("--a", "b c")},
        {"root": str(place / "x y"), "storage": "journal:a.log", "data_root": str(place), "prune": True},
    ]
    for request in asked:
        plan = planned(place, experiment="exp.yaml", **request)
        words = shlex.split(run_command(plan))
        assert words[:3] == ["m2h", "sweep", "run"]
        parser = OneLineParser()
        add_sweep_arguments(parser)
        own, extra = split(words[3:])
        again = plan_of(parser.parse_args(own), extra)
        assert replace(again, made=plan.made) == plan, words
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert run_command(plan).startswith(f"cd {place} && m2h")
    (place / "fake.yaml").unlink()
    assert run_command(plan) == f"m2h sweep worker {shlex.quote(str(plan.folder))}"


# ── what does not compare ───────────────────────────────────────────────────────────────────────────────────────────

RESULT = {
    "status": "finished",
    "metrics": {"test": {"score": 1.0}},
    "config_hash": "aaaa",
    "git": {"commit": "1" * 40, "dirty": False},
    "versions": {"torch": "2.6.0", "platform": "Linux-1"},
    "data": {"fingerprint": "d1", "test_fingerprint": "t1"},
    "device": {"type": "cuda", "name": "H200", "precision": "32-true", "processes": 1},
}


def finish(plan: Plan, *changes: dict) -> None:
    """Write a result for each change, into the first cells."""
    for cell, change in zip(plan.cells, changes, strict=False):
        result = {key: {**value, **change.get(key, {})} if isinstance(value, dict) else change.get(key, value)
                  for key, value in RESULT.items()}  # fmt: skip
        plan.folder_of(cell.id).mkdir(parents=True, exist_ok=True)
        (plan.folder_of(cell.id) / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"git": {"commit": "2" * 40}}, "2 commits of the code: 1111111111 (2 cells), 2222222222 (1, such as"),
        ({"git": {"dirty": True}}, "1 of 3 finished cells ran with uncommitted changes"),
        ({"versions": {"torch": "2.7.0"}}, "2 versions of torch: 2.6.0 (2 cells), 2.7.0 (1, such as"),
        ({"data": {"fingerprint": "d2"}}, "trained on 2 states of the data: d1 (2 cells), d2 (1, such as"),
        ({"data": {"test_fingerprint": "t2"}}, "tested on 2 states of the data: t1 (2 cells), t2 (1, such as"),
        ({"device": {"name": "A100"}}, "2 kinds of devices: cuda H200 (2 cells), cuda A100 (1, such as"),
        ({"device": {"precision": "16-mixed"}}, "2 precisions"),
        ({"device": {"processes": 8}}, "2 numbers of processes"),
    ],
)
def test_warns_of_cells_that_do_not_compare(place: Path, change: dict, words: str) -> None:
    plan = planned(place)
    finish(plan, {}, {}, {})
    assert provenance.warnings(plan) == []
    finish(plan, {}, {}, change)
    (line,) = provenance.warnings(plan)
    assert words in line and plan.cells[2].id in line and "\n" not in line


def test_does_not_warn_of_what_says_nothing(place: Path) -> None:
    plan = planned(place)
    finish(plan, {}, {}, {"versions": {"platform": "Linux-2"}})
    assert provenance.warnings(plan) == []
    (plan.folder_of(plan.cells[0].id) / "result.json").write_text('{"metrics": {"test": {"score": 1}}}')
    assert provenance.warnings(plan, now=True) == []  # no cell is missing; one program tells nothing of itself


def test_a_sweep_over_the_data_may_have_several(place: Path) -> None:
    (place / "fake.yaml").write_text(SWEEP.replace("model.x", "data.crop"))
    plan = planned(place, seeds=(0, 1))
    own = [{"data": {"fingerprint": f"d{n % 3}"}} for n in range(6)]
    finish(plan, *own)
    assert provenance.warnings(plan) == []
    finish(plan, *own[:5], {"data": {"fingerprint": "changed"}})
    (line,) = provenance.warnings(plan)
    assert "d2 (1 cells), changed (1, such as" in line


def test_warns_of_another_configuration_than_planned(place: Path) -> None:
    plan = planned(place)
    plan = replace(plan, cells=tuple(replace(cell, config_hash="aaaa") for cell in plan.cells))
    finish(plan, {}, {"config_hash": "bbbb"})
    (line,) = provenance.warnings(plan)
    assert "1 of 2 finished cells ran with another configuration" in line and plan.cells[1].id in line


def test_warns_when_the_code_now_is_not_that_of_finished_cells(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(place)
    state = {"commit": "1" * 40, "dirty": False}
    monkeypatch.setattr(provenance.runs, "git_state", lambda *_: dict(state))
    monkeypatch.setattr(provenance.runs, "versions", lambda: {"torch": "2.6.0", "platform": "Linux-9"})
    finish(plan, {}, {})
    assert provenance.warnings(plan, now=True) == []
    state.update(commit="3" * 40)
    (line,) = provenance.warnings(plan, now=True)
    assert line.startswith("the code is at 3333333333 now, but finished cells ran at 1111111111 (2 cells)")
    assert provenance.warnings(plan) == []
    assert m2h("sweep", "run", "fake.yaml") == 0
    assert "warning: the code is at 3333333333 now" in capsys.readouterr().err
    monkeypatch.setattr(provenance.runs, "versions", lambda: {"torch": "2.7.0"})
    state.update(commit="1" * 40, dirty=True)
    finish(planned(place, name="new"), {})
    found = provenance.warnings(planned(place, name="new"), now=True)
    assert len(found) == 2 and "uncommitted changes now" in found[0] and "torch is 2.7.0 now" in found[1]


def test_a_damaged_result_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(place)
    finish(plan, {}, {})
    (plan.folder_of(plan.cells[1].id) / "result.json").write_text("{")
    (line,) = provenance.warnings(plan)
    assert "is damaged" in line
