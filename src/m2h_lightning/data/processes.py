"""Do one job for many tasks, in this process or in several. Standard library only.

The working processes are plain ones (``python -m m2h_lightning.data.processes``) instead of ``multiprocessing``: they
import neither torch nor the caller's main module, and they end with their input, so none outlives a parent that was
killed. Job, tasks and results travel as pickles, one base64 line each.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import FrameType
from typing import Any, TypeVar

from m2h_lightning import errors
from m2h_lightning.errors import DataError, M2HError

Task = TypeVar("Task")
Result = TypeVar("Result")

# One thread each: the processes are the parallelism.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(
    job: Callable[[Task], Result], tasks: Iterable[Task], count: int, name: Callable[[Task], str] = str
) -> Iterator[Result]:
    """Yield the results of ``job`` in the order in which they are finished.

    Args:
        job: Can be pickled, as its tasks and results can, if ``count`` is more than 1.
        tasks: What to do.
        count: Processes; 1 works in this one.
        name: How a task is called in a message.

    Raises:
        M2HError: What a job raised; the other processes are stopped.
        DataError: A process died.
    """
    if count <= 1:
        yield from map(job, tasks)
        return
    queue = deque(tasks)
    # Their own session: Ctrl-C goes to this process alone, which then stops them.
    path = os.pathsep.join(filter(None, sys.path))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "m2h_lightning.data.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,
        )
        for _ in range(min(count, len(queue)))
    ]
    first = _line(job)
    try:
        with ThreadPoolExecutor(max(1, len(processes))) as pool:
            running: dict[Future[Result], subprocess.Popen[bytes]] = {}
            try:
                for process in processes:
                    task = queue.popleft()
                    running[pool.submit(_ask, process, first + _line(task), name(task))] = process
                while running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        process = running.pop(future)
                        if queue and future.exception() is None:
                            task = queue.popleft()
                            running[pool.submit(_ask, process, _line(task), name(task))] = process
                        yield future.result()
            except BaseException:  # Ctrl-C too: end the processes first, or the pool would wait for their answers
                _stop(processes)
                raise
    finally:
        _stop(processes)


def _line(value: Any) -> bytes:
    return base64.b64encode(pickle.dumps(value)) + b"\n"


def _ask(process: subprocess.Popen[bytes], message: bytes, name: str) -> Any:
    """Have one process do one task; blocks until it has answered."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(message)
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = b""
    if not answer.endswith(b"\n"):
        raise DataError(
            f"{name}: its working process died ({_why(process.wait())}); try fewer --workers, and run again to go on"
        )
    kind, value = pickle.loads(base64.b64decode(answer))
    if kind == "done":
        return value
    if kind == "fault":
        raise RuntimeError(f"{name}: {value}")
    raised: type[M2HError] = getattr(errors, kind)
    error = raised.__new__(raised)
    error.args = (value,)
    raise error


def _why(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed; was memory short?"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                try:
                    stream.close()
                except BrokenPipeError:  # what was still to be sent has no reader any more
                    continue


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that temporary files are removed on the way out


def main() -> int:
    """Answer every line of the input; the first one is the job."""
    signal.signal(signal.SIGTERM, _terminated)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    lines = sys.stdin.buffer
    try:
        job = pickle.loads(base64.b64decode(lines.readline()))
        for line in lines:
            try:
                answer: tuple[str, Any] = ("done", job(pickle.loads(base64.b64decode(line))))
            except M2HError as error:
                answer = (type(error).__name__, str(error))
            except Exception:
                answer = ("fault", traceback.format_exc())
            answers.write(_line(answer))
            answers.flush()
    except (KeyboardInterrupt, BrokenPipeError, EOFError):  # the parent stops too, and says so
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
