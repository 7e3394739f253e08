"""Arguments of ``m2h data …``: argparse whose complaints are one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from m2h_lightning.errors import ConfigError, did_you_mean


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports in one line."""

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
