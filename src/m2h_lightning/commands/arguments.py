"""Reads the words of a training command before torch is imported: files that are missing or broken are told at once.

Also remembers where each key of a configuration file stands, so that a later error can name file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from m2h_lightning.errors import CheckpointError, ConfigError
from m2h_lightning.runs.folder import CONFIG, check_resumable


@dataclass
class Arguments:
    """The words of one training command.

    Args:
        verb: ``fit``, ``validate``, ``test``, ``predict`` or ``summary``.
        words: The words after the verb, with the resumed run's configuration put first.
        config_files: The configuration files the user gave, in order.
        resume: The run folder to continue, or None.
        places: Dotted key → ``file:line`` of its last occurrence in the configuration files.
    """

    verb: str
    words: list[str]
    config_files: list[str]
    resume: Path | None = None
    places: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, verb: str, words: list[str]) -> Arguments:
        """Check files and folders named on the command line, and index the configuration files.

        Raises:
            ConfigError: A file is missing or is not YAML, or ``--run.resume`` does not fit.
            CheckpointError: ``--ckpt_path`` names no file, or the run to resume has no checkpoint.
        """
        resume = next(reversed(list(option_values(words, "--run.resume"))), None)
        given = list(option_values(words, "--config", "-c"))
        arguments = cls(verb, list(words), given, Path(resume) if resume else None)
        for file in given:
            arguments._index(file)
        if arguments.resume is not None:
            if verb != "fit":
                raise ConfigError(f"run.resume continues a training run: use it with fit; for {verb} give --ckpt_path")
            check_resumable(arguments.resume)
            saved = str(arguments.resume / CONFIG)
            arguments._index(saved)
            arguments.words = ["--config", saved, *words]
        for path in option_values(words, "--ckpt_path"):
            if arguments.resume is not None:
                raise ConfigError("--run.resume chooses the checkpoint itself; leave out --ckpt_path")
            check_checkpoint_path(path)
        return arguments

    def place(self, key: str) -> str:
        """Return ``" (file:line)"`` of a key whose value comes from a configuration file, else an empty string."""
        if any(word == f"--{key}" or word.startswith((f"--{key}=", f"--{key}.")) for word in self.words):
            return ""
        parts = [part for part in key.split(".") if part != "init_args"]
        found = self.places.get(".".join(parts))
        return f" ({found})" if found else ""

    def last_place(self, *keys: str) -> str:
        """Return the place of whichever of ``keys`` was written last; see :meth:`place`."""
        order = list(self.places)
        known = [key for key in keys if key in self.places]
        return self.place(max(known, key=order.index)) if known else ""

    def _index(self, file: str) -> None:
        """Read one configuration file into ``places``."""
        path = Path(file)
        if not path.is_file():
            if file.lstrip().startswith(("{", "[")):
                return  # a configuration given in place of a file
            near = sorted(str(other) for other in path.parent.glob("*.yaml"))[:8] if path.parent.is_dir() else []
            raise ConfigError(
                f"--config: there is no file {file}" + (f" (there are {', '.join(near)})" if near else "")
            )
        try:
            tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{_yaml_problem(file, error)}; mend the file's YAML") from error
        if tree is None:
            raise ConfigError(f"{file} is empty; a configuration is a YAML mapping such as 'model: …'")
        if not isinstance(tree, yaml.MappingNode):
            raise ConfigError(f"{file}:1: a configuration is a YAML mapping such as 'model: …', not a list or a word")
        for key, line in _keys(tree):
            self.places.pop(key, None)  # so that the order is that of the last mention
            self.places[key] = f"{file}:{line}"


def option_values(words: list[str], *names: str) -> Iterator[str]:
    """Yield the values of an option given as ``--name value`` or ``--name=value``, in order.

    Raises:
        ConfigError: The option is the last word and has no value.
    """
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name not in names:
            continue
        if equals:
            yield value
        elif index + 1 < len(words):
            yield words[index + 1]
        else:
            raise ConfigError(f"{name} needs a value")


def check_checkpoint_path(path: str) -> None:
    """Check that a checkpoint given by path exists.

    Raises:
        CheckpointError: There is no such file.
    """
    if path in ("null", "None"):
        return
    if path in ("last", "best", "hpc"):  # Lightning looks for them in the run's own folder, which is new and empty
        raise CheckpointError(f"--ckpt_path: '{path}' names nothing in a new run; give the path of a .ckpt file")
    if not Path(path).exists():
        folder = Path(path).parent
        near = sorted(other.name for other in folder.glob("*.ckpt"))[:8] if folder.is_dir() else []
        there = f" (there are {', '.join(near)} in {folder})" if near else ""
        raise CheckpointError(f"--ckpt_path: there is no file {path}{there}")
    if Path(path).is_dir():
        raise CheckpointError(
            f"--ckpt_path: {path} is a folder; give the file, e.g. {Path(path) / 'checkpoints/last.ckpt'}"
        )


def _yaml_problem(file: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark is not None else ""
    context = getattr(error, "context", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{file}{line}: not valid YAML: {problem}" + (f" {context}" if context else "")


def _keys(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield dotted keys and their lines; levels named ``init_args`` are left out of the names."""
    for key_node, value_node in node.value:
        key = str(key_node.value).rstrip("+")
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else key
        if key != "init_args":
            yield name, key_node.start_mark.line + 1
        if isinstance(value_node, yaml.MappingNode):
            yield from _keys(value_node, name)
