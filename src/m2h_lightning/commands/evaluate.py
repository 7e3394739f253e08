"""The work of ``m2h evaluate``: data and scoring by the keys of ``fit``, predictions from files, a run's result."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.commands.closing import print_headlines
from m2h_lightning.commands.evaluate_options import EvaluateOptions
from m2h_lightning.commands.training import StrictParser, TrainingCLI, run_cli
from m2h_lightning.data.base import BaseDataModule
from m2h_lightning.data.raw import INVALID
from m2h_lightning.data.sample import collate, to_contract
from m2h_lightning.data.sources.values import few
from m2h_lightning.data.transforms import EvalTransform
from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.metrics import MetricsConfig
from m2h_lightning.predictions.find import Found, find
from m2h_lightning.predictions.values import Conventions, PredictionReader
from m2h_lightning.runs import folder as runs
from m2h_lightning.tasks import Evaluator, build_tasks

NO_NUMBER: dict[str, float] = {"semseg": 0, "depth": 1.0, "normals": 0.0, "edges": 0.0}
"""What stands in a batch where nothing was predicted; it is never scored."""


class EvaluateCLI(TrainingCLI):
    """Takes the keys of ``fit``, builds the data set alone and scores; no network, no trainer, no run folder."""

    trial = True
    evaluation: EvaluateOptions

    def instantiate_classes(self) -> None:
        """Build data set and scoring; an error of the user's that jsonargparse wraps is raised as it was."""
        parser = StrictParser(parser_mode="omegaconf")
        parser.add_subclass_arguments(self.data_class, "data", required=True)
        parser.add_class_arguments(MetricsConfig, "metrics")
        config = {"data": self.options.data.as_dict(), "metrics": self.options.model.metrics.as_dict()}
        try:
            made = parser.instantiate_classes(parser.parse_object(config))
        except (M2HError, ValueError) as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, M2HError):
                cause = cause.__cause__ or cause.__context__
            raise (cause or error) from None
        self.datamodule: BaseDataModule = made.data
        self.scoring: MetricsConfig = made.metrics

    def after_instantiate_classes(self) -> None:
        """Say which data are used, or that they are not there."""
        self.datamodule.check()

    def _run_subcommand(self, subcommand: str) -> None:
        experiment = runs.slug(str(self.evaluation.name))
        Evaluation(self.evaluation, self.datamodule, self.scoring, experiment).run()


def evaluate(options: EvaluateOptions) -> int:
    """Score the predictions and write the result; return the exit code.

    Raises:
        M2HError: An option, a file or the data set is wrong.
    """
    command = type("EvaluateCLI", (EvaluateCLI,), {"evaluation": options})
    return run_cli(command, Arguments.read("fit", options.words))


def sample_ids(dataset: Any) -> list[str]:
    """Return the ids of a data set's samples in its order; without opening them where it has a list of items."""
    items = getattr(dataset, "items", None)
    if isinstance(items, list):
        return [item.id for item in items]
    return [dataset[index]["id"] for index in range(len(dataset))]


class Evaluation:
    """One evaluation.

    Args:
        options: What was asked for.
        data: The data set.
        config: How to score.
        experiment: Name under which tables list the result.
    """

    def __init__(self, options: EvaluateOptions, data: BaseDataModule, config: MetricsConfig, experiment: str) -> None:
        self.options, self.data, self.config, self.experiment = options, data, config, experiment
        self.facts = data.facts
        self.started = time.monotonic()

    def run(self) -> None:
        """Score, print the table, write the result."""
        options = self.options
        self.data.prepare_data()
        self.data.setup("test")
        self.dataset = self.data.dataset(options.split)
        ids = sample_ids(self.dataset)
        sizes = {"eval_size": self.data.eval_size and list(self.data.eval_size), "eval_labels": self.data.eval_labels}
        self.found = find(options.pred, ids, {**self.facts, **sizes}, options.split, options.tasks, options.pattern)
        self._check_missing(len(ids))
        self.conventions = self._conventions()
        self.reader = PredictionReader(len(self.facts["classes"]), self.conventions)
        self.tasks = build_tasks(list(self.found.tasks), self.facts)
        self._say()
        evaluator = Evaluator(self.tasks, self.config, self.facts, "test", self.config.details != "never")
        for batch in _progress(self.data._eval_loader(options.split)):
            self._score(evaluator, self.data.on_after_batch_transfer(batch, 0))
        scores = evaluator.compute()
        scores.update(self._temporal())
        metrics = {f"{options.split}/{key}": float(value) for key, value in scores.items() if not value.isnan()}
        notes = self._notes(metrics, evaluator.headlines)
        self._write(metrics, evaluator.headlines, notes)
        title = f"{options.name} on '{self.facts['name']}' ({options.split}), {int(scores['images'])} images; heading: "
        title += self.config.protocol.replace("_", " ")
        print_headlines(evaluator.headlines, metrics, options.split, title, options.name)
        for note in notes:
            print(f"note: {note}")
        print(f"result:  {options.out}")

    # ── before ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_missing(self, samples: int) -> None:
        """Refuse missing files, unless they were announced.

        Raises:
            DataError: Files are missing, or were being written when something interrupted that.
        """
        if self.found.unfinished and not self.options.partial:
            raise DataError(
                f"{self.found.root}: m2h predict was interrupted while it wrote here; run it again to its end, or "
                "score what is there with --partial"
            )
        gaps = []
        for name, task in self.found.tasks.items():
            if task.missing:
                hint = f"; {task.hint}" if task.hint else ""
                gaps.append(f"{len(task.missing)} of {samples} predictions of {name} ({few(task.missing)}{hint})")
        if gaps and not self.options.partial:
            raise DataError(f"{self.found.root}: missing are {'; '.join(gaps)}; --partial scores what is there")

    def _conventions(self) -> Conventions:
        """Return what the numbers mean: what was said on the command line, for our own files what they say."""
        if self.found.about is not None and self.options.given:
            options = ", ".join(f"--pred-{key.replace('_', '-')}" for key in self.options.given)
            raise ConfigError(
                f"{self.found.root} holds a predictions.json, which says what the numbers mean: leave out {options}"
            )
        return self.options.conventions

    def _say(self) -> None:
        for name, task in self.found.tasks.items():
            kinds = sorted({path.suffix.lower() for path in task.files.values()})
            rank_zero_info(f"{name}: {len(task.files)} files ({', '.join(kinds)}) in {task.folder}")
        if self.found.about is None and "normals" in self.found.tasks:
            rank_zero_info(f"normals: read as {self.conventions.normal_axes} (camera x right, y down, z forward)")

    # ── scoring ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _score(self, evaluator: Evaluator, batch: dict[str, Any]) -> None:
        """Read the predictions of a batch and score them; what nobody predicted counts as not labelled."""
        present = [i for i, name in enumerate(batch["id"]) if any(name in t.files for t in self.found.tasks.values())]
        if not present:
            return
        if len(present) < len(batch["id"]):
            rows = torch.tensor(present)
            batch = {k: [v[i] for i in present] if k == "id" else v[rows] for k, v in batch.items()}
        predictions = {name: self._predicted(self.reader, name, batch) for name in self.tasks if name in batch}
        for name in predictions:
            absent = [i for i, key in enumerate(batch["id"]) if key not in self.found.tasks[name].files]
            if absent:
                batch[name] = batch[name].clone()
                batch[name][torch.tensor(absent)] = INVALID[name]
        evaluator.update(predictions, batch)

    def _predicted(self, reader: PredictionReader, name: str, batch: dict[str, Any]) -> Tensor:
        """Return the predictions of one task for a batch: classes B×H×W, or B×C×H×W."""
        labels, task = batch[name], self.tasks[name]
        full = torch.full(labels.shape, NO_NUMBER[name], dtype=torch.int64 if name == "semseg" else torch.float32)
        scored = _flat(task.valid_pixels(labels))
        for index, key in enumerate(batch["id"]):
            path = self.found.tasks[name].files.get(key)
            if path is None:
                continue
            h, w = batch["label_size"][index].tolist()
            label = labels[index, ..., :h, :w].numpy()
            label = label.transpose(1, 2, 0) if name == "normals" else label.reshape(h, w)
            array = reader.read(name, path, (h, w), label, scored[index, :h, :w].numpy())
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            full[index, ..., :h, :w] = tensor.permute(2, 0, 1) if name == "normals" else tensor
        return full

    def _temporal(self) -> dict[str, Tensor]:
        """Score stability from frame to frame where the set has poses and frames that follow each other."""
        if self.options.temporal == "off":
            return {}
        from m2h_lightning.data.sources.sequence import consecutive
        from m2h_lightning.metrics.temporal import temporal_scores

        items = getattr(self.dataset, "items", None)
        names = [task for task in ("depth", "semseg") if task in self.tasks]
        why = ""
        if not isinstance(items, list):
            why = "this data set has no list of frames"
        elif self.facts.get("depth_unit", "m") != "m" or "depth" not in self.facts["tasks"]:
            why = "it needs depth labels in metres"
        elif not names:
            why = "it needs predictions of depth or semseg"
        pairs = [] if why else consecutive(items)  # type: ignore[arg-type]
        there = [set(self.found.tasks[name].files) for name in names]
        pairs = [(a, b) for a, b in pairs if all(items[i].id in files for i in (a, b) for files in there)]  # type: ignore[index]
        if not pairs:
            why = why or "no two frames with camera poses follow each other here"
            if self.options.temporal == "on":
                raise ConfigError(f"--temporal on: {why}; leave it out")
            return {}
        reader = PredictionReader(len(self.facts["classes"]), self.conventions)  # counts nothing a second time
        transform = EvalTransform(self.data.eval_size, self.data.eval_labels)  # type: ignore[arg-type]

        def frame(index: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
            batch = to_contract(collate([transform(self.dataset[index], np.random.default_rng(0))]))
            return batch, {name: self._predicted(reader, name, batch) for name in names if name in batch}

        return temporal_scores(frame, pairs)

    def _partial(self) -> bool:
        """Whether this is less than a complete set of one method's predictions."""
        return self.found.unfinished or any(task.missing for task in self.found.tasks.values())

    # ── after ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _notes(self, metrics: dict[str, float], headlines: dict[str, dict[str, Any]]) -> list[str]:
        """Return what a reader of the scores should know."""
        lines = []
        if self.found.unfinished:
            lines.append("partial: m2h predict was interrupted here; the files may be of more than one run")
        made_of = self.found.about and self.found.about["data"].get("test_fingerprint")
        if made_of and made_of != self.data.test_fingerprint:
            lines.append(f"the predictions were made from {made_of}, the labels are of {self.data.test_fingerprint}")
        for name, task in self.found.tasks.items():
            if task.missing:
                lines.append(f"{name}: partial, {len(task.missing)} files missing ({few(task.missing)}); not scored")
            if task.extra:
                lines.append(f"{name}: {len(task.extra)} files belong to no sample of the split ({few(task.extra)})")
            if f"{self.options.split}/{name}/{headlines[name]['pooled']}" not in metrics:
                lines.append(f"{name}: no sample of the split has a label; not scored")
        lines += self.reader.notes()
        mean = metrics.get(f"{self.options.split}/normals/mean_deg", 0.0)
        if mean > 60 and self.found.about is None:
            lines.append(f"normals: {mean:.1f}° off on average: other axes? (--pred-normal-axes)")
        if not any(f"{self.options.split}/{name}/{line['pooled']}" in metrics for name, line in headlines.items()):
            raise DataError(f"not one {self.options.split} sample has a label of {', '.join(self.tasks)}")
        return lines

    def _write(self, metrics: dict[str, float], headlines: dict[str, dict[str, Any]], notes: list[str]) -> None:
        """Write the result, in the form of a run's."""
        partial = self._partial()
        data = {"module": type(self.data).__name__, **self.data.description}
        if partial:  # so that nothing compares it with the whole split
            data["test"] = f"{int(metrics[f'{self.options.split}/images'])} samples with predictions, partial"
        tasks = {
            name: {
                "folder": str(task.folder.relative_to(self.found.root)),
                "files": len(task.files),
                "missing": len(task.missing),
                "extra": len(task.extra),
                "resized": self.reader.resized.get(name, 0),
            }
            for name, task in self.found.tasks.items()
        }
        runs.write_json(
            self.options.out,
            {
                "status": "finished",
                "command": "evaluate",
                "experiment": self.experiment,
                "run": runs.slug(self.found.root.resolve().name),
                "name": self.options.name,
                "metrics": runs.nested_metrics(metrics),
                "tasks": list(self.tasks),
                "evaluation": self.config.describe(self.facts["name"]),
                "headlines": headlines,
                "seed": None,
                "data": data,
                "network": None,
                "predictions": {
                    "folder": str(self.found.root.resolve()),
                    "digest": self.found.digest(),
                    "split": self.options.split,
                    "partial": partial,
                    "tasks": tasks,
                    "conventions": _plain_conventions(self.found, self.conventions),
                    "notes": notes,
                },
                "wall_time_s": round(time.monotonic() - self.started, 2),
                "git": runs.git_state(),
                "versions": runs.versions(),
                "time": runs.timestamp(),
            },
        )


def _plain_conventions(found: Found, conventions: Conventions) -> dict[str, Any]:
    own = vars(conventions) if found.about is None else {"format": found.about["format"]}
    return {key: value for key, value in own.items() if value is not None}


def _flat(valid: Tensor) -> Tensor:
    """Return a mask B×H×W, whatever the task's layout."""
    return valid[:, 0] if valid.ndim == 4 else valid


def _progress(loader: Any) -> Iterator[Any]:
    """Yield the batches; on a terminal with a bar."""
    if not sys.stderr.isatty():
        yield from loader
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(loader, description="scoring", console=Console(stderr=True), transient=True)
