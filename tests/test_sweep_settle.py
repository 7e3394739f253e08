"""Plans of one folder written by several, and what is refused before anything is written; through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from m2h_lightning.cli import main
from m2h_lightning.sweeps.planning.plan import load_plan

NAN = """
import json, os, pathlib
folder = pathlib.Path(os.environ["M2H_CELL"])
value = float("nan") if pathlib.Path("broken").exists() else 1.0
(folder / "result.json").write_text(json.dumps({"metrics": {"test": {"score": value}}}))
"""
SLOW = NAN.replace("import json", "import time; time.sleep(1)\nimport json", 1)


def sweep_file(place: Path, program: str, values: str, name: str = "s.yaml") -> Path:
    (place / "cell.py").write_text(program)
    path = place / name
    path.write_text(
        "name: s\nmethod: grid\nmetric: {name: test/score, goal: maximize}\n"
        f"parameters: {{x: {{values: {values}}}}}\ncommand: [python, {place / 'cell.py'}, '${{args}}']\n"
    )
    return path


def words(path: Path, *more: str) -> list[str]:
    return ["sweep", "run", str(path), "--root", str(path.parent / "runs"), *more]


def test_two_that_grow_a_sweep_at_once_lose_no_cell(tmp_path: Path) -> None:
    files = [sweep_file(tmp_path, SLOW, values, f"{i}.yaml") for i, values in enumerate(("[1, 2, 3]", "[3, 4, 5]"))]
    runs = [
        subprocess.Popen([sys.executable, "-m", "m2h_lightning", *words(path)], stdout=subprocess.PIPE, text=True)
        for path in files
    ]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    folder = tmp_path / "runs/s"
    done = {path.parent.name for path in folder.glob("*/result.json")}
    assert len(done) == 5
    assert {cell.id for cell in load_plan(folder).cells} == done
    starts = [path.read_text().count("$ ") for path in (folder / "logs").glob("*.log")]
    assert starts == [1] * 5


def test_fewer_values_drop_cells_that_nobody_runs(tmp_path: Path) -> None:
    assert main(["sweep", "plan", *words(sweep_file(tmp_path, NAN, "[1, 2, 3]"))[2:], "--save"]) == 0
    assert main(words(sweep_file(tmp_path, NAN, "[1, 2]"))) == 0
    assert len(load_plan(tmp_path / "runs/s").cells) == 2


def test_a_result_that_made_a_cell_fail_is_set_aside_by_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = sweep_file(tmp_path, NAN, "[1]")
    (tmp_path / "broken").touch()
    assert main(words(path)) == 1
    assert main(["sweep", "retry", "runs/s"]) == 0
    assert "is kept in" in capsys.readouterr().out
    assert len(list((tmp_path / "runs/s/aside").iterdir())) == 1
    (tmp_path / "broken").unlink()
    assert main(words(path)) == 0


def test_a_result_without_status_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(sweep_file(tmp_path, NAN, "[1, 2]"))) == 0
    assert main(["sweep", "report", str(tmp_path / "runs/s"), "--no-measure", "--no-plots"]) == 0
    assert "2 of 2 cells" in capsys.readouterr().out


def test_a_storage_that_cannot_be_opened_is_not_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file(tmp_path, NAN, "[1]")
    for storage in ("foo://x", "sqlite://", "sqlite:///:memory:", "grpc://nowhere"):
        assert main(words(path, "--storage", storage)) == 2
        assert "m2h: error: --storage" in capsys.readouterr().err
    assert not (tmp_path / "runs/s/plan.json").exists()
    assert main(words(path)) == 0


def test_a_root_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep_file(tmp_path, NAN, "[1]")
    (tmp_path / "runs").write_text("mine")
    assert main(words(path)) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "runs").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--grace", "nan"), "no number of seconds"),
        (("--grace", "-5"), "no number of seconds"),
        (("--seeds", "99999999999999"), "more than 1000 seeds"),
    ],
)
def test_numbers_beyond_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], text: str
) -> None:
    assert main(words(sweep_file(tmp_path, NAN, "[1]"), *more)) == 2
    assert text in capsys.readouterr().err


def test_a_grid_beyond_reason_and_an_alias_of_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep_file(tmp_path, NAN, json.dumps(list(range(20_001))))
    assert main(words(path)) == 2
    assert "20001 cells are more than" in capsys.readouterr().err
    path.write_text(path.read_text().split("parameters")[0] + "parameters: &a {x: *a}\ncommand: [a, '${args}']\n")
    assert main(words(path)) == 2
    assert "alias" in capsys.readouterr().err


def test_a_result_that_was_removed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep_file(tmp_path, NAN, "[1]")
    assert main(words(path)) == 0
    next((tmp_path / "runs/s").glob("*/result.json")).write_text("{")
    assert main(words(path)) == 0
    assert "gone or damaged: m2h sweep retry" in capsys.readouterr().err


def test_a_working_directory_that_is_gone_fails_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    path = sweep_file(tmp_path, NAN, "[1, 2]")
    assert main(["sweep", "plan", *words(path)[2:], "--save"]) == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").rmdir()
    assert main(["sweep", "worker", "runs/s"]) == 2
    assert "is not there" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(words(path)) == 0
