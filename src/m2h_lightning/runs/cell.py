"""What a training run and the sweep that started it agree on: variables of the environment, and an exit code."""

from __future__ import annotations

STOPPED = 75
"""Exit code of a training run that was told to stop and can be continued (EX_TEMPFAIL: try again later)."""

STORAGE, STUDY, TRIAL, METRIC, PRUNER = "M2H_STORAGE", "M2H_STUDY", "M2H_TRIAL", "M2H_METRIC", "M2H_PRUNER"
"""Variables of a cell that reports to the ledger while it trains: a run of a search, or one that may be given up.

``M2H_PRUNER`` is W&B's ``early_terminate`` as JSON; it is absent where no run is given up.
"""
