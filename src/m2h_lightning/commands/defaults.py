"""The callbacks of a run that its configuration does not name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BasePredictionWriter, Checkpoint, ModelCheckpoint

from m2h_lightning.callbacks import PicturePanels, PredictionFiles, ReportToStudy, SavePredictions, StopAtSignal
from m2h_lightning.predictions.formats import SaveFormat
from m2h_lightning.runs import folder as runs


def default_checkpoint(folder: Path) -> ModelCheckpoint:
    """Return the checkpoint callback of runs that configure none: every epoch, the newest kept."""
    return ModelCheckpoint(
        dirpath=folder / runs.CHECKPOINTS,
        filename="epoch{epoch:03d}",
        auto_insert_metric_name=False,
        save_last="link",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def default_callbacks(
    verb: str,
    folder: Path,
    run: runs.RunConfig,
    configured: Sequence[Callback],
    checkpoints: bool,
    save: str | None = None,
    save_format: SaveFormat = "files",
) -> list[Callback]:
    """Return what is added to the configured callbacks; one of the same kind there takes the default's place.

    Args:
        verb: The command.
        folder: The run folder.
        run: Settings of the run.
        configured: Callbacks of the configuration.
        checkpoints: Whether checkpoints are wanted.
        save: Folder for predictions, instead of the run folder.
        save_format: Format of the predictions there.
    """

    def has(kind: type) -> bool:
        return any(isinstance(callback, kind) for callback in configured)

    added: list[Callback] = []
    if checkpoints and not has(Checkpoint):
        added.append(default_checkpoint(folder))
    if verb == "predict":
        if save is not None:
            added.append(SavePredictions(save, save_format))
        elif not has(BasePredictionWriter):
            added.append(PredictionFiles())
    elif run.pictures and not has(PicturePanels):
        added.append(PicturePanels(run.pictures))
    if verb == "fit":
        added.append(StopAtSignal(run.test, checkpoints))
        added += [callback] if (callback := ReportToStudy.from_environment()) is not None else []
    return added
