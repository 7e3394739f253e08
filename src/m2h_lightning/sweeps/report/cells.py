"""Reads the cells of a sweep for its report: results from the run folders, reasons from the ledger. Writes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.report.ablation import Done, Variant, flat_scores
from m2h_lightning.report.collect import Run, differences, read_run
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.outcome import metric_of, read_outcome
from m2h_lightning.storages.url import absolute_url, open_storage, shown_url
from m2h_lightning.sweeps.ledger.drawing import no_warnings
from m2h_lightning.sweeps.ledger.study import AGAIN, ATTEMPT, CELL, REASON
from m2h_lightning.sweeps.planning.cells import as_text, short_names
from m2h_lightning.sweeps.planning.parameters import SEED
from m2h_lightning.sweeps.planning.plan import Plan

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


_VAGUE = ("enabled", "name", "weight")
"""Last words of keys that say nothing without the one before."""


@dataclass(frozen=True)
class Missing:
    """A cell that is in no table.

    Args:
        cell: Its id.
        label: Its variant.
        seed: Its seed.
        state: "failed", "pruned", "running", "waiting", "interrupted", "not comparable".
        reason: Why.
    """

    cell: str
    label: str
    seed: str
    state: str
    reason: str = ""


@dataclass
class Ledgered:
    """What the ledger knows.

    Args:
        study: The study; None where there is none.
        last: Last attempt at each cell.
        warning: Why it could not be read.
    """

    study: Study | None = None
    last: dict[str, FrozenTrial] = field(default_factory=dict)
    warning: str | None = None


def read_ledger(plan: Plan) -> Ledgered:
    """Read a sweep's ledger without changing it; one that cannot be reached is no reason not to report."""
    import optuna

    url = absolute_url(plan.storage, plan.folder)
    for kind in ("journal:", "sqlite:///"):  # opening these would make an empty file
        if url.startswith(kind) and not Path(url.removeprefix(kind)).is_file():
            return Ledgered(warning=f"there is no ledger {Path(url).name}: why cells are missing is not known")
    try:
        with no_warnings():
            study = optuna.load_study(study_name=plan.name, storage=open_storage(plan.storage, plan.folder))
            trials = study.get_trials(deepcopy=False)
    except M2HError as error:
        return Ledgered(warning=f"the ledger was not read: {error}")
    except KeyError:
        return Ledgered(warning=f"the ledger {shown_url(plan.storage)} has no study {plan.name}")
    except Exception as error:  # whatever a database's driver raises
        return Ledgered(warning=f"the ledger {shown_url(plan.storage)} was not read: {' '.join(str(error).split())}")
    last: dict[str, FrozenTrial] = {}
    for trial in trials:
        cell = trial.user_attrs.get(CELL)
        if cell is not None and (
            cell not in last or last[cell].user_attrs.get(ATTEMPT, 0) < trial.user_attrs.get(ATTEMPT, 0)
        ):
            last[cell] = trial
    return Ledgered(study, last)


@dataclass
class Cells:
    """All cells of a sweep.

    Args:
        variants: By what they are apart from their seed, in the plan's order; of a search, one per run.
        missing: Cells that are in no table.
        planned: Number of cells.
        conditions: What the finished cells that are shown have in common; None where it is not known.
    """

    variants: list[Variant]
    missing: list[Missing]
    planned: int
    conditions: dict[str, Any] | None = None

    @property
    def done(self) -> list[Done]:
        """All finished cells."""
        return [done for variant in self.variants for done in variant.done.values()]


def read_cells(plan: Plan, ledger: Ledgered) -> Cells:
    """Read every cell of a plan.

    Raises:
        ConfigError: None is finished.
    """
    overrides = {cell.id: cell.overrides or _drawn(plan, cell.id, ledger) for cell in plan.cells}
    keys = {name: _variant_key(plan, name, values) for name, values in overrides.items()}
    labels = label_variants({keys[name]: _flat(values) for name, values in overrides.items()}, plan.name)
    variants: dict[str, Variant] = {}
    missing = []
    for cell in plan.cells:
        values, key = overrides[cell.id], keys[cell.id]
        seed = as_text(values[SEED]) if SEED in values else "–"
        variant = variants.setdefault(key, Variant(labels[key], _flat(values), []))
        variant.planned.append(seed)
        found = _read_cell(plan, cell.id, labels[key], seed, ledger)
        if isinstance(found, Missing):
            missing.append(found)
        else:
            variant.done[found.seed] = found
    cells = Cells(list(variants.values()), missing, len(plan.cells))
    if not cells.done:
        states = sorted({m.state for m in missing})
        counts = ", ".join(f"{sum(m.state == state for m in missing)} {state}" for state in states)
        why = next((f"; {m.cell}: {m.reason}" for m in missing if m.reason), "")
        raise ConfigError(
            f"{plan.folder}: no cell is finished yet ({counts}{why}); run it with m2h sweep run {plan.file}"
        )
    return cells


def _variant_key(plan: Plan, name: str, values: Mapping[str, Any]) -> str:
    if plan.searches:
        return name
    return json.dumps({key: value for key, value in values.items() if key != SEED}, sort_keys=True)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return runs.flatten({key: value for key, value in values.items() if key != SEED})


def _drawn(plan: Plan, cell: str, ledger: Ledgered) -> dict[str, Any]:
    """Return the values that a search drew: from the ledger, else from the command that the run recorded."""
    constants = {p.name: p.values[0] for p in plan.parameters.values() if p.kind == "constant"}
    if cell in ledger.last and ledger.last[cell].params:
        return {**constants, **ledger.last[cell].params}
    path = plan.folder_of(cell) / runs.HISTORY
    if not path.is_file():
        return constants
    try:
        words = json.loads(path.read_text(encoding="utf-8"))["starts"][0]["command"]
        pairs = [word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word]
        return {**constants, **{key: yaml.safe_load(text) for key, text in pairs if key in plan.parameters}}
    except (OSError, ValueError, KeyError, IndexError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: is damaged ({error}); move {path.parent} away and run the cell again") from error


def _read_cell(plan: Plan, cell: str, label: str, seed: str, ledger: Ledgered) -> Done | Missing:
    folder, trial = plan.folder_of(cell), ledger.last.get(cell)
    told = " ".join(str(trial.user_attrs.get(REASON, "")).split()) if trial is not None else ""
    try:
        outcome = read_outcome(folder)
        if outcome.state == "pruned":
            return Missing(cell, label, seed, "pruned", told or str(outcome.result.get("reason", "")))
        if outcome.state == "finished":
            return _done(plan, cell, seed, outcome.result)
    except M2HError as error:
        return Missing(cell, label, seed, "failed", str(error).replace(f"{plan.folder}/", ""))
    failure = folder / runs.FAILURE
    lines = failure.read_text(encoding="utf-8", errors="replace").splitlines() if failure.is_file() else []
    state = trial.state.name if trial is not None else ""
    if state == "RUNNING":
        return Missing(cell, label, seed, "running")
    if state == "PRUNED":
        return Missing(cell, label, seed, "pruned", told)
    if state == "FAIL" and not (trial is not None and trial.user_attrs.get(AGAIN)):
        return Missing(cell, label, seed, "failed", told or (lines[0] if lines else ""))
    if trial is None and lines:
        return Missing(cell, label, seed, "failed", lines[0])
    return Missing(cell, label, seed, "interrupted" if outcome.state == "interrupted" else "waiting")


def _done(plan: Plan, cell: str, seed: str, result: dict[str, Any]) -> Done:
    """Return a finished cell.

    Raises:
        M2HError: It has neither scores of a test nor the sweep's metric.
    """
    scores, run = flat_scores(result), None
    if scores:
        run = read_run(plan.folder_of(cell))
        if not run.headlines and run.conditions is None:
            run = None  # another program's
    else:
        scores = {plan.metric: metric_of(result, plan.metric)}
    return Done(cell, seed, scores, run, result)


def separate(cells: Cells, reference: Run | None) -> None:
    """Take out what was scored differently, or on other data, than the reference; each is told with the difference."""
    cells.conditions = reference.conditions if reference is not None else None
    for variant in cells.variants:
        for seed, done in list(variant.done.items()):
            if done.run is None or reference is None or done.run.conditions == reference.conditions:
                continue
            if done.run.conditions is None or reference.conditions is None:
                reason = "how it was scored is not known"
            else:
                reason = f"this / the others: {'; '.join(differences(done.run.conditions, reference.conditions))}"
            cells.missing.append(Missing(done.cell, variant.label, seed, "not comparable", reason))
            del variant.done[seed]


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def label_variants(variants: Mapping[str, Mapping[str, Any]], otherwise: str) -> dict[str, str]:
    """Return a short name for each variant, made of the values in which they differ.

    Args:
        variants: Values by dotted key, by the variant.
        otherwise: The name where nothing differs; "–" names those whose values are not drawn yet.

    Example:
        >>> values = {"a": {"model.wmca.enabled": True, "lr": 1}, "b": {"model.wmca.enabled": False, "lr": 1}}
        >>> label_variants(values, "x")
        {'a': 'wmca on', 'b': 'wmca off'}
    """
    swept = swept_keys(list(variants.values()))
    names = telling_names(swept)
    found = {}
    for key, values in variants.items():
        parts = [_words(names[name], values[name]) for name in swept if name in values]
        found[key] = ", ".join(parts) or ("–" if swept else otherwise)
    return found


def telling_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest ends of dotted names that tell them apart and say what they are: ``wmca.enabled``."""
    short = short_names(keys)
    return {key: ".".join(key.split(".")[-2:]) if short[key] in _VAGUE else short[key] for key in keys}


def swept_keys(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that have different values in different variants, in their order."""
    keys = list(dict.fromkeys(key for values in variants for key in values))
    return [key for key in keys if len({as_text(values[key]) if key in values else None for values in variants}) > 1]


def _words(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{name.removesuffix('.enabled')} {'on' if value else 'off'}"
    return f"{name} {shown_value(value)}"


def shown_value(value: Any) -> str:
    """Return a value as people write it: four digits of a float, a file by its stem, a list without brackets."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "+".join(shown_value(item) for item in value)
    text = as_text(value)
    return Path(text).stem if text.endswith((".yaml", ".yml")) else text
