"""Turns the parser's messages into one line: which key, where it stands, what is wrong, how to mend it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger

from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.errors import did_you_mean

MAX_LISTED = 8

SHAPES = {
    "model.stages": "a list of stages with the keys name, epochs, lr, freeze and consistency, such as "
    "[{name: pretrain, epochs: 8}, {name: finetune, epochs: 2, lr: 1.0e-4}]",
    "model.backbone.unfreeze": "a mapping from epochs to values of freeze, such as {2: last_4, 5: false}",
    "model.balancing.sampling": "a mapping from tasks to probabilities, such as {edges: 0.5}",
    "model.loss_weights": "a mapping from tasks to weights, such as {edges: 5.0}",
    "data.labels.shares": "a mapping from tasks to shares, such as {depth: 0.5}",
}
"""Keys whose values have parts; the parser tells of one of its attempts to read them, seldom of what is wrong."""


def explain(message: str, known_keys: Iterable[str], arguments: Arguments, data_class: type) -> str:
    """Return the parser's message as one line a user can act on.

    Args:
        message: What jsonargparse says, often over many lines.
        known_keys: The dotted keys of the current verb.
        arguments: The command line, which knows where keys stand.
        data_class: The base class of the data sets.
    """
    keys = sorted({*known_keys, *data_keys(data_class)})
    text = " ".join(message.split())
    if found := re.match(r"unrecognized arguments: (\S+)", text):
        word = found.group(1)
        if not word.startswith("-"):
            return f"unexpected word '{word}'; options look like --model.wmca.window_size 7"
        return unknown_key(word.lstrip("-").split("=")[0], keys, arguments)
    if found := re.match(r"Subcommand '\w+' does not accept option '([^']+)'", text):
        return unknown_key(found.group(1), keys, arguments)
    if found := re.match(r"Group '([^']+)' does not accept option '([^']+)'", text):
        return unknown_key(f"{found.group(1)}.{found.group(2)}", keys, arguments)
    if found := re.match(r"Option '([^']+)' is not accepted", text):
        return unknown_key(found.group(1), keys, arguments)
    if found := re.match(r"the following arguments are required: (.*)", text):
        names = [name.strip().split(".", 1)[-1] for name in found.group(1).split(",")]
        mend = "--data Rooms, or --config with an experiment file" if "data" in names else "see --help"
        return f"{', '.join(names)} is missing; give {mend}"
    if found := re.match(r"argument (\S+): expected one argument", text):
        return _no_value(found.group(1), arguments.words)
    if found := re.match(r"argument \S+ --> (\S+): ", text):
        return f"{found.group(1)} comes from the data set; leave it out and choose the data set with --data"
    if found := re.match(r'Parser key "([^"]+)": ?(.*)', text):
        return _wrong_value(found.group(1), found.group(2), keys, arguments, data_class)
    return text


def group_value(key: str, value: object, keys: Iterable[str], arguments: Arguments) -> str:
    """Return the line for a plain value where a group of keys stands, such as ``wmca: 3``."""
    if value is None:
        return f"{key} is null{arguments.place(key)}; leave it out to have the defaults"
    inside = dict.fromkeys(name.removeprefix(f"{key}.") for name in keys if name.startswith(f"{key}."))
    shown = sorted(inside, key=lambda name: name != "name")[:MAX_LISTED]
    more = " …" if len(inside) > len(shown) else ""
    return f"{key} is {value!r}{arguments.place(key)}; it is a group of keys: {', '.join(shown)}{more}"


def _no_value(option: str, words: list[str]) -> str:
    """Return the line for an option without a value; one like -1e-3 was taken for the next option."""
    after = words[words.index(option) + 1 : words.index(option) + 2] if option in words else []
    number = re.fullmatch(r"-[\d.].*", after[0]) if after else None
    return f"{option} needs a value" + (f"; write {option}={after[0]}" if number else "")


def unknown_key(key: str, keys: Iterable[str], arguments: Arguments) -> str:
    """Return the line for a key that does not exist, with the closest one that does."""
    keys = list(keys)
    if key in keys:  # of another class: every data set's keys are known, not every data set has them
        return f"unknown key '{key}'{arguments.place(key)}; the class in use has no such key (other data sets have)"
    shown = _misspelt_part(key, keys)
    closest = did_you_mean(shown, _with_branches(keys)) or f"; 'm2h {arguments.verb} --help' lists all keys"
    return f"unknown key '{shown}'{arguments.place(shown)}{closest}"


def _misspelt_part(key: str, keys: Iterable[str]) -> str:
    """Shorten ``trainerr.max_epochs`` to ``trainerr``: the part of the key up to its first unknown name."""
    branches = _with_branches(keys)
    parts = key.split(".")
    for end in range(1, len(parts)):
        if ".".join(parts[:end]) not in branches:
            return ".".join(parts[:end])
    return key


def _with_branches(keys: Iterable[str]) -> set[str]:
    return {".".join(parts[:end]) for parts in (key.split(".") for key in keys) for end in range(1, len(parts) + 1)}


def _wrong_value(key: str, problem: str, keys: list[str], arguments: Arguments, data_class: type) -> str:
    line = _told_value(key, problem, keys, arguments, data_class)
    for whole, shape in SHAPES.items():
        if key == whole and re.search(r"Namespace\(|path but|unknown key|be (a mapping or )?null$", line):
            return f"{whole}{arguments.place(whole)} cannot be read; it must be {shape}"
    return line


def _told_value(key: str, problem: str, keys: list[str], arguments: Arguments, data_class: type) -> str:
    # A wrong argument of the data set is told inside a complaint about the whole of "data", or null.
    nested = re.match(r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - (.*)", problem)
    if key == "data" and nested:
        inner = nested.group(1).rpartition(" - Expected a <class 'NoneType'> Given value type:")[0]
        if found := re.match(r"unrecognized arguments: --([\w.]+)", inner):
            return unknown_key(f"{key}.{found.group(1)}", keys, arguments)
        if found := re.match(r"Group '([^']+)' does not accept option '([^']+)'", inner):
            return unknown_key(f"{key}.{found.group(1)}.{found.group(2)}", keys, arguments)
        if found := re.match(r'Parser key "([^"]+)": (.*)', inner):
            return _wrong_value(f"{key}.{found.group(1)}", found.group(2), keys, arguments, data_class)
    if found := re.match(r"Unable to load config '(.*?)'(?= - Parser key|$)", problem):
        value = None if found.group(1) in ("null", "None") else found.group(1)
        return group_value(key, value, keys, arguments)
    base = {"data": data_class, "trainer.callbacks": Callback, "trainer.logger": Logger}.get(key)
    if found := re.search(r"Option '([^']+)' is not accepted", problem):
        wrong = f"{key}.{found.group(1)}"
        choices = keys
        if named := re.search(r"'class_path': '([^']+)'", problem):
            choices = [f"{key}.{name}" for name in _parameters(base, named.group(1))] or keys
        return unknown_key(wrong, choices, arguments)
    if (found := re.search(r"Expected a dot import path string: (\S+)", problem)) and base is not None:
        names = class_names(base)
        known = f" (known: {', '.join(names)})" if len(names) <= MAX_LISTED else ""
        place = arguments.last_place(key, f"{key}.class_path")
        return f"{key}: there is no class '{found.group(1)}'{place}{did_you_mean(found.group(1), names)}{known}"
    if found := re.search(r"(?:Import of|No module named|Problem with given class_path) ?'?([\w.]+)'?", problem):
        return f"{key}{arguments.place(key)}: cannot import '{found.group(1)}'; give a class of an installed package"
    expected = [
        _type_name(kind)
        for kind in re.findall(r"Expected an? (<class '[^']+'>|typing\.[^.]*?\]|\w[^.]*?)(?=\. | -|$| Given)", problem)
    ]
    value = re.search(r"(?:Got value|Given value): (.*?)(?= - Expected| Given value|$)", problem)
    if not expected or value is None:
        return f"{key}{arguments.place(key)}: {problem}"
    given = value.group(1).strip()
    must = " or ".join(dict.fromkeys(kind for kind in expected if kind))
    literals = re.findall(r"'([^']+)'", must)
    return f"{key} is {given!r}{arguments.place(key)}; it must be {must}{did_you_mean(given, literals)}"


def _type_name(kind: str) -> str:
    if kind.startswith("typing.Literal["):
        return " or ".join(re.findall(r"'[^']*'", kind))
    if found := re.match(r"<class '([^']+)'>", kind):
        name = found.group(1).rsplit(".", 1)[-1]
        names = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
            "NoneType": "null",
            "str": "text",
            "dict": "a mapping",
        }
        return names.get(name, f"a {name}")
    if found := re.match(r"(?:a )?tuple with (\d+) elements", kind):
        return f"a list of {found.group(1)} values"
    return kind


def subclasses(base: type) -> list[type]:
    """Return the concrete classes below ``base`` that are imported, in the order of their names."""
    found: dict[str, type] = {}
    stack = [base]
    child: type
    while stack:
        for child in stack.pop().__subclasses__():
            stack.append(child)
            if not inspect.isabstract(child) and not child.__name__.startswith("_"):
                found.setdefault(child.__name__, child)
    return [found[name] for name in sorted(found)]


def class_names(base: type) -> list[str]:
    """Return the names of :func:`subclasses`."""
    return [child.__name__ for child in subclasses(base)]


def _parameters(base: type | None, class_path: str) -> list[str]:
    name = class_path.rsplit(".", 1)[-1]
    return next((init_parameters(child) for child in subclasses(base) if child.__name__ == name), []) if base else []


def init_parameters(class_: type) -> list[str]:
    """Return the names of a class's constructor arguments, those it hands on to its base classes included."""
    names: list[str] = []
    for owner in class_.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names += [p.name for p in parameters if p.kind in named and p.name not in names]
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names


def data_keys(data_class: type) -> set[str]:
    """Return the keys of all data sets that are imported, fields of groups such as ``data.augment.flip`` included."""
    classes = [child for child in subclasses(data_class) if issubclass(child, LightningDataModule)]
    keys = {f"data.{name}" for child in classes for name in init_parameters(child)}
    # The fields of groups, such as data.augment.flip.
    for owner in {owner for child in classes for owner in child.__mro__ if "__init__" in vars(owner)}:
        for name, kind in inspect.get_annotations(vars(owner)["__init__"], eval_str=True).items():
            if f"data.{name}" in keys and dataclasses.is_dataclass(kind):
                keys |= {f"data.{name}.{field.name}" for field in dataclasses.fields(kind)}
    return keys
