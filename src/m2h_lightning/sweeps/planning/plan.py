"""The plan of a sweep: every cell with its command, written to ``plan.json`` in the sweep's folder.

Workers read the plan and nothing else, so that a sweep file edited while they run changes nothing. The sweep's folder
is ``<root>/<name of the sweep>-<experiment>/``: ``plan.json``, ``ledger.journal`` (Optuna), ``logs/``, ``workers/``,
``locks/``, and one run folder per cell, named by the cell.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.planning.cells import Cell, assignments, cell_id, grid, variant
from m2h_lightning.sweeps.planning.file import ARGS, ENVIRONMENT, SweepFile
from m2h_lightning.sweeps.planning.parameters import SEED, Parameter

PLAN, LEDGER = "plan.json", "ledger.journal"
LOGS, WORKERS, LOCKS, ASIDE = "logs", "workers", "locks", "aside"
FORMAT = 1
MOST_CELLS = 20_000
EXPERIMENT = "EXPERIMENT"
"""The variable of a sweep's command that ``--experiment`` sets."""


@dataclass(frozen=True)
class Plan:
    """What a sweep is to run.

    Args:
        folder: The sweep's folder, absolute.
        name: Its name, which is that of the Optuna study.
        file: The sweep file.
        method: "grid", "random" or "bayes".
        metric: What is compared, by its ``stage/task/metric`` name.
        higher_is_better: Its direction.
        parameters: The parameters of the sweep.
        experiment: The experiment's file; None where the command names none.
        words: Words added to every cell's command.
        storage: Where the ledger is (:mod:`.storage`).
        directory: Working directory of the cells.
        environment: Variables set for every cell.
        early_terminate: When a run of a search is given up.
        prune: Whether cells of a grid may be given up too.
        cells: The cells in the order in which they are started.
        made: Time, commit and versions of the planning.
    """

    folder: Path
    name: str
    file: str
    method: str
    metric: str
    higher_is_better: bool
    parameters: dict[str, Parameter]
    experiment: str | None
    words: tuple[str, ...]
    storage: str
    directory: str
    environment: dict[str, str]
    early_terminate: dict[str, Any] | None
    prune: bool
    cells: tuple[Cell, ...]
    made: dict[str, Any]

    @property
    def searches(self) -> bool:
        """Whether values are drawn when a run starts, instead of being planned."""
        return self.method != "grid"

    @property
    def pruner(self) -> dict[str, Any] | None:
        """The rule by which runs are given up, or None: grids are complete unless somebody asked."""
        return self.early_terminate if self.searches or self.prune else None

    def cell(self, name: str) -> Cell:
        """Return a cell by its id.

        Raises:
            ConfigError: There is none of that name.
        """
        for cell in self.cells:
            if cell.id == name:
                return cell
        raise ConfigError(f"{self.folder / PLAN} has no cell '{name}'")

    def folder_of(self, cell: str) -> Path:
        """Return the run folder of a cell."""
        return self.folder / cell

    def log_of(self, cell: str) -> Path:
        """Return the file that holds what a cell printed."""
        return self.folder / LOGS / f"{cell}.log"

    def command_of(self, cell: Cell, overrides: Mapping[str, Any]) -> list[str]:
        """Return the words that run a cell with these values."""
        at = cell.command.index(ARGS)
        return [*cell.command[:at], *assignments(overrides), *cell.command[at + 1 :]]

    def save(self) -> None:
        """Write the plan, whole or not at all."""
        for name in ("", LOGS, WORKERS, LOCKS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        runs.write_json(self.folder / PLAN, {"format": FORMAT, **content})


def load_plan(folder: Path) -> Plan:
    """Read the plan of a sweep's folder.

    Raises:
        ConfigError: There is none.
        DataError: It is damaged, or of another version.
    """
    path = folder / PLAN
    if not path.is_file():
        raise ConfigError(f"{folder} is no folder of a sweep: it has no {PLAN}; start one with m2h sweep run FILE")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise DataError(f"{path}: was written by another version; move {folder} away and plan again")
        content["parameters"] = {
            key: Parameter(**{**value, "values": tuple(value["values"])})
            for key, value in content["parameters"].items()
        }
        content["cells"] = tuple(
            Cell(cell["id"], cell["overrides"], tuple(cell["command"]), cell["config_hash"])
            for cell in content["cells"]
        )
        content["words"] = tuple(content["words"])
        return Plan(folder=folder.absolute(), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error}); remove it and plan again, finished cells stay") from error


@dataclass(frozen=True)
class Request:
    """What a person asks of a sweep, beside its file.

    Args:
        experiment: File of the experiment, for the command's ``${envvar:EXPERIMENT}``.
        seeds: Seeds that replace those of the file.
        name: Name of the sweep's folder. Default: the file's name and the experiment's.
        root: Folder of all runs.
        storage: URL of the ledger. Default: a journal in the sweep's folder.
        data_root: Folder of the data sets.
        words: Words added to every cell's command.
        prune: Whether cells of a grid may be given up.
    """

    experiment: str | None = None
    seeds: tuple[int, ...] | None = None
    name: str | None = None
    root: str = "runs"
    storage: str | None = None
    data_root: str | None = None
    words: tuple[str, ...] = ()
    prune: bool = False


def folder_of(sweep: SweepFile, request: Request) -> Path:
    """Return the folder of a sweep.

    Raises:
        ConfigError: The name is no folder's name, or the file has no use for an experiment.
    """
    experiment = _experiment(sweep, request)
    name = request.name
    if name is None:
        name = sweep.name + (f"-{runs.slug(Path(experiment).stem)}" if experiment else "")
    if not name or name != runs.slug(name):
        raise ConfigError(f"--name: '{name}' is not a folder name; use letters, digits, '.', '_' and '-'")
    return Path(request.root).expanduser().absolute() / name


def _experiment(sweep: SweepFile, request: Request) -> str | None:
    """Return the experiment's file: the one asked for, else that of the environment, where the command needs one.

    Raises:
        ConfigError: One was asked for, and the command has no place for it.
    """
    needed = any(EXPERIMENT in ENVIRONMENT.findall(word) for word in sweep.command)
    if request.experiment and not needed:
        raise ConfigError(f"--experiment: the command of {sweep.path} has no ${{envvar:{EXPERIMENT}}} to put it in")
    return (request.experiment or os.environ.get(EXPERIMENT) or None) if needed else None


def make_plan(sweep: SweepFile, request: Request) -> Plan:
    """Plan a sweep; nothing is checked by training's own rules yet, and nothing is written.

    Raises:
        ConfigError: The request does not fit the file, or the folder holds a sweep of another kind.
    """
    if request.prune and sweep.early_terminate is None:
        raise ConfigError(
            f"--prune: {sweep.path} does not say when; add early_terminate: {{type: hyperband, min_iter: 3}}"
        )
    parameters = _with_seeds(sweep, request.seeds)
    folder = folder_of(sweep, request)
    experiment = _experiment(sweep, request)
    environment = {"M2H_DATA": str(Path(request.data_root).expanduser().absolute())} if request.data_root else {}
    command = _resolved(sweep, experiment)
    tail = [*request.words]
    if fit_words(command) is not None:
        tail += ["--run.root", str(folder.parent), "--run.experiment", folder.name]

    def words(name: str) -> tuple[str, ...]:
        own = ["--run.id", name, "--trainer.enable_progress_bar", "false"] if fit_words(command) is not None else []
        return (*command, *tail, *own)

    if sweep.method == "grid":
        count = math.prod(len(parameter.values) for parameter in parameters.values())
        if count > MOST_CELLS:
            raise ConfigError(f"{sweep.path}: {count} cells are more than {MOST_CELLS}; give fewer values, or a search")
        planned = [(cell_id(overrides, parameters), overrides) for overrides in grid(parameters)]
        if len({name for name, _ in planned}) < len(planned):
            raise ConfigError(f"{sweep.path}: two cells have the same name; give the parameters other values")
        cells = tuple(Cell(name, overrides, words(name)) for name, overrides in planned)
    else:
        names = [f"trial-{number:04d}" for number in range(sweep.run_cap or 0)]
        cells = tuple(Cell(name, None, words(name)) for name in names)
    return Plan(
        folder=folder,
        name=folder.name,
        file=str(sweep.path),
        method=sweep.method,
        metric=sweep.metric,
        higher_is_better=sweep.higher_is_better,
        parameters=parameters,
        experiment=experiment,
        words=tuple(request.words),
        storage=request.storage or f"journal:{LEDGER}",
        directory=str(Path.cwd()),
        environment=environment,
        early_terminate=sweep.early_terminate,
        prune=request.prune,
        cells=cells,
        made={"time": runs.timestamp(), "git": runs.git_state(Path.cwd()), "versions": runs.versions()},
    )


def _with_seeds(sweep: SweepFile, seeds: tuple[int, ...] | None) -> dict[str, Parameter]:
    if seeds is None:
        return sweep.parameters
    if sweep.method != "grid" and len(seeds) > 1:
        raise ConfigError("--seeds: a search draws every value once; repeat its best cells with a grid instead")
    kind = "values" if len(seeds) > 1 else "constant"
    return {**sweep.parameters, SEED: Parameter(SEED, kind, tuple(seeds))}  # type: ignore[arg-type]


def _resolved(sweep: SweepFile, experiment: str | None) -> list[str]:
    """Return the command with its macros replaced, all but ``${args}``.

    Raises:
        ConfigError: A variable of the environment is not set.
    """
    variables = {**os.environ, **({EXPERIMENT: experiment} if experiment else {})}
    words = []
    for index, word in enumerate(sweep.command):
        for name in ENVIRONMENT.findall(word):
            if not variables.get(name):
                option = "give --experiment FILE" if name == EXPERIMENT else f"set the variable {name}"
                raise ConfigError(f"{sweep.path}: command needs ${{envvar:{name}}}: {option}")
        if word == "${env}":
            continue
        text = ENVIRONMENT.sub(lambda match: str(variables[match.group(1)]), word)
        # The interpreter that runs this: another `python` on PATH may lack the package.
        words.append(
            sys.executable if word == "${interpreter}" or (text in ("python", "python3") and index < 2) else text
        )
    return words


def fit_words(command: list[str] | tuple[str, ...]) -> list[str] | None:
    """Return the words after ``m2h_lightning fit`` of a command, or None where it is another program's."""
    words = list(command)
    if "fit" not in words:
        return None
    at = words.index("fit")
    ours = Path(words[at - 1]).name in ("m2h", "lightning", "m2h_lightning") if at else False
    return words[at + 1 :] if ours else None


def variants(plan: Plan) -> dict[str, list[Cell]]:
    """Return the cells of a grid by what they are apart from their seed, in the plan's order."""
    found: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        if cell.overrides is not None:
            found.setdefault(json.dumps(variant(cell.overrides), sort_keys=True), []).append(cell)
    return found
