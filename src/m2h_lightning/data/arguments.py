"""Arguments of ``m2h data …``: argparse whose complaints are one line."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterable
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


_COMMON = ("self", "path", "edges", "depth_target", "normals", "normal_axes")
"""Parameters of readers that all sets share; the commands that want them have options of their own for them."""


def _own(reader: Callable[..., Any], without: tuple[str, ...]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(reader).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in (*_COMMON, *without)}


def add_own_options(parser: argparse.ArgumentParser, reader: Any, without: tuple[str, ...] = ()) -> None:
    """Add an option for each parameter that only this data set's reader has.

    Args:
        parser: To be extended.
        reader: Class of the reader.
        without: Parameters to leave out.
    """
    group = parser.add_argument_group(f"options of {reader.name}")
    # The reader's own documentation says what they mean; there is no second text that could differ.
    meaning = dict(re.findall(r"^    (\w+): (.+?)(?=\n    \w|\n\n|\Z)", inspect.getdoc(reader) or "", re.M | re.S))
    for name, parameter in _own(reader, without).items():
        flag = name.replace("_", "-")
        text = " ".join(meaning.get(name, "").replace("%", "%%").split())
        if parameter.default is False:
            group.add_argument(f"--{flag}", action="store_true", help=text)
        elif parameter.default is True:
            group.add_argument(f"--no-{flag}", dest=name, action="store_false", help=f"do not: {text}")
        else:
            shown = f"{text} (default: {parameter.default or 'none'})"
            group.add_argument(f"--{flag}", metavar="VALUE", help=shown)


def own_options(args: argparse.Namespace, reader: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the parsed options of :func:`add_own_options` that differ from their defaults."""
    chosen = {name: (getattr(args, name), parameter.default) for name, parameter in _own(reader, without).items()}
    return {name: value for name, (value, default) in chosen.items() if value is not None and value != default}
