"""The report of a search: its best runs, its course, and which parameters mattered."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2h_lightning.report.ablation import Done, Variant
from m2h_lightning.report.ablation_text import grid
from m2h_lightning.report.render import markdown_text
from m2h_lightning.runs.outcome import metric_of
from m2h_lightning.sweeps.plan import Plan
from m2h_lightning.sweeps.report_cells import Cells, Ledgered, shown_value

if TYPE_CHECKING:
    from optuna import Study

BEST = 10


@dataclass(frozen=True)
class Trial:
    """A finished run of a search: its number, its values and its score."""

    number: int
    variant: Variant
    done: Done
    value: float


def trials_of(plan: Plan, cells: Cells) -> list[Trial]:
    """Return the finished runs of a search, the best one first.

    Raises:
        ConfigError: A run lacks the metric that was searched for.
    """
    order = {cell.id: number for number, cell in enumerate(plan.cells)}
    found = [
        Trial(order[done.cell], variant, done, metric_of(dict(done.result), plan.metric))
        for variant in cells.variants
        for done in variant.done.values()
    ]
    return sorted(found, key=lambda trial: (-trial.value if plan.higher_is_better else trial.value, trial.number))


def trial_table(plan: Plan, trials: list[Trial]) -> list[str]:
    """Return the table of the best runs with their values."""
    swept = [parameter.name for parameter in plan.parameters.values() if parameter.swept]
    head = ["run", *(markdown_text(name) for name in swept), markdown_text(plan.metric)]
    rows = []
    for trial in trials[:BEST]:
        values = [trial.variant.values.get(name) for name in swept]
        texts = ["–" if value is None else markdown_text(shown_value(value)) for value in values]
        rows.append([markdown_text(trial.done.cell), *texts, f"{trial.value:.5g}"])
    return grid(head, rows)


def importance(ledger: Ledgered) -> tuple[dict[str, float], str]:
    """Return how much of the spread of the scores each parameter explains, or a sentence why that is not known."""
    study = ledger.study
    if study is None:
        return {}, "Importances of the parameters need the ledger, which was not read."
    values = {trial.value for trial in study.trials if trial.state.name == "COMPLETE"}
    if len(values) < 2:
        return {}, "Importances of the parameters need at least two finished runs with different scores."
    return _importance(study)


def _importance(study: Study) -> tuple[dict[str, float], str]:
    import optuna

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError) as error:
        return {}, f"Importances of the parameters could not be computed: {' '.join(str(error).split())}"
    if not found:
        return {}, "Importances of the parameters are not known: no parameter is in all finished runs."
    return dict(found), ""
