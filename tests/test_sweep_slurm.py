"""Sweeps on SLURM: the script and what is submitted, the requeue, and a real cluster of one node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import slurm_cluster
from cli_helpers import TINY, m2h
from m2h_lightning.errors import ConfigError
from m2h_lightning.sweeps.ledger.study import Ledger
from m2h_lightning.sweeps.ledger.workers import read_workers
from m2h_lightning.sweeps.planning.plan import Plan, load_plan
from m2h_lightning.sweeps.running import slurm_job
from m2h_lightning.sweeps.running.slurm import SlurmOptions, directives, queued_cells, script

CELL = """\
import json, os, signal, sys, time
from pathlib import Path

x = int(sys.argv[1].partition("=")[2])
folder, here = Path(os.environ["M2H_CELL"]), Path(__file__).parent
with open(here / f"starts-{x}", "a") as file:
    file.write("start\\n")
if x == 2 and not (here / "mended").exists():
    sys.exit("x is 2: no luck")
while (here / "hold").exists():
    time.sleep(0.05)
folder.mkdir(exist_ok=True)
(folder / "env.json").write_text(json.dumps(dict(os.environ)))
part = folder / "part"
part.write_text(json.dumps({"status": "finished", "metrics": {"test": {"score": x / 10}}}))
part.rename(folder / "result.json")
"""

SWEEP = """\
name: fake
method: grid
metric: {name: test/score, goal: maximize}
parameters: {x: {values: [0, 1, 2, 3]}}
command: [python, cell.py, "${args}"]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep of four cells of a program of its own; the current one."""
    (tmp_path / "cell.py").write_text(CELL)
    (tmp_path / "fake.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def plan(place: Path) -> Plan:
    from m2h_lightning.sweeps.planning.file import read_sweep
    from m2h_lightning.sweeps.planning.plan import Request, make_plan

    return make_plan(read_sweep(Path("fake.yaml")), Request())


def stub(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """Put a program of this name first on PATH."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    (programs / name).write_text(f"#!/bin/sh\n{text}\n")
    (programs / name).chmod(0o755)
    if not os.environ["PATH"].startswith(str(programs)):
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


def run(*words: object) -> int:
    return m2h("sweep", "run", "fake.yaml", "--launcher", "slurm", *words)


# ── the script ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_options_are_ours_and_the_users(plan: Plan) -> None:
    given = ("partition=gpu", "account=x", "constraint=a100&ib", "exclusive", "time=08:00:00", "job-name=mine")
    found = directives(plan, 4, SlurmOptions(given, workers=2))
    assert found["array"] == "0-3%2"
    assert found["signal"] == "B:USR1@120"
    assert (found["requeue"], found["open-mode"], found["ntasks"]) == (None, "append", "1")
    assert found["output"] == f"{plan.folder}/logs/slurm-%A_%a.log"
    assert (found["partition"], found["exclusive"], found["job-name"]) == ("gpu", None, "mine")
    assert directives(plan, 4, SlurmOptions(workers=4))["array"] == "0-3"
    assert directives(plan, 1, SlurmOptions(gpus_per_cell=2))["gres"] == "gpu:2"
    assert "gres" not in directives(plan, 1, SlurmOptions(("gpus-per-node=a100:2",), gpus_per_cell=2))


def test_a_longer_grace_is_warned_of_earlier(plan: Plan) -> None:
    from m2h_lightning.sweeps.running.worker import WorkerOptions

    assert directives(plan, 1, SlurmOptions(worker=WorkerOptions(grace=300)))["signal"] == "B:USR1@360"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("p=gpu", "--slurm partition=gpu"),
        ("array=0-9", "--workers"),
        ("ntasks=4", "one task on one node"),
        ("signal=USR1@60", "B:USR1@SECONDS"),
        ("time=00:03:00", "more than 240 s"),
        ("time=4", "more than 240 s"),
        ("comment=a\n#SBATCH --uid=0", "line break"),
        ("partition=", "no value"),
        ("Partition=gpu", "long option"),
    ],
)
def test_an_option_that_cannot_be_given(
    place: Path, capsys: pytest.CaptureFixture[str], option: str, says: str
) -> None:
    assert run("--slurm", option, "--dry-run") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in error and "--slurm" in error
    assert not (place / "runs").exists()


@pytest.mark.parametrize("time", ["5", "04:01", "0:10:00", "1-0", "1-0:0:1", "0", "UNLIMITED"])
def test_a_time_that_is_long_enough(plan: Plan, time: str) -> None:
    assert directives(plan, 1, SlurmOptions((f"time={time}",)))["time"] == time


def test_the_script_starts_the_cell_of_its_index(plan: Plan, place: Path) -> None:
    cells = [cell.id for cell in plan.cells]
    text = script(plan, cells, SlurmOptions(("comment=two words",), setup=("export FROM_SETUP='a b'",)))
    assert '#SBATCH --comment="two words"' in text
    text = text.replace(f"exec {sys.executable} -m", 'printf "%s\\n" "$FROM_SETUP"')  # say it, instead of doing it
    env = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_CPUS_ON_NODE": "3"}
    said = subprocess.run(["bash", "-u"], input=text, env=env, capture_output=True, text=True, check=True).stdout
    words = said.splitlines()
    assert words[0] == "a b"
    assert words[words.index("--cell") + 1] == cells[2]
    assert words[words.index("--threads") + 1] == "3"
    assert {"--requeue", str(plan.folder)} <= set(words)


def test_no_requeue_is_for_the_worker_too(plan: Plan) -> None:
    text = script(plan, ["a"], SlurmOptions(("no-requeue",)))
    assert (
        "#SBATCH --no-requeue" in text and "#SBATCH --requeue" not in text and " --requeue" not in text.split("exec")[1]
    )


# ── submitting ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # nor does it need SLURM
    assert run("--dry-run", "--workers", 2, "--slurm", "partition=gpu") == 0
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-3%2" in said and "#SBATCH --partition=gpu" in said
    assert said.strip().splitlines()[-1] == f"sbatch --parsable {place}/runs/fake/slurm/1/job.sh"
    assert not (place / "runs").exists()


def test_a_dry_run_leaves_out_what_is_done(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert m2h("sweep", "run", "fake.yaml") == 1  # x = 2 fails
    before = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*")}
    (
        place
        / "runs"
        / "fake"
        / next(c.id for c in load_plan(place / "runs/fake").cells if c.overrides == {"x": 3})
        / "result.json"
    ).unlink()
    capsys.readouterr()
    assert run("--dry-run") == 0
    said = capsys.readouterr().out
    assert "nothing to submit" in said and "3 done, 1 failed" in said  # the ledger has recorded the one taken away
    after = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()}
    assert all(before[path] == time for path, time in after.items())


def test_no_slurm_here(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert run() == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_what_sbatch_says_is_passed_on(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    stub(place, monkeypatch, "sbatch", "echo 'sbatch: error: invalid partition specified: gpux' >&2; exit 1")
    assert run("--slurm", "partition=gpux") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "invalid partition specified: gpux" in lines[-1] and "job.sh" in lines[-1]


def test_queued_cells_are_not_submitted_again(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    stub(place, monkeypatch, "sbatch", f'echo "$SBATCH_PARTITION $SBATCH_ACCOUNT" > {place}/env; echo "77;cluster"')
    stub(place, monkeypatch, "squeue", "printf '0\\n2\\n'")
    monkeypatch.setenv("SBATCH_PARTITION", "environment")
    monkeypatch.setenv("SBATCH_ACCOUNT", "environment")
    assert run("--slurm", "partition=gpu") == 0
    assert (place / "env").read_text().split() == ["environment"]  # what was given wins, what was not stays
    assert "4 cells as job 77 " in capsys.readouterr().out
    cells = [cell.id for cell in load_plan(place / "runs/fake").cells]
    assert queued_cells(place / "runs/fake") == {cells[0], cells[2]}
    assert run() == 0
    said = capsys.readouterr().out
    assert "2 cells as job 77 " in said and "2 queued" in said and "slurm/2/job.sh" in said
    assert json.loads((place / "runs/fake/slurm/2/submission.json").read_text())["cells"] == [cells[1], cells[3]]


@pytest.mark.parametrize("words", [["--slurm", "partition=x"], ["--slurm-setup", "true"], ["--dry-run"]])
def test_options_of_slurm_need_the_launcher(place: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert m2h("sweep", "run", "fake.yaml", *words) == 2
    assert "--launcher slurm" in capsys.readouterr().err


def test_sqlite_is_refused_for_an_array(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--storage", "sqlite:///x.db", "--dry-run") == 2
    assert "SQLite" in capsys.readouterr().err
    assert run("--storage", "sqlite:///x.db", "--dry-run", "--workers", 1) == 0


# ── inside a job ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cell_is_no_task_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    kept = {"SLURM_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/root"}
    kept |= {"CUDA_VISIBLE_DEVICES": "3", "RANKING": "x"}
    gone = dict.fromkeys(("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID", "SLURM_NNODES"), "1")
    gone |= dict.fromkeys(("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PMI_RANK"), "1")
    found = slurm_job.without_launcher({**kept, **gone})
    assert found == kept
    monkeypatch.setattr(os, "environ", {**kept, **gone})
    assert SLURMEnvironment.detect()  # what would happen
    monkeypatch.setattr(os, "environ", found)
    assert not SLURMEnvironment.detect()


def test_a_job_requeues_itself_after_the_warning_alone(plan: Plan, place: Path, monkeypatch) -> None:
    stub(place, monkeypatch, "scontrol", f'echo "$@" >> {place}/said')
    cell = plan.cells[0].id
    env = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}
    told = slurm_job.requeue(plan, cell, env)
    told(signal.SIGTERM)  # scancel, or preemption
    assert not (place / "said").exists()
    told(signal.SIGUSR1)
    assert (place / "said").read_text() == "requeue 10_2\n"
    slurm_job.requeue(plan, None, {"SLURM_JOB_ID": "12"})(signal.SIGUSR1)
    assert (place / "said").read_text().splitlines()[-1] == "requeue 12"
    plan.folder_of(cell).mkdir(parents=True)
    (plan.folder_of(cell) / "result.json").write_text('{"status": "finished"}')
    told(signal.SIGUSR1)
    assert len((place / "said").read_text().splitlines()) == 2  # it was done in time
    with pytest.raises(ConfigError, match="no job of SLURM"):
        slurm_job.requeue(plan, cell, {})


# ── a real cluster ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def slurm() -> Iterator[slurm_cluster.Cluster]:
    reason = slurm_cluster.why_not()
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.fixture
def cluster(
    slurm: slurm_cluster.Cluster, place: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[slurm_cluster.Cluster]:
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    yield slurm
    (place / "hold").unlink(missing_ok=True)
    slurm.call("scancel", "--user=root")
    slurm.wait_idle(60)


def states(place: Path, name: str = "fake") -> dict[str, str]:
    return {entry.cell: entry.state for entry in Ledger(load_plan(place / "runs" / name)).entries()}


def cell_of(place: Path, x: int) -> str:
    return next(cell.id for cell in load_plan(place / "runs/fake").cells if cell.overrides == {"x": x})


def test_an_array_runs_every_cell_and_one_that_fails_stops_no_other(
    cluster: slurm_cluster.Cluster, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--slurm-setup", "export FROM_SETUP=1") == 0
    assert "submitted 4 cells" in capsys.readouterr().out
    cluster.wait_idle()
    assert sorted(states(place).values()) == ["done", "done", "done", "failed"]
    assert states(place)[cell_of(place, 2)] == "failed"
    entry = next(e for e in Ledger(load_plan(place / "runs/fake")).entries() if e.state == "failed")
    assert "x is 2: no luck" in entry.reason and entry.owner["slurm"]["array_task"] == "2"
    env = json.loads((place / "runs/fake" / cell_of(place, 0) / "env.json").read_text())
    assert env["FROM_SETUP"] == "1" and "SLURM_JOB_ID" in env and "SLURM_NTASKS" not in env
    assert len(list((place / "runs/fake/logs").glob("slurm-*_[0-3].log"))) == 4
    assert run() == 0  # failed ones wait for `retry`
    assert "nothing to submit" in capsys.readouterr().out
    (place / "mended").touch()
    assert m2h("sweep", "retry", place / "runs/fake") == 0
    assert run() == 0
    assert "submitted 1 cells" in capsys.readouterr().out
    cluster.wait_idle()
    assert set(states(place).values()) == {"done"}
    assert m2h("sweep", "status", place / "runs/fake") == 0
    assert "4 done" in capsys.readouterr().out
    assert [(place / f"starts-{x}").read_text().count("start") for x in range(4)] == [1, 1, 2, 1]


def test_a_killed_worker_gives_its_cell_to_the_next_submission(
    cluster: slurm_cluster.Cluster, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "hold").touch()
    (place / "mended").touch()
    assert run("--workers", 1) == 0
    cluster.wait_until(lambda: (place / "starts-0").exists(), 30, "the first cell starts")
    assert run() == 0  # while the first submission is in the queue: one runs, three are queued
    assert "nothing to submit: 1 running, 3 queued" in capsys.readouterr().out
    cluster.call("scancel", "--user=root", "--state=PENDING")
    (worker,) = read_workers(place / "runs/fake")
    os.kill(worker.pid, signal.SIGKILL)
    cluster.wait_idle()
    assert states(place)[cell_of(place, 0)] == "running"  # nobody could say so
    (place / "hold").unlink()
    assert run() == 0
    assert "submitted 4 cells" in capsys.readouterr().out
    cluster.wait_idle()
    assert set(states(place).values()) == {"done"}
    assert [(place / f"starts-{x}").read_text().count("start") for x in range(4)] == [2, 1, 1, 1]


def test_a_training_is_requeued_before_its_time_is_up_and_goes_on(
    cluster: slurm_cluster.Cluster, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "tiny.yaml").write_text(TINY.replace("max_epochs: 1", "max_epochs: 12").replace("train: 4", "train: 8"))
    words = SWEEP.replace("name: fake", "name: real").replace("test/score", "val/score")
    words = words.replace("{x: {values: [0, 1, 2, 3]}}", "{seed_everything: {value: 3}}")
    words = words.replace("cell.py", "-m, m2h_lightning, fit, --config, tiny.yaml")
    (place / "real.yaml").write_text(words)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the data module is
    assert m2h("sweep", "run", "real.yaml", "--launcher", "slurm") == 0
    plan = load_plan(place / "runs/real")
    folder = plan.folder_of(plan.cells[0].id)
    log = plan.log_of(plan.cells[0].id)
    # The moment: an epoch is through, and many are left.
    cluster.wait_until(lambda: list(folder.glob("checkpoints/*.ckpt")), 180, "training is under way")
    assert not (folder / "result.json").exists(), "training was over before it could be interrupted"
    job = cluster.jobs()[0].split()[0]
    cluster.call("scancel", "--batch", "--signal=USR1", job)  # what SLURM does before the end of the time
    cluster.wait_until(lambda: "PENDING" in str(cluster.jobs()), 60, f"the job is back in the queue\n{log.read_text()}")
    attempts = Ledger(plan).entries()[0]
    assert attempts.state == "waiting" and not (folder / "result.json").exists()
    cluster.wait_idle(180)
    entry = Ledger(plan).entries()[0]
    assert (entry.state, entry.attempts) == ("done", 2), (entry, log.read_text())
    assert entry.owner["slurm"]["restart"] == "1"
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 2
    assert "--run.resume" in log.read_text()
    jobs = "".join(path.read_text() for path in (plan.folder / "logs").glob("slurm-*.log"))
    assert f"requeued job {job}" in jobs


# ── agents and proxy ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_script_of_wandb_agents_hides_the_launcher(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(place, monkeypatch, "python", f'echo "$@" > {place}/words; env > {place}/env')
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("RUNS", "2")
    path = Path(__file__).parents[1] / "sweeps" / "slurm" / "wandb_agent.sbatch"
    subprocess.run(["bash", str(path), "me/project/abc"], check=True)
    assert (place / "words").read_text().split() == ["-m", "wandb", "agent", "--count", "2", "me/project/abc"]
    names = {line.partition("=")[0] for line in (place / "env").read_text().splitlines()}
    assert "SLURM_JOB_ID" in names and not names & {"SLURM_NTASKS", "SLURM_PROCID"}
    assert subprocess.run(["bash", str(path)], capture_output=True).returncode != 0


def test_workers_share_a_ledger_through_the_proxy(place: Path, plan: Plan) -> None:
    pytest.importorskip("grpc")
    (place / "mended").touch()
    plan.save()
    Ledger(plan).enroll()
    sweep = [sys.executable, "-u", "-m", "m2h_lightning", "sweep"]
    proxy = subprocess.Popen([*sweep, "proxy", plan.folder, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert proxy.stdout is not None
        line = proxy.stdout.readline()
        url = line.split()[-1]
        assert url.startswith("grpc://localhost:"), line
        taken = subprocess.run(
            [*sweep, "proxy", plan.folder, "--port", url.rpartition(":")[2]], capture_output=True, text=True
        )
        assert taken.returncode == 2 and "it is taken" in taken.stderr.strip().splitlines()[-1]
        workers = [subprocess.Popen([*sweep, "worker", plan.folder, "--storage", url]) for _ in range(2)]
        assert [worker.wait(120) for worker in workers] == [0, 0]
        proxy.send_signal(signal.SIGINT)
        assert proxy.wait(20) == 130
    finally:
        proxy.kill()
        proxy.wait()
    assert [(place / f"starts-{x}").read_text().count("start") for x in range(4)] == [1, 1, 1, 1]
    assert set(states(place).values()) == {"done"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--storage", "sqlite:///x.db"], "SQLite"),
        (["--storage", "grpc://a:1"], "a proxy already"),
        ([], "give the folder"),
        (["--storage", "journal:x", "--port", "70000"], "no port"),
    ],
)
def test_a_ledger_that_no_proxy_can_serve(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert m2h("sweep", "proxy", *words) == 2
    assert says in capsys.readouterr().err.strip().splitlines()[-1]
