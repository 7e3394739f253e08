"""Errors that are the user's to mend. The command line prints each as one line and exits with code 2.

Everything else that escapes is our fault: it keeps its traceback and exits with code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class M2HError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, and how to mend it."""


class ConfigError(M2HError):
    """A configuration key or value is wrong."""


class DataError(M2HError):
    """A data set, a file of it, or a batch is not what it should be."""


class CheckpointError(M2HError):
    """A checkpoint or pretrained weights cannot be used as asked."""


class MissingExtraError(M2HError):
    """An optional dependency is needed.

    Args:
        package: The package that could not be imported.
        extra: The extra of this project that installs it.
        purpose: What it is needed for.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'm2h-lightning[{extra}]'")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``choices``, or an empty string when none is close.

    Dotted keys are compared whole first and by their last part second, so that ``model.window_size`` finds
    ``model.wmca.window_size``.
    """
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.75)
    if not close:
        by_leaf = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(choices)}
        leaf = difflib.get_close_matches(word.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.75)
        close = [by_leaf[leaf[0]]] if leaf else []
    return f"; did you mean '{close[0]}'?" if close else ""
