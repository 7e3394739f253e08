"""Arguments of ``m2h data …``: argparse whose complaints are one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from m2h_lightning.errors import ConfigError, did_you_mean

_AXES = re.compile(r"-[xyz](,-?[xyz])+")


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports in one line."""

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse; axes that begin with a minus are a value, not an option: ``--normal-axes -x,y,z``."""
        words: list[str] = []
        for word in args or ():
            if words and words[-1].startswith("--") and _AXES.fullmatch(word):
                words[-1] += f"={word}"
            else:
                words.append(word)
        return super().parse_known_args(None if args is None else words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError instead of printing the usage.

        Raises:
            ConfigError: Always.
        """
        hint = ""
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0].split("=")[0]
            options = [option for action in self._actions for option in action.option_strings]
            hint = did_you_mean(word, options)
        raise ConfigError(f"{self.prog}: {message}{hint} (see {self.prog} --help)")
