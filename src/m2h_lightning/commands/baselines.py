"""``m2h baselines``: a single-task run for each task of an experiment, one after the other, and Δm over them.

This file loads no torch; each run is a process of its own.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from m2h_lightning.commands.arguments import Arguments, option_values
from m2h_lightning.errors import ConfigError, M2HError
from m2h_lightning.report.collect import collect
from m2h_lightning.report.command import main_table
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.outcome import check_same_run, read_outcome

USAGE = """usage: m2h baselines --config experiments/rooms.yaml [any option of fit]

Train a single-task network for each task of an experiment, with everything else as the experiment has it, test it, and
print the results with Δm of the experiment's own runs, where there are tested ones.

Runs are processes of their own, one after the other: runs/<experiment>-single/<task>, or <task>-seed<N> for a seed
other than 0. A finished run is skipped, an interrupted one is continued, a failing one is named and the others go on
(exit code 1). The tasks are those of model.tasks, else all that the data set has labels for; what is written for other
tasks is left out of a run."""

GRACE_S, END_S = 10.0, 60.0
"""Seconds after Ctrl-C until a run that goes on is told once more, and from then until it is ended."""

PROGRAM = (sys.executable, "-m", "m2h_lightning")


def main_baselines(words: list[str]) -> int:
    """Run the verb.

    Args:
        words: The words after ``baselines``.

    Returns:
        0 when every task has a finished run, else 1.

    Raises:
        M2HError: A key or value is wrong; nothing was started.
        KeyboardInterrupt: Ctrl-C; the run under way was stopped.
    """
    if "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    for name in ("--run.id", "--run.resume", "--ckpt_path"):
        if any(True for _ in option_values(words, name)):
            raise ConfigError(f"{name} names one run, but m2h baselines makes one per task; leave it out")
    if runs.launcher_run_id() is not None:
        raise ConfigError("m2h baselines starts its runs itself: start it as one process, without torchrun or srun")
    Arguments.read("fit", words)  # tells missing files before torch is imported
    from m2h_lightning.commands.narrowing import words_of_task
    from m2h_lightning.commands.plan import plan_of

    plan = plan_of(words, check=True)
    singles = plan.experiment.with_name(f"{plan.experiment.name}-single")
    own = {task: [*words_of_task(words, task), "--model.tasks", f"[{task}]"] for task in plan.tasks}
    trees = {task: plan_of(options).tree for task, options in own.items()}  # all of them, before anything is started
    failed = []
    for number, (task, tree) in enumerate(trees.items(), 1):
        folder = singles / _run_id(task, tree["seed_everything"])
        print(f"baseline {number} of {len(plan.tasks)}: {task} in {folder}", flush=True)
        output = ["--run.root", plan.tree["run"]["root"], "--run.experiment", singles.name, "--run.id", folder.name]
        problem = _train(folder, tree, [*own[task], *output, "--run.test", "true"])
        if problem is not None:
            failed.append(task)
            print(f"baseline {task}: {problem}", file=sys.stderr, flush=True)
    if failed:
        print(f"m2h baselines: {len(failed)} of {len(plan.tasks)} failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    _show(plan.experiment, singles, plan.tasks, words)
    return 0


def _run_id(task: str, seed: Any) -> str:
    return task if seed == 0 else f"{task}-seed{seed}"


def _train(folder: Path, tree: dict[str, Any], words: list[str]) -> str | None:
    """Bring one run to its end: skip it, continue it or start it.

    Args:
        folder: The run's folder.
        tree: The configuration it is to have.
        words: Options of ``fit`` that start it.

    Returns:
        What went wrong, or None.
    """
    if folder.exists():
        try:
            state = _state(folder, tree)
        except M2HError as error:
            return str(error)
        if state == "finished":
            print(f"{folder} is finished: skipped", flush=True)
            return None
        if state == "interrupted":
            return _fit(["--run.resume", str(folder)])
        aside = next(path for n in range(1, 1000) if not (path := folder.with_name(f"{folder.name}-old{n}")).exists())
        folder.rename(aside)
        print(f"{folder} has no checkpoint to go on from: kept as {aside.name}, started anew", flush=True)
    return _fit(words)


def _state(folder: Path, tree: dict[str, Any]) -> str:
    """Tell whether a run is "finished", "interrupted", or "empty" (with nothing to go on from).

    Raises:
        ConfigError: It has another configuration, or was not tested.
        DataError: One of its files is damaged.
    """
    check_same_run(folder, tree, "move it away, or give another --run.experiment")
    outcome = read_outcome(folder)
    if outcome.state == "finished" and not outcome.result.get("metrics", {}).get("test"):
        raise ConfigError(f"{folder} is finished but was not tested; move it away")
    return outcome.state


def _fit(words: list[str]) -> str | None:
    """Run ``m2h fit`` in a process of its own; return what went wrong, or None.

    Raises:
        KeyboardInterrupt: Ctrl-C, here or there.
    """
    print(f"$ m2h fit {shlex.join(words)}", flush=True)
    process = None
    try:
        process = subprocess.Popen([*PROGRAM, "fit", *words])
        code = process.wait()
    except BaseException:
        if process is not None:
            _stop(process)
        raise
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    return None if code == 0 else f"failed with exit code {code}; what it said stands above"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let a run end by itself: in a terminal it got the same Ctrl-C; tell it where it did not, and end it at last."""
    for seconds, end in ((GRACE_S, partial(process.send_signal, signal.SIGINT)), (END_S, process.kill)):
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            end()
    process.wait()


def _show(multi: Path, singles: Path, tasks: list[str], words: list[str]) -> None:
    """Print the results, with Δm where the experiment's own runs are there and comparable."""
    try:
        tested = collect([multi])[0] if multi.is_dir() else []
    except M2HError:  # none of its runs was tested
        tested = []
    own = [str(run.path.parent) for run in tested if 1 < len(run.tasks) <= len(set(run.tasks) & set(tasks))]
    print()
    with_delta, plain = [*own, "--single", str(singles)], [*own, str(singles)]
    for places in [with_delta, plain] if own else [plain]:
        try:
            main_table(places)
            break
        except M2HError as error:
            print(f"no {'Δm' if places is with_delta else 'table'}: {' '.join(str(error).split())}\n")
    if not own:
        print(f"\nΔm needs a run of several tasks in {multi}: m2h fit {shlex.join(words)} --run.test true")
        print(f"and then: m2h table {multi} --single {singles}")
