"""Do one job for many tasks, in this process or in several, at once or in the background. Standard library only.

The working processes are plain ones (``python -m m2h_lightning.processes``) instead of ``multiprocessing``: they
import neither torch nor the caller's main module, and they end with their input, so none outlives a parent that was
killed. Job, tasks and results travel as pickles, one base64 line each.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import FrameType
from typing import Any, Generic, TypeVar

from m2h_lightning import errors
from m2h_lightning.errors import DataError, M2HError

Task = TypeVar("Task")
Result = TypeVar("Result")

# One thread each: the processes are the parallelism.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")

_HINT = "try fewer --workers, and run again to go on"


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
    waiting = deque(tasks)
    processes = _start(min(count, len(waiting)))
    first = _line(job)
    try:
        with ThreadPoolExecutor(max(1, len(processes))) as pool:
            running: dict[Future[Result], subprocess.Popen[bytes]] = {}
            try:
                for process in processes:
                    task = waiting.popleft()
                    running[pool.submit(_ask, process, first + _line(task), name(task))] = process
                while running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        process = running.pop(future)
                        if waiting and future.exception() is None:
                            task = waiting.popleft()
                            running[pool.submit(_ask, process, _line(task), name(task))] = process
                        yield future.result()
            except BaseException:  # Ctrl-C too: end the processes first, or the pool would wait for their answers
                _stop(processes)
                raise
    finally:
        _stop(processes)


class Crew(Generic[Task, Result]):
    """Processes that do one job in the background while this process does something else.

    At most twice as many tasks as processes are on their way; :meth:`submit` waits where there would be more, so memory
    does not grow with the number of tasks. The processes end with :meth:`close`, when the crew is garbage, and with
    this process, however it ends.

    Args:
        job: Can be pickled, as its tasks and results can.
        count: Processes, at least 1.
        hint: What to try when a process died, for the message.
    """

    def __init__(self, job: Callable[[Task], Result], count: int, hint: str) -> None:
        processes = _start(count)
        self._room = 2 * count
        self._waiting: queue.SimpleQueue[tuple[Task, str] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Result | None, Exception | None]] = queue.SimpleQueue()
        self._taken: deque[tuple[Result | None, Exception | None]] = deque()
        self._under_way = 0
        # Daemons, so that the interpreter does not wait for answers at its end; they must not know the crew, which
        # would never be garbage otherwise.
        for process in processes:
            threading.Thread(
                target=_serve, args=(process, _line(job), self._waiting, self._answers, hint), daemon=True
            ).start()
        self._end = weakref.finalize(self, _dismiss, processes, self._waiting, os.getpid())

    def submit(self, task: Task, name: str) -> None:
        """Hand over a task; waits until there is room for it.

        Args:
            task: What to do.
            name: How it is called in a message.
        """
        if self._under_way >= self._room:
            self._take()
        self._waiting.put((task, name))
        self._under_way += 1

    def finished(self, wait: bool) -> Iterator[Result]:
        """Yield results in the order in which they are finished: of all tasks if ``wait``, else those already there.

        Raises:
            M2HError: What a job raised, or a DataError where a process died; the crew is closed.
        """
        while self._under_way and (wait or not self._answers.empty()):
            self._take()
        while self._taken:
            result, error = self._taken.popleft()
            if error is not None:
                self.close()
                raise error
            yield result  # type: ignore[misc]

    def _take(self) -> None:
        self._taken.append(self._answers.get())
        self._under_way -= 1

    def close(self) -> None:
        """End the processes; what they have not finished is lost."""
        self._under_way = 0
        self._taken.clear()
        self._end()


def _serve(
    process: subprocess.Popen[bytes],
    first: bytes,
    waiting: queue.SimpleQueue[Any],
    answers: queue.SimpleQueue[Any],
    hint: str,
) -> None:
    """Have one process do tasks one by one; the loop of a thread."""
    while (item := waiting.get()) is not None:
        task, name = item
        try:
            answers.put((_ask(process, first + _line(task), name, hint), None))
        except Exception as error:  # whatever it is, it is raised where the results are taken
            answers.put((None, error))
        first = b""


def _dismiss(processes: list[subprocess.Popen[bytes]], waiting: queue.SimpleQueue[Any], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the owner has no say over its processes
        return
    while not waiting.empty():
        with contextlib.suppress(queue.Empty):  # a thread was quicker
            waiting.get_nowait()
    _stop(processes)
    for _ in processes:
        waiting.put(None)


def _start(count: int) -> list[subprocess.Popen[bytes]]:
    path = os.pathsep.join(filter(None, sys.path))
    return [
        subprocess.Popen(
            [sys.executable, "-m", "m2h_lightning.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # their own session: Ctrl-C goes to this process alone, which then stops them
        )
        for _ in range(count)
    ]


def _line(value: Any) -> bytes:
    return base64.b64encode(pickle.dumps(value)) + b"\n"


def _ask(process: subprocess.Popen[bytes], message: bytes, name: str, hint: str = _HINT) -> Any:
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
        raise DataError(f"{name}: its working process died ({_why(process.wait())}); {hint}")
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
