"""Moved to :mod:`m2h_lightning.runs.outcome`."""

from m2h_lightning.runs.outcome import Outcome, metric_of, read_outcome

__all__ = ["Outcome", "metric_of", "read_outcome"]
