"""A real SLURM of one node: its own munged, slurmctld and slurmd, with files and ports of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from m2h_lightning.sweeps.running.child import dies_with_parent

DAEMONS = ("munged", "slurmctld", "slurmd")
_CONF = """\
ClusterName=m2h
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no SLURM can be started here; None where it can."""
    if os.geteuid() != 0:
        return "its daemons need root"
    missing = [name for name in (*DAEMONS, "sbatch", "scontrol", "squeue", "scancel") if _program(name) is None]
    return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)" if missing else None


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


@dataclass
class Cluster:
    """A running SLURM.

    Args:
        folder: Its files.
        env: Variables with which its commands find it.
    """

    folder: Path
    env: dict[str, str]

    def call(self, *words: object) -> str:
        """Run one of SLURM's commands; return what it prints."""
        command = [str(word) for word in words]
        answer = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert answer.returncode == 0, f"{command}: {answer.stderr}"
        return answer.stdout

    def jobs(self) -> list[str]:
        """The jobs in the queue, a line each: number, array index, state, restarts."""
        return self.call("squeue", "-h", "-r", "-o", "%i %K %T %r").splitlines()

    def wait_until(self, what: Callable[[], object], seconds: float, why: str) -> None:
        """Wait for something to be true; fail with what SLURM says when it is not in time."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"{why}: not within {seconds} s\n{self.jobs()}\n{self.logs()}"
            time.sleep(0.2)

    def wait_idle(self, seconds: float = 90) -> None:
        """Wait until no job is left."""
        self.wait_until(lambda: not self.jobs(), seconds, "the queue is empty")

    def logs(self) -> str:
        """The last lines of the daemons' logs."""
        texts = [f"── {path.name}\n" + path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log")]
        return "\n".join(texts)


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Start a SLURM of one node; end it, with all its jobs, whatever happens."""
    # Not in pytest's folder: munged wants every folder above its socket to be root's, and a socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="m2h-slurm-"))
    processes: list[subprocess.Popen[bytes]] = []
    cluster = Cluster(folder, {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        control_port, node_port = _free_ports(2)
        (folder / "slurm.conf").write_text(
            _CONF.format(host=host, folder=folder, control_port=control_port, node_port=node_port)
        )
        places = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
        places |= {"log-file": folder / "munged.log", "seed-file": folder / "munged.seed"}
        words = [f"--{name}={place}" for name, place in places.items()]
        processes.append(_start(cluster, "munged", "--foreground", "--num-threads=2", *words))
        _wait(lambda: (folder / "munge.socket").exists(), processes, cluster)
        processes.append(_start(cluster, "slurmctld", "-D", "-i"))
        processes.append(_start(cluster, "slurmd", "-D"))
        _wait(lambda: "idle" in _sinfo(cluster), processes, cluster)
        yield cluster
    finally:
        _end(cluster, processes)
        shutil.rmtree(folder, ignore_errors=True)


def _start(cluster: Cluster, name: str, *words: str) -> subprocess.Popen[bytes]:
    program = _program(name)
    assert program is not None
    with open(cluster.folder / f"{name}.out.log", "ab") as output:
        return subprocess.Popen(
            [program, *words],
            env=cluster.env,
            cwd=cluster.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=dies_with_parent(signal.SIGTERM, os.getpid()),
        )


def _sinfo(cluster: Cluster) -> str:
    answer = subprocess.run(["sinfo", "-h", "-o", "%t"], env=cluster.env, capture_output=True, text=True, timeout=60)
    return answer.stdout


def _wait(what: Callable[[], object], processes: list[subprocess.Popen[bytes]], cluster: Cluster) -> None:
    end = time.monotonic() + 40
    while not what():
        dead = [process.args for process in processes if process.poll() is not None]
        assert not dead and time.monotonic() < end, f"SLURM does not start: {dead}\n{cluster.logs()}"
        time.sleep(0.2)


def _end(cluster: Cluster, processes: list[subprocess.Popen[bytes]]) -> None:
    """Cancel what still runs, then end the daemons; what does not go is killed, with what it started."""
    if len(processes) == 3 and processes[1].poll() is None:
        words = ["scancel", "--user=root"]
        with contextlib.suppress(subprocess.TimeoutExpired, AssertionError):
            subprocess.run(words, env=cluster.env, capture_output=True, timeout=30)
            cluster.wait_idle(30)
    left = _steps(cluster)
    for process in reversed(processes):
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pid in left | _steps(cluster):  # step daemons outlive slurmd
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _steps(cluster: Cluster) -> set[int]:
    """The processes that have this cluster's configuration in their environment, and are not this one."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (place / "comm").read_text().strip()
            mine = f"SLURM_CONF={cluster.folder}/".encode() in (place / "environ").read_bytes()
            if mine and name.startswith("slurmstepd"):
                found.add(int(place.name))
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
