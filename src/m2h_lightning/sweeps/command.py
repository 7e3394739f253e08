"""``m2h sweep …``: which verb, and what the verbs share."""

from __future__ import annotations

from importlib import import_module

from m2h_lightning.errors import ConfigError, did_you_mean

VERBS = {
    "plan": "every cell: id, cost, done or not, command; starts nothing:  sweep plan FILE --experiment …",
    "run": "run what is missing, here or with --launcher slurm:          sweep run FILE --experiment … --workers 4",
    "status": "what is done, runs, waits, failed:                          sweep status FOLDER",
    "retry": "let failed cells wait again:                                sweep retry FOLDER [CELL…]",
    "report": "tables with intervals, efficiency, plots:                   sweep report FOLDER [-o NAME]",
    "worker": "one more worker on a planned sweep, anywhere:               sweep worker FOLDER",
    "proxy": "serve a sweep's ledger to thousands of workers (gRPC):      sweep proxy FOLDER --port 13000",
}


def main_sweep(words: list[str]) -> int:
    """Run one verb; return the exit code.

    Raises:
        M2HError: The user's input is wrong.
    """
    verb = words[0] if words else "--help"
    if verb in ("--help", "-h"):
        lines = "\n".join(f"  {name:<8}{text}" for name, text in VERBS.items())
        print(f"usage: m2h sweep VERB …\n\n{lines}\n\n'm2h sweep VERB --help' lists the options")
        return 0
    if verb not in VERBS:
        known = ", ".join(VERBS)
        raise ConfigError(f"there is no command 'sweep {verb}'{did_you_mean(verb, VERBS)} (sweep {known})")
    code: int = import_module(f"m2h_lightning.sweeps.verbs.{verb}").main(words[1:])
    return code
