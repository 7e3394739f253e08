"""The report of a search: its best runs, its course, and which parameters mattered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2h_lightning.report.ablation import Done, Variant
from m2h_lightning.report.ablation_text import grid
from m2h_lightning.report.render import markdown_text
from m2h_lightning.runs.outcome import metric_of
from m2h_lightning.sweeps.ledger.drawing import no_warnings
from m2h_lightning.sweeps.planning.cells import as_text
from m2h_lightning.sweeps.planning.plan import Plan
from m2h_lightning.sweeps.report.cells import Cells, Ledgered, shown_value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

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
    """Return the table of the best runs with their values; a group of keys has a column for each."""
    swept = [parameter.name for parameter in plan.parameters.values() if parameter.swept]
    drawn = list(dict.fromkeys(key for trial in trials for key in trial.variant.values))
    keys = [key for name in swept for key in drawn if key == name or key.startswith(f"{name}.")]
    keys = list(dict.fromkeys(keys))
    head = ["run", *(markdown_text(key) for key in keys), markdown_text(plan.metric)]
    rows = []
    for trial in trials[:BEST]:
        values = [trial.variant.values.get(key) for key in keys]
        texts = ["–" if value is None else markdown_text(shown_value(value)) for value in values]
        rows.append([markdown_text(trial.done.cell), *texts, f"{trial.value:.5g}".replace("-", "−")])
    return grid(head, rows)


def given_up(plan: Plan, ledger: Ledgered) -> list[tuple[int, float]]:
    """Return number and last score of the runs that were given up."""
    order = {cell.id: number for number, cell in enumerate(plan.cells)}
    pruned = [(cell, trial) for cell, trial in ledger.last.items() if trial.state.name == "PRUNED" and cell in order]
    return [(order[cell], trial.value) for cell, trial in pruned if trial.value is not None]


def importance(plan: Plan, ledger: Ledgered) -> tuple[dict[str, float], str]:
    """Return how much of the spread of the scores each parameter explains, or a sentence why that is not known.

    Args:
        plan: The sweep.
        ledger: Its ledger; of a run that was done twice its last attempt counts.

    Returns:
        Shares that add up to 1, by parameter (PED-ANOVA); or an empty dictionary and the sentence.
    """
    if ledger.study is None:
        return {}, "Importances of the parameters need the ledger, which was not read."
    done = [trial for trial in ledger.last.values() if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in done}) < 2:
        return {}, "Importances of the parameters need at least two finished runs with different scores."
    with no_warnings():
        return _importance(done, plan.higher_is_better)


def _importance(done: list[FrozenTrial], higher_is_better: bool) -> tuple[dict[str, float], str]:
    import optuna

    study = optuna.create_study(
        storage=optuna.storages.InMemoryStorage(), direction="maximize" if higher_is_better else "minimize"
    )
    for trial in done:
        choices = {name: _with_words(space) for name, space in trial.distributions.items()}
        values = {
            name: as_text(v) if choices[name] is not trial.distributions[name] else v
            for name, v in trial.params.items()
        }
        study.add_trial(optuna.trial.create_trial(params=values, distributions=choices, value=trial.value))
    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    except (ValueError, RuntimeError) as error:
        return {}, f"Importances of the parameters could not be computed: {' '.join(str(error).split())}"
    if not found:
        return {}, "Importances of the parameters are not known: no parameter is in all finished runs."
    return dict(found), ""


def _with_words(space: BaseDistribution) -> BaseDistribution:
    """Return choices as text where they are groups or lists, which Optuna's evaluators cannot sort into sets."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(space, CategoricalDistribution) and any(isinstance(v, dict | list) for v in space.choices):
        return CategoricalDistribution([as_text(choice) for choice in space.choices])
    return space
