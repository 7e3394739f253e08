"""What the ledger promises, for every storage; and each storage's own traps."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledger_cells import plan_of, python_cells, sweep_file
from m2h_lightning.errors import DataError
from m2h_lightning.storages import url as storage
from m2h_lightning.sweeps.ledger import study as module
from m2h_lightning.sweeps.ledger import workers
from m2h_lightning.sweeps.ledger.study import Ledger
from m2h_lightning.sweeps.ledger.workers import Worker, register
from postgres_server import postgres_server


@pytest.fixture(scope="session")
def postgres():
    with postgres_server() as server:
        yield server


def result(plan, cell: str, score: float = 1.0) -> None:
    folder = plan.folder_of(cell)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"metrics": {"val": {"score": score}}}))


def search(place: Path, runs: int, method: str = "bayes", **extra) -> Path:
    ranges = {
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
        "heads": {"values": [2, 4, 8]},
        "depth": {"min": 1, "max": 9},
        "seconds": {"value": 0},
    }
    return sweep_file(place, ["true"], ranges, method=method, run_cap=runs, **extra)


def dead(folder: Path, trials: list[int]) -> Worker:
    """A worker of this machine that was killed."""
    worker = register(folder)
    worker.trials, worker.began = trials, "0"
    worker.save()
    return worker


def states(ledger: Ledger) -> list[str]:
    return [entry.state for entry in ledger.entries()]


class LedgerContract:
    """Subclasses say which storage."""

    @pytest.fixture
    def url(self, tmp_path):
        raise NotImplementedError

    @pytest.fixture
    def plan(self, tmp_path, url):
        return plan_of(python_cells(tmp_path, 6), tmp_path / "runs", url)

    def test_a_cell_is_claimed_once_and_ends_as_told(self, plan):
        ledger, me = Ledger(plan), register(plan.folder)
        ledger.enroll()
        first, second = ledger.claim(me), ledger.claim(me)
        assert [first.cell, second.cell] == [cell.id for cell in plan.cells[:2]]
        assert first.overrides == plan.cells[0].overrides
        assert ledger.finish(first, 0.5)
        assert ledger.fail(second, "the reason", "last\nlines")
        assert states(Ledger(plan)) == ["done", "failed"] + ["waiting"] * 4
        done, failed = Ledger(plan).entries()[:2]
        assert (done.value, done.owner["pid"], done.attempts) == (0.5, os.getpid(), 1)
        assert (failed.reason, failed.log) == ("the reason", "last\nlines")
        assert not ledger.finish(second, 1.0)  # it has ended
        assert states(ledger)[1] == "failed"

    def test_many_workers_claim_every_cell_once(self, tmp_path, url):
        plan = plan_of(python_cells(tmp_path, 24), tmp_path / "runs", url)
        Ledger(plan).enroll()
        at_work = 1 if storage.one_worker_only(url) else 4
        barrier = threading.Barrier(at_work, timeout=30)

        def work(_: int) -> list[str]:
            ledger, me, found = Ledger(plan), register(plan.folder), []
            barrier.wait()
            while (claim := ledger.claim(me)) is not None:
                found.append(claim.cell)
                ledger.finish(claim, 1.0)
            return found

        with ThreadPoolExecutor(at_work) as pool:
            taken = [cell for found in pool.map(work, range(at_work)) for cell in found]
        assert sorted(taken) == sorted(cell.id for cell in plan.cells)

    def test_the_cell_of_a_dead_worker_is_given_back_once(self, plan):
        ledger, me = Ledger(plan), register(plan.folder)
        ledger.enroll()
        mine, lost = ledger.claim(me), None
        gone = register(plan.folder)
        lost = ledger.claim(gone)
        me.trials, gone.trials, gone.began = [mine.trial], [lost.trial], "0"
        me.save()
        gone.save()
        # Its note in the ledger says that it lives: set what a killed process would have left.
        ledger._storage.set_trial_user_attr(lost.trial, module.OWNER, gone.about())
        assert Ledger(plan).reap() == [lost.cell]
        assert Ledger(plan).reap() == []
        assert states(ledger) == ["running"] + ["waiting"] * 5
        assert not gone.path.exists()
        again = Ledger(plan).claim(register(plan.folder))  # one that has not read the queue before
        assert again.cell == lost.cell
        assert again.trial != lost.trial
        assert ledger.entries()[1].attempts == 2
        assert not ledger.finish(lost, 1.0)  # the one that seemed dead comes back
        assert states(ledger)[1] == "running"

    def test_a_cell_claimed_by_a_worker_killed_before_it_could_sign(self, plan):
        ledger = Ledger(plan)
        ledger.enroll()
        trial = ledger._trials()[plan.cells[0].id][0]._trial_id
        dead(plan.folder, [trial])
        ledger._storage.set_trial_state_values(trial, _running())
        assert ledger.reap() == [plan.cells[0].id]

    def test_given_back_and_retried(self, plan):
        ledger, me = Ledger(plan), register(plan.folder)
        ledger.enroll()
        claim = ledger.claim(me)
        ledger.release(claim, "out of memory", ["--half"])
        again = ledger.claim(me)
        assert (again.cell, again.words) == (claim.cell, ("--half",))
        assert ledger.entries()[0].words == ("--half",)
        ledger.fail(again, "no luck")
        other = ledger.claim(me)
        ledger.retry([claim.cell, other.cell])  # one that runs is left alone
        assert states(ledger)[:2] == ["waiting", "running"]
        third = ledger.claim(me)
        assert (third.cell, third.words) == (claim.cell, ())
        assert ledger.entries()[0].attempts == 3

    def test_only_the_cell_asked_for(self, plan):
        ledger, me = Ledger(plan), register(plan.folder)
        ledger.enroll()
        assert ledger.claim(me, plan.cells[3].id).cell == plan.cells[3].id
        assert ledger.claim(me, plan.cells[3].id) is None
        assert me.trials == []

    def test_the_sweep_grows(self, tmp_path, plan, url):
        ledger, me = Ledger(plan), register(plan.folder)
        ledger.enroll()
        ledger.finish(ledger.claim(me), 1.0)
        file = python_cells(tmp_path, 6)
        content = json.loads(file.read_text())
        content["parameters"]["x"]["values"] += [6.5, -1]  # no whole numbers any more, and outside of the range
        file.write_text(json.dumps(content))
        grown = plan_of(file, tmp_path / "runs", url)
        ledger = Ledger(grown)
        ledger.enroll()
        assert sorted(states(ledger)) == ["done"] + ["waiting"] * 7
        assert sum(trial.user_attrs["cell"] == grown.cells[0].id for trial in ledger.study.trials) == 1

    def test_two_planners_at_the_same_time(self, plan):
        barrier = threading.Barrier(2, timeout=30)

        def enroll(_: int) -> None:
            ledger = Ledger(plan)
            seen = ledger._every_trial()
            ledger._every_trial = lambda: seen  # both have read before either writes
            barrier.wait()
            ledger.enroll()

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(enroll, range(2)))
        ledger, me = Ledger(plan), register(plan.folder)
        assert len(ledger.study.trials) == 12
        claimed = []
        while (claim := ledger.claim(me)) is not None:
            claimed.append(claim.cell)
            ledger.finish(claim, 1.0)
            ledger.enroll()
        assert claimed == [cell.id for cell in plan.cells]
        assert {trial.state.name for trial in ledger.study.trials} == {"COMPLETE", "FAIL"}  # nothing seems to wait

    def test_a_lost_ledger_is_made_anew_from_the_results(self, plan):
        result(plan, plan.cells[0].id, 0.25)
        result(plan, plan.cells[2].id, 0.75)
        ledger = Ledger(plan)
        ledger.enroll()
        assert states(ledger) == ["done", "waiting", "done"] + ["waiting"] * 3
        assert [entry.value for entry in ledger.entries()[:3]] == [0.25, None, 0.75]
        assert ledger.claim(register(plan.folder)).cell == plan.cells[1].id
        assert ledger.study.best_value == 0.75

    def test_a_search_draws_once_keeps_what_it_drew_and_ends_at_its_cap(self, tmp_path, url):
        plan = plan_of(search(tmp_path, 12), tmp_path / "runs", url)
        Ledger(plan).enroll()
        at_work = 1 if storage.one_worker_only(url) else 3

        def work(_: int) -> list[tuple[str, dict]]:
            ledger, me, found = Ledger(plan), register(plan.folder), []
            while (claim := ledger.claim(me)) is not None:
                found.append((claim.cell, claim.overrides))
                if claim.cell == "trial-0003" and ledger.entries()[3].attempts == 1:
                    ledger.release(claim, "stopped")
                else:
                    result(plan, claim.cell, claim.overrides["lr"])
                    ledger.finish(claim, claim.overrides["lr"])
            return found

        with ThreadPoolExecutor(at_work) as pool:
            taken = [pair for found in pool.map(work, range(at_work)) for pair in found]
        assert sorted(cell for cell, _ in taken) == sorted([cell.id for cell in plan.cells] + ["trial-0003"])
        first, again = (values for cell, values in taken if cell == "trial-0003")
        assert first == again
        assert len({values["lr"] for _, values in taken}) == 12
        for _, values in taken:
            assert 1e-4 <= values["lr"] <= 1e-1
            assert values["heads"] in (2, 4, 8)
            assert isinstance(values["depth"], int)
            assert 1 <= values["depth"] <= 9
        done = [trial for trial in Ledger(plan).study.trials if trial.state.name == "COMPLETE"]
        assert len(done) == 12
        assert all(set(trial.params) == {"lr", "heads", "depth"} for trial in done)

        # The ledger is lost: what was drawn is known from the sweep's folder.
        other = dataclasses.replace(plan, name="anew")
        ledger = Ledger(other)
        ledger.enroll()
        values = dict(taken)
        for trial in ledger.study.trials:
            assert trial.state.name == "COMPLETE"
            assert trial.params["lr"] == values[trial.user_attrs["cell"]]["lr"]

    def test_the_same_history_gives_the_same_values(self, tmp_path, url):
        drawn = []
        for name in ("one", "two"):
            plan = plan_of(search(tmp_path, 14), tmp_path / "runs", url, name=name)
            ledger, me = Ledger(plan), register(plan.folder)
            ledger.enroll()
            for _ in range(14):  # beyond the sampler's first ten, which are random
                claim = ledger.claim(me)
                ledger.finish(claim, claim.overrides["lr"])
                drawn.append(tuple(claim.overrides.items()))
        assert drawn[:14] == drawn[14:]
        assert len(set(drawn)) == 14

    def test_optuna_reads_it(self, plan):
        import optuna

        ledger = Ledger(plan)
        ledger.enroll()
        claim = ledger.claim(register(plan.folder))
        ledger.finish(claim, 0.5)
        study = optuna.load_study(study_name=plan.name, storage=storage.open_storage(plan.storage, plan.folder))
        assert study.direction.name == "MAXIMIZE"
        assert study.best_params == {"x": 0.0}
        assert study.best_trial.user_attrs["cell"] == claim.cell

    def test_signs_of_life_from_where_nobody_can_be_asked(self, plan, monkeypatch):
        """A worker on another host whose file cannot be seen: the ledger's own signs decide."""
        ledger = Ledger(plan)
        ledger.enroll()
        far = dataclasses.replace(register(plan.folder), host="elsewhere", boot="another")
        far.leave()
        far.path = plan.folder / "workers" / "unseen" / "far.json"
        far.path.parent.mkdir()
        claim = ledger.claim(far)
        assert ledger.heartbeat(claim)
        assert Ledger(plan).reap() == []
        monkeypatch.setattr(storage, "GRACE_S", 1)  # of databases
        monkeypatch.setattr(module, "GRACE_S", 1)
        monkeypatch.setattr(module, "HEARTBEAT_S", 0)
        time.sleep(1.2)
        assert ledger.heartbeat(claim)  # just in time
        other = Ledger(plan)
        assert other.reap() == []
        time.sleep(2.1)
        assert other.reap() == [claim.cell]
        assert not ledger.heartbeat(claim)  # and the worker learns of it


def _running():
    from optuna.trial import TrialState

    return TrialState.RUNNING


class TestJournal(LedgerContract):
    @pytest.fixture
    def url(self):
        return "journal:ledger.journal"


class TestPostgres(LedgerContract):
    @pytest.fixture
    def url(self, postgres):
        return postgres.new_url()

    def test_it_keeps_heartbeats(self, plan):
        from sqlalchemy import text

        ledger = Ledger(plan)
        ledger.enroll()
        claim = ledger.claim(register(plan.folder))
        with ledger._raw._backend.engine.connect() as connection:
            rows = connection.execute(text("select trial_id from trial_heartbeats")).fetchall()
        assert rows == [(claim.trial,)]

    def test_a_server_that_is_away_for_a_while(self, plan, postgres, capsys):
        ledger = Ledger(plan, patience=60)
        ledger.enroll()
        claim = ledger.claim(register(plan.folder))
        postgres.stop()
        again = threading.Timer(1.5, postgres.start)
        again.start()
        try:
            assert ledger.heartbeat(claim)  # does not wait
            assert ledger.finish(claim, 1.0)
        finally:
            again.join()
        assert "cannot be reached" in capsys.readouterr().err
        assert states(ledger)[0] == "done"


class TestSqlite(LedgerContract):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path}/ledger.db"


class TestProxyOfAJournal(LedgerContract):
    @pytest.fixture
    def url(self, tmp_path):
        grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'm2h-lightning[grpc]')")
        import socket

        from optuna.storages._grpc.server import make_server

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = make_server(storage.open_storage("journal:ledger.journal", tmp_path), "127.0.0.1", port)
        server.start()
        assert grpc
        yield f"grpc://127.0.0.1:{port}"
        server.stop(0).wait()


def test_a_ledger_out_of_reach_is_given_up_in_one_line(tmp_path, monkeypatch):
    plan = plan_of(python_cells(tmp_path, 2), tmp_path / "runs")
    ledger = Ledger(plan, patience=0.5)
    ledger.enroll()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger._raw, "_sync_with_backend", full)
    began = time.monotonic()
    with pytest.raises(
        DataError, match="ledger.journal: the ledger cannot be reached .No space left on device."
    ) as error:
        ledger.entries()
    assert 0.1 < time.monotonic() - began < 5
    assert "\n" not in str(error.value)


def test_a_damaged_journal_is_told_in_one_line_and_made_anew(tmp_path):
    plan = plan_of(python_cells(tmp_path, 2), tmp_path / "runs")
    Ledger(plan).enroll()
    result(plan, plan.cells[1].id)
    journal = plan.folder / "ledger.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"\0\0\0 no record\n" + b"".join(lines[1:]))
    with pytest.raises(DataError, match="is damaged .*move it away and run again, finished cells are kept") as error:
        Ledger(plan)
    assert "\n" not in str(error.value)
    journal.rename(tmp_path / "old.journal")
    ledger = Ledger(plan)
    ledger.reap()
    assert states(ledger) == ["waiting", "done"]


def test_a_journal_that_disappears_is_told(tmp_path):
    plan = plan_of(python_cells(tmp_path, 2), tmp_path / "runs")
    ledger = Ledger(plan, patience=60)
    (plan.folder / "ledger.journal").unlink()
    with pytest.raises(DataError, match="the ledger is gone; run again"):
        ledger.enroll()


def test_a_record_cut_short_does_not_damage_those_that_follow(tmp_path):
    plan = plan_of(python_cells(tmp_path, 3), tmp_path / "runs")
    Ledger(plan).enroll()
    journal = plan.folder / "ledger.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:30])  # its writer was killed
    ledger = Ledger(plan)
    claim = ledger.claim(register(plan.folder))
    ledger.finish(claim, 1.0)
    assert states(Ledger(plan)) == ["done", "waiting", "waiting"]
    assert all(json.loads(line) for line in journal.read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the machine's name until its next start is Linux's")
def test_the_lock_of_a_killed_process_is_not_waited_for_and_that_of_a_living_one_is(tmp_path):
    from m2h_lightning.storages.journal import MachineLock

    path = str(tmp_path / "ledger.journal")
    first, second = MachineLock(path, "here"), MachineLock(path, "here")
    first.acquire()
    os.close(first._held)  # what the kernel does when a process is killed; its link stays
    assert os.path.lexists(f"{path}.lock")
    began = time.monotonic()
    second.acquire()
    assert time.monotonic() - began < 1
    taken = threading.Event()
    waiting = threading.Thread(target=lambda: (MachineLock(path, "here").acquire(), taken.set()))
    waiting.start()
    assert not taken.wait(0.3)
    second.release()
    assert taken.wait(5)
    waiting.join()


def test_the_link_of_another_machine_is_waited_for(tmp_path, monkeypatch):
    from m2h_lightning.storages import journal

    path = str(tmp_path / "ledger.journal")
    there, here = journal.MachineLock(path, "there"), journal.MachineLock(path, "here")
    there.acquire()
    monkeypatch.setattr(journal, "GRACE_S", 0.5)
    began = time.monotonic()
    here.acquire()
    assert time.monotonic() - began >= 0.5
    there.release()  # too late: it is not its own any more
    assert os.path.lexists(f"{path}.lock")
    here.release()
    assert not os.path.lexists(f"{path}.lock")


def test_workers_that_cannot_be_reached_live_as_long_as_they_give_signs(tmp_path, monkeypatch):
    plan = plan_of(python_cells(tmp_path, 1), tmp_path / "runs")
    worker = register(plan.folder)
    assert workers.known_alive(worker) is True
    assert workers.known_alive(dataclasses.replace(worker, began="12")) is False  # another process of this number
    assert workers.known_alive(dataclasses.replace(worker, pid=2**22 + 1)) is False
    far = dataclasses.replace(worker, host="elsewhere", boot="another")
    container = dataclasses.replace(worker, boot=worker.boot + " of a container")  # same name, other process numbers
    for there in (far, container):
        assert workers.known_alive(there) is None
        assert workers.alive(there)
    os.utime(worker.path, (time.time() - 299, time.time() - 299))
    assert workers.alive(far)
    os.utime(worker.path, (time.time() - 302, time.time() - 302))
    assert not workers.alive(far)
    assert workers.alive(worker)  # one of this machine needs no signs
    worker.beat()
    assert workers.alive(far)
    worker.leave()
    worker.beat()  # somebody took it for dead
    assert worker.path.exists()


def squeue(place: Path, body: str, monkeypatch) -> None:
    (place / "bin").mkdir(exist_ok=True)
    program = place / "bin" / "squeue"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")


def test_slurm_is_asked_for_workers_elsewhere(tmp_path, monkeypatch):
    plan = plan_of(python_cells(tmp_path, 1), tmp_path / "runs")
    job = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}
    worker = dataclasses.replace(register(plan.folder, env=job), host="node7", boot="another")
    assert worker.slurm == {"job": "17", "restart": "1"}
    squeue(tmp_path, "echo RUNNING", monkeypatch)
    assert workers.alive(worker, {})
    squeue(tmp_path, "exit 0", monkeypatch)  # it knows the job, which has ended
    assert workers.known_alive(worker, {}) is False
    squeue(tmp_path, 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1', monkeypatch)
    assert workers.known_alive(worker, {}) is False
    squeue(tmp_path, 'echo "Unable to contact slurm controller" >&2; exit 1', monkeypatch)
    assert workers.known_alive(worker, {}) is None  # then by its signs
    assert workers.alive(worker, {})
    # The job itself, started again after a requeue, knows that its earlier start is over.
    assert workers.known_alive(worker, {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2"}) is False
    assert workers.known_alive(worker, {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}) is None
