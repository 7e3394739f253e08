"""Callbacks of a run."""

from m2h_lightning.callbacks.pictures import PicturePanels
from m2h_lightning.callbacks.predictions import PredictionFiles
from m2h_lightning.callbacks.trivial import TrivialBaseline

__all__ = ["PicturePanels", "PredictionFiles", "TrivialBaseline"]
