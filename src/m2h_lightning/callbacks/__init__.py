"""Callbacks of a run."""

from m2h_lightning.callbacks.conflicts import GradientConflicts
from m2h_lightning.callbacks.pictures import PicturePanels
from m2h_lightning.callbacks.predictions import PredictionFiles, SavePredictions
from m2h_lightning.callbacks.stop import StopAtSignal
from m2h_lightning.callbacks.sweep import ReportToStudy
from m2h_lightning.callbacks.trivial import TrivialBaseline

__all__ = [
    "GradientConflicts",
    "PicturePanels",
    "PredictionFiles",
    "ReportToStudy",
    "SavePredictions",
    "StopAtSignal",
    "TrivialBaseline",
]
