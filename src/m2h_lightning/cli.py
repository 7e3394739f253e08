"""The only door: ``m2h``, ``lightning`` and ``python -m m2h_lightning`` are the function :func:`main`.

The first word chooses the verb before anything heavy is imported: only the verbs that train or count import torch.
Exit codes: 0 done, 2 the user's input is wrong (one line on stderr), 1 our fault (traceback), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from m2h_lightning import __version__
from m2h_lightning.errors import ConfigError, DataError, M2HError, did_you_mean

TRAINING_VERBS = {
    "fit": "train a network:                 --config experiments/rooms.yaml [--model.* --data.* --trainer.* --run.*]",
    "validate": "evaluate on the validation split: --config … --ckpt_path runs/…/checkpoints/last.ckpt",
    "test": "evaluate on the test split:       --config … --ckpt_path …",
    "predict": "predict the test split:           --config … --ckpt_path … [--save DIR]",
}
OTHER_VERBS = {
    "baselines": "train one network per task and print Δm:      --config experiments/rooms.yaml [options of fit]",
    "evaluate": "score predictions in files, whoever made them:   --pred DIR (--config … | --data NYUDv2)",
    "sweep": "ablations and searches, on GPUs or a cluster:    sweep plan|run|status|report sweeps/window_size.yaml …",
    "summary": "parameters and GMACs per box of the network: --config … [--model.*] [--size H W]",
    "data": "prepare, verify or synthesize data sets:          data prepare|verify|synthesize …",
    "table": "test results of runs side by side, with Δm and published ones: table RUN… [--single RUN…] [--paper]",
    "doctor": "tell what is wrong with this installation:    [--fix] [--json]",
}
FABRIC_VERBS = ("run", "consolidate")


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after the program's name. Default: those of this process.

    Returns:
        The exit code: 0 done, 2 wrong input, 130 interrupted. Our own faults escape as exceptions (exit code 1).
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks a server for news, for 2 s offline
    words = list(sys.argv[1:] if argv is None else argv)
    program = Path(sys.argv[0]).name if argv is None else "m2h"
    try:
        return _dispatch(words, program)
    except M2HError as error:
        print(f"m2h: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("m2h: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `m2h fit --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def one_line(error: BaseException) -> str:
    """Return an error's message with its line breaks and runs of spaces made single spaces."""
    return " ".join(str(error).split())


def _dispatch(words: list[str], program: str) -> int:
    verb, rest = (words[0], words[1:]) if words else ("--help", [])
    if verb in ("--help", "-h", "help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"m2h-lightning {__version__}")
        return 0
    if verb in TRAINING_VERBS:
        if rest in (["--help"], ["-h"]):
            from m2h_lightning.commands.help_page import show_help

            return show_help(verb, lambda: _train(verb, rest))
        return _train(verb, rest)
    if verb == "evaluate":
        return _evaluate(rest)
    if verb == "baselines":
        from m2h_lightning.commands.baselines import main_baselines

        return main_baselines(rest)
    if verb == "sweep":
        from m2h_lightning.sweeps.command import main_sweep

        return main_sweep(rest)
    if verb == "summary":
        from m2h_lightning.commands.summary import main_summary

        return main_summary(rest)
    if verb == "table":
        from m2h_lightning.report.command import main_table

        return main_table(rest)
    if verb == "doctor":
        from m2h_lightning.commands.doctor import main_doctor

        return main_doctor(rest)
    if verb == "data":
        return _data(rest)
    if program == "lightning" and (other := _other_owner(verb)) is not None:
        return _run_other(other, [program, *words])
    if verb.startswith("-"):
        raise ConfigError(f"the command comes first, then its options: m2h fit {verb} …")
    verbs = [*TRAINING_VERBS, *OTHER_VERBS]
    raise ConfigError(f"there is no command '{verb}'{did_you_mean(verb, verbs)} (commands: {', '.join(verbs)})")


def _train(verb: str, words: list[str]) -> int:
    """Run a verb that needs torch."""
    from m2h_lightning.commands.arguments import Arguments

    arguments = Arguments.read(verb, words)  # tells missing files before torch is imported
    with _collector_paused():
        from m2h_lightning.commands import training

        training.classes()
    return training.main_training(arguments)


def _evaluate(words: list[str]) -> int:
    """Score predictions in files; wrong options are told before torch is imported."""
    from m2h_lightning.commands.evaluate_options import USAGE, read_options

    if "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    options = read_options(words)
    with _collector_paused():
        from m2h_lightning.commands.evaluate import evaluate
    return evaluate(options)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Import without garbage collection: of torch and Lightning nothing is garbage, and looking takes a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


DATA_VERBS = {
    "prepare": "turn a published data set into a fast store: data prepare nyud --src … --out …",
    "verify": "find out what is wrong with a data set:       data verify nyud PATH [--sheet sheet.png]",
    "synthesize": "render the procedural rooms, also in the files of another set: data synthesize rooms --out …",
}


def _data(words: list[str]) -> int:
    """Hand ``m2h data <verb> …`` to its command; none of them loads torch."""
    verb = words[0] if words else "--help"
    if verb in ("--help", "-h"):
        lines = "\n".join(f"  {name:<12}{text}" for name, text in DATA_VERBS.items())
        print(f"usage: m2h data VERB …\n\n{lines}\n\n'm2h data VERB --help' lists the options")
        return 0
    try:
        return _run_data(verb, words[1:])
    except PermissionError as error:
        raise DataError(
            f"{error.filename or 'a file'}: {error.strerror}; have its rights given to you, or choose another place"
        ) from error


def _run_data(verb: str, words: list[str]) -> int:
    if verb == "prepare":
        from m2h_lightning.data.prepare import main_prepare

        return main_prepare(words)
    if verb == "verify":
        from m2h_lightning.data.verify import main_verify

        return main_verify(words)
    if verb == "synthesize":
        from m2h_lightning.data.synthesis.command import main_synthesize

        return main_synthesize(words)
    raise ConfigError(
        f"there is no command 'data {verb}'{did_you_mean(verb, DATA_VERBS)} (data {', data '.join(DATA_VERBS)})"
    )


def _other_owner(verb: str) -> metadata.EntryPoint | None:
    """Find who else answers to ``lightning <verb>``: another package's script, or Lightning's ``fabric``."""
    scripts = metadata.entry_points(group="console_scripts")
    for script in scripts.select(name="lightning"):
        if not script.value.startswith("m2h_lightning"):
            return script
    if verb in FABRIC_VERBS:
        return next(iter(scripts.select(name="fabric")), None)
    return None


def _run_other(script: metadata.EntryPoint, argv: list[str]) -> int:
    """Run another package's console script as if it had been started by name."""
    function: Callable[[], object] = script.load()
    before, sys.argv = sys.argv, argv
    try:
        result = function()
    except SystemExit as stop:
        result = stop.code
    finally:
        sys.argv = before
    if isinstance(result, str):
        print(result, file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0


def _help() -> str:
    def lines(verbs: dict[str, str]) -> str:
        return "\n".join(f"  {verb:<10}{text}" for verb, text in verbs.items())

    return f"""usage: m2h COMMAND …        ('lightning COMMAND …' and 'python -m m2h_lightning COMMAND …' are the same)

train and evaluate (Lightning's own verbs and options; 'm2h fit --help' lists every key)
{lines(TRAINING_VERBS)}

tools of this package
{lines(OTHER_VERBS)}
  --version   print the version

Every run writes one new folder, runs/<experiment>/<run id>/; continue one with 'm2h fit --run.resume FOLDER'."""
