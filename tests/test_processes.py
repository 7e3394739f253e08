"""Background work: every task answered, memory bounded, faults are told, no process is left behind."""

import gc
import os
import subprocess
import sys
import textwrap
import time

import pytest

from m2h_lightning.errors import DataError
from m2h_lightning.processes import Crew
from process_jobs import die, double, fail, refuse, slow_double


def processes_of(crew):
    """Its processes, from the arguments of what ends them."""
    return crew._end.peek()[2][0]


def gone(pid):
    """Whether a process has ended (a zombie has)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_every_task_is_answered_once():
    crew = Crew(double, 2, "hint")
    found = []
    for number in range(20):
        crew.submit(number, f"number {number}")
        found += crew.finished(wait=False)
    found += crew.finished(wait=True)
    assert sorted(found) == [2 * number for number in range(20)]
    assert list(crew.finished(wait=True)) == []
    crew.submit(7, "one more")
    assert list(crew.finished(wait=True)) == [14]
    crew.close()


def test_submit_waits_where_too_many_are_under_way():
    crew = Crew(slow_double, 1, "hint")
    under_way = []
    for number in range(8):
        crew.submit(number, "a number")
        under_way.append(crew._under_way)
    assert max(under_way) == 2
    assert sorted(crew.finished(wait=True)) == [2 * number for number in range(8)]
    crew.close()


@pytest.mark.parametrize(
    ("job", "error", "words"),
    [
        (refuse, DataError, "number 3 is not wanted"),
        (fail, RuntimeError, "task three: .*ZeroDivisionError"),
        (die, DataError, "task three: its working process died .killed; was memory short.*; try this"),
    ],
)
def test_a_fault_is_raised_where_results_are_taken(job, error, words):
    crew = Crew(job, 1, "try this")
    processes = processes_of(crew)
    crew.submit(3, "task three")
    with pytest.raises(error, match=f"(?s){words}"):
        list(crew.finished(wait=True))
    assert all(process.poll() is not None for process in processes)


def test_tasks_after_a_death_do_not_hang():
    crew = Crew(die, 1, "hint")
    for number in range(6):
        crew.submit(number, "a number")
    with pytest.raises(DataError):
        list(crew.finished(wait=True))


def test_processes_end_with_the_crew():
    crew = Crew(double, 2, "hint")
    processes = processes_of(crew)
    assert all(process.poll() is None for process in processes)
    crew.close()
    assert all(process.poll() is not None for process in processes)
    forgotten = Crew(slow_double, 2, "hint")
    processes = processes_of(forgotten)
    forgotten.submit(1, "a number")
    del forgotten
    gc.collect()
    assert all(process.poll() is not None for process in processes)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_processes_end_with_their_parent(ending):
    code = f"""
        import os, sys
        from process_jobs import slow_double
        from m2h_lightning.processes import Crew
        crew = Crew(slow_double, 2, "hint")
        for number in range(4):
            crew.submit(number, "a number")
        print(*(process.pid for process in crew._end.peek()[2][0]), flush=True)
        {ending}
    """
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    assert wait_until(lambda: all(gone(pid) for pid in pids))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_fork_that_drops_its_copy_ends_nothing():
    """While a thread of the parent waits for an answer: the child must not touch what that thread holds."""
    crew = Crew(slow_double, 1, "hint")
    crew.submit(3, "a number")
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        crew.close()
        os._exit(0)
    ended = wait_until(lambda: gone(child))
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert ended
    crew.submit(4, "a number")
    assert list(crew.finished(wait=True)) == [6, 8]
    crew.close()
