"""Workers as processes: many cells, none twice; stops, failures, what a slot of a machine is."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ledger_cells import SHELL, events, plan_of, processes_of, python_cells, sweep, sweep_file
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.sweeps.ledger.study import Ledger
from m2h_lightning.sweeps.ledger.workers import read_workers, register
from m2h_lightning.sweeps.running import child
from m2h_lightning.sweeps.running import run as running
from m2h_lightning.sweeps.running import worker as working
from m2h_lightning.sweeps.running.run import RunOptions, slots, visible_gpus
from m2h_lightning.sweeps.running.worker import Work, WorkerOptions
from postgres_server import postgres_server
from test_sweep_kill import wait_until


@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_four_workers_and_200_cells(tmp_path, kind):
    def check(url: str | None) -> None:
        values = {"x": {"values": list(range(200))}}
        file = sweep_file(tmp_path, ["/bin/sh", "-c", SHELL, "cell"], values)
        plan = plan_of(file, tmp_path / "runs", url)
        at_work = [sweep(tmp_path, "worker", plan.folder) for _ in range(4)]
        printed = [worker.communicate(timeout=300)[0] for worker in at_work]
        assert [worker.returncode for worker in at_work] == [0] * 4, printed
        noted = events(plan.folder)
        assert len(noted) == 400
        assert set(noted.values()) == {1}
        assert {entry.state for entry in Ledger(plan).entries()} == {"done"}
        owners = {entry.owner["pid"] for entry in Ledger(plan).entries()}
        assert owners == {worker.pid for worker in at_work}
        assert not read_workers(plan.folder)

    if kind == "journal":
        check(None)
    else:
        with postgres_server() as server:
            check(server.new_url())


def cells(place: Path, text: str, count: int = 2, **content) -> Path:
    program = place / "program.py"
    program.write_text(text)
    return sweep_file(place, ["python", "-SE", str(program)], {"x": {"values": list(range(count))}}, **content)


STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: None)
open(os.environ["M2H_CELL"] + "/began", "w")
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_ends_everything_and_loses_nothing(tmp_path, how):
    file = python_cells(tmp_path, 3, seconds=30)
    plan = plan_of(file, tmp_path / "runs")
    process = sweep(tmp_path, "run", file, "--root", tmp_path / "runs", "--workers", 2)
    wait_until(lambda: sum(word == "start" for word, _ in events(plan.folder)) == 2)
    process.send_signal(how)
    assert process.wait(30) == 130
    assert not processes_of(plan.folder)
    entries = Ledger(plan).entries()
    assert [entry.state for entry in entries] == ["waiting"] * 3
    assert [entry.reason for entry in entries[:2]] == ["stopped; goes on later"] * 2
    assert not read_workers(plan.folder)


def test_a_cell_that_ignores_the_stop_is_killed_after_the_grace_or_at_the_second(tmp_path):
    file = cells(tmp_path, STUBBORN, 1)
    plan = plan_of(file, tmp_path / "runs")
    began = plan.folder_of(plan.cells[0].id) / "began"
    for words, twice in ((("--grace", "1"), False), ((), True)):
        process = sweep(tmp_path, "run", file, "--root", tmp_path / "runs", *words)
        wait_until(began.exists)
        began.unlink()
        process.send_signal(signal.SIGINT)
        if twice:
            time.sleep(1)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        assert not processes_of(plan.folder)


def test_nohup(tmp_path):
    file = python_cells(tmp_path, 1, seconds=2)
    plan = plan_of(file, tmp_path / "runs")
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = sweep(tmp_path, "run", file, "--root", tmp_path / "runs", preexec_fn=ignore)
    wait_until(lambda: events(plan.folder))
    process.send_signal(signal.SIGHUP)
    for worker in read_workers(plan.folder):
        os.kill(worker.pid, signal.SIGHUP)
    assert process.wait(30) == 0
    assert set(events(plan.folder).values()) == {1}


def test_failures_are_recorded_and_the_rest_goes_on(tmp_path):
    text = """
import os, signal, sys
x = int(sys.argv[1].split("=")[1])
folder = os.environ["M2H_CELL"]
if x == 0:
    open(folder + "/failure.txt", "w").write("val/loss is NaN after step 3\\nmore")
    sys.exit(1)
if x == 1:
    print("Traceback"); sys.exit("KeyError: 'depth'")
if x == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if x == 3:
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"); sys.exit(1)
if x == 4:
    sys.exit(0)  # without a result
if x == 5:
    open(folder + "/result.json", "w").write('{"metrics": {"val": {"loss": 1}}}'); sys.exit(0)
if x == 6:
    sys.exit(75)  # not one of ours: no wish to go on later
open(folder + "/result.json", "w").write('{"metrics": {"val": {"score": 2}}}')
"""
    plan = plan_of(cells(tmp_path, text, 8), tmp_path / "runs")
    assert Work(plan, WorkerOptions(retry_oom=True)).run() == 1
    entries = Ledger(plan).entries()
    assert [entry.state for entry in entries] == ["failed"] * 7 + ["done"]
    reasons = [entry.reason for entry in entries]
    assert reasons[0] == "val/loss is NaN after step 3"
    assert reasons[1] == "exit code 1: KeyError: 'depth'"
    assert reasons[2].startswith("killed by SIGKILL")
    assert reasons[3] == "out of memory"  # no config.yaml says how large its batch was
    assert reasons[4].startswith("it ended without")
    assert "val/score" in reasons[5]
    assert reasons[6].startswith("exit code 75")
    assert "CUDA out of memory" in entries[3].log
    assert entries[1].log.splitlines()[-1] == "KeyError: 'depth'"


def test_a_later_failure_is_not_taken_for_the_first_attempts(tmp_path):
    text = """
import os, sys
first = not os.path.exists(os.environ["M2H_CELL"] + "/tried")
open(os.environ["M2H_CELL"] + "/tried", "w")
sys.exit("CUDA out of memory" if first else "something else")
"""
    plan = plan_of(cells(tmp_path, text, 1), tmp_path / "runs")
    reasons = []
    for _ in range(2):
        Work(plan, WorkerOptions()).run()
        reasons.append(Ledger(plan).entries()[0].reason)
        Ledger(plan).retry([plan.cells[0].id])
    assert reasons == ["out of memory", "exit code 1: something else"]


def test_a_command_that_is_not_there(tmp_path):
    plan = plan_of(sweep_file(tmp_path, ["no-such-program"], {"x": {"values": [0, 1]}}), tmp_path / "runs")
    assert Work(plan, WorkerOptions()).run() == 1
    assert all("no-such-program" in entry.reason for entry in Ledger(plan).entries())


def test_half_the_batch_after_out_of_memory(tmp_path, monkeypatch):
    fake = tmp_path / "m2h_lightning"  # its name makes it a training run of this package
    fake.write_text(
        "#!/bin/sh\n"
        'd="$M2H_CELL"; mkdir "$d" || exit 9; '
        'echo "data: {class_path: x.Y, init_args: {batch_size: 6}}" > "$d/config.yaml"\n'
        'case "$*" in *"--data.batch_size 3 --trainer.accumulate_grad_batches 2"*) '
        'printf \'{"metrics": {"val": {"score": 1}}}\' > "$d/result.json"; exit 0;; esac\n'
        "echo CUDA out of memory; exit 1\n"
    )
    fake.chmod(0o755)
    plan = plan_of(sweep_file(tmp_path, [str(fake), "fit"], {"x": {"values": [0]}}), tmp_path / "runs")
    assert Work(plan, WorkerOptions()).run() == 1  # not asked for
    assert Ledger(plan).entries()[0].reason == "out of memory"
    Ledger(plan).retry([plan.cells[0].id])
    assert Work(plan, WorkerOptions(retry_oom=True)).run() == 0
    entry = Ledger(plan).entries()[0]
    assert (entry.state, entry.attempts) == ("done", 3)
    assert entry.words == ("--data.batch_size", "3", "--trainer.accumulate_grad_batches", "2")
    assert len(list((plan.folder / "aside").iterdir())) == 2  # one by the retry, one by the smaller batch


def test_a_full_disk_gives_the_cell_back(tmp_path, monkeypatch):
    plan = plan_of(python_cells(tmp_path, 2), tmp_path / "runs")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(plan.folder / "logs"))

    monkeypatch.setattr(child, "start", full)
    with pytest.raises(DataError, match="logs: No space left on device; the worker stops, its cell waits again"):
        Work(plan, WorkerOptions()).run()
    assert [entry.state for entry in Ledger(plan).entries()] == ["waiting"] * 2
    assert not read_workers(plan.folder)
    monkeypatch.undo()
    assert Work(plan, WorkerOptions()).run() == 0
    assert set(events(plan.folder).values()) == {1}


def test_a_cell_given_to_another_worker_is_ended_here(tmp_path, monkeypatch, capsys):
    plan = plan_of(python_cells(tmp_path, 1, seconds=60), tmp_path / "runs")
    monkeypatch.setattr(working, "BEAT_S", 0.2)
    work = Work(plan, WorkerOptions())
    note = work._note

    def stop_after(text: str) -> None:
        note(text)
        work.stops.append(signal.SIGTERM)  # else it takes the cell again

    work._note = stop_after
    wait = work._wait

    def taken(process: subprocess.Popen[bytes], claim):
        Ledger(plan)._give_back(claim.trial, "seemed dead")
        return wait(process, claim)

    work._wait = taken
    assert work.run() == 130
    assert "was given to another worker" in capsys.readouterr().err
    assert not processes_of(plan.folder_of(plan.cells[0].id))


def test_variables_of_a_cell(tmp_path, monkeypatch):
    text = """
import json, os
folder = os.environ["M2H_CELL"]
json.dump(dict(os.environ), open(folder + "/env.json", "w"))
open(folder + "/result.json", "w").write('{"metrics": {"val": {"score": 2}}}')
"""
    monkeypatch.setenv("M2H_STORAGE", "of an outer sweep")
    monkeypatch.setenv("M2H_PRUNER", "{}")
    plan = plan_of(cells(tmp_path, text, 1), tmp_path / "runs")
    assert Work(plan, WorkerOptions(gpus="2,3", threads=5)).run() == 0
    seen = json.loads((plan.folder_of(plan.cells[0].id) / "env.json").read_text())
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == ("2,3", "5", "5")
    assert "M2H_STORAGE" not in seen
    assert "M2H_PRUNER" not in seen
    rule = {"type": "hyperband", "min_iter": 2}
    plan = plan_of(cells(tmp_path, text, 1, early_terminate=rule), tmp_path / "runs", name="pruned", prune=True)
    assert Work(plan, WorkerOptions()).run() == 0
    seen = json.loads((plan.folder_of(plan.cells[0].id) / "env.json").read_text())
    assert json.loads(seen["M2H_PRUNER"]) == rule
    assert seen["M2H_STORAGE"] == f"journal:{plan.folder}/ledger.journal"
    assert (seen["M2H_STUDY"], seen["M2H_METRIC"]) == ("pruned", "val/score")


def test_sqlite_is_for_one_worker(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    file = python_cells(tmp_path, 3)
    plan = plan_of(file, tmp_path / "runs", url)
    process = sweep(tmp_path, "run", file, "--root", tmp_path / "runs", "--storage", url, "--workers", 2)
    assert "SQLite lets two workers claim the same cell" in process.communicate(timeout=60)[0]
    assert process.returncode == 2
    other = register(plan.folder)
    with pytest.raises(ConfigError, match="use one worker"):
        Work(plan, WorkerOptions()).run()
    assert [worker.id for worker in read_workers(plan.folder)] == [other.id]
    other.leave()
    process = sweep(tmp_path, "run", file, "--root", tmp_path / "runs", "--storage", url)
    assert process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert set(events(plan.folder).values()) == {1}


def test_workers_that_die_whatever_they_do(tmp_path, monkeypatch):
    plan = plan_of(python_cells(tmp_path, 2), tmp_path / "runs")
    monkeypatch.setattr(running, "PAUSE_S", 0.0)
    monkeypatch.setattr(running, "start", lambda *_: subprocess.Popen(["/bin/sh", "-c", "exit 2"]))
    with pytest.raises(
        DataError, match="workers died one after the other without ending a cell .the last: exit code 2"
    ):
        running.Run(plan, RunOptions()).run()


def test_run_waits_for_workers_elsewhere_and_takes_over_what_they_leave(tmp_path):
    file = python_cells(tmp_path, 2)
    plan = plan_of(file, tmp_path / "runs")
    ledger, other = Ledger(plan), register(plan.folder)
    ledger.enroll()
    claim = ledger.claim(other)
    process = sweep(tmp_path, "run", file, "--root", tmp_path / "runs", env={"M2H_BEAT_S": "0.3"})
    wait_until(lambda: events(plan.folder)["end", plan.cells[1].id])
    time.sleep(1)
    assert process.poll() is None
    ledger.release(claim, "left")
    assert process.wait(30) == 0
    assert [entry.state for entry in ledger.entries()] == ["done", "done"]


@pytest.mark.parametrize(
    ("given", "listed", "found"),
    [
        ("", "", []),
        ("-1", "", []),
        ("0,-1,2", "", ["0"]),
        ("GPU-8f6d, GPU-aa", "", ["GPU-8f6d", "GPU-aa"]),
        (None, "GPU 0: H200 (UUID: GPU-1)\nGPU 1: H200 (UUID: GPU-2)", ["0", "1"]),
        (None, "GPU 0: A (UUID: GPU-1)\n  MIG 1g Device 0: (UUID: MIG-a)\n  MIG 1g Device 1: (UUID: MIG-b)\nGPU 1: A", [
            "MIG-a", "MIG-b", "1",
        ]),
    ],
)  # fmt: skip
def test_gpus_of_a_machine(tmp_path, monkeypatch, given, listed, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(listed)}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus() == found


def test_slots(monkeypatch):
    monkeypatch.setattr(running, "cores", lambda: 9)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,7")
    assert [slot.gpus for slot in slots(RunOptions())] == ["0", "1", "2", "3", "7"]
    pairs = slots(RunOptions(gpus_per_cell=2))
    assert [slot.gpus for slot in pairs] == ["0,1", "2,3"]
    assert [slot.threads for slot in pairs] == [4, 4]
    assert [(slot.gpus, slot.threads) for slot in slots(RunOptions(workers=1))] == [("0", None)]
    with pytest.raises(ConfigError, match="--workers is 3 with 2 GPUs a cell, but there are 5 GPUs; 2 fit"):
        slots(RunOptions(workers=3, gpus_per_cell=2))
    with pytest.raises(ConfigError, match="0 fit"):
        slots(RunOptions(gpus_per_cell=6))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [(slot.gpus, slot.threads) for slot in slots(RunOptions(workers=4))] == [(None, 2)] * 4
    assert [slot.threads for slot in slots(RunOptions())] == [9]
    assert slots(RunOptions(workers=20))[0].threads == 1
    for wrong in (0, -1):
        with pytest.raises(ConfigError, match=f"--workers is {wrong}; give at least 1"):
            slots(RunOptions(workers=wrong))
    with pytest.raises(ConfigError, match="shows no GPU"):
        slots(RunOptions(gpus_per_cell=2))
