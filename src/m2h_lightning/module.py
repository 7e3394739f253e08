"""The LightningModule: a thin layer that joins network, tasks, losses, optimiser and logging."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import SumMetric

from m2h_lightning.data.base import BaseDataModule, check_facts
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.metrics import MetricsConfig, WindowGrid
from m2h_lightning.metrics.protocol import unscored_is_no_fault
from m2h_lightning.network import BackboneConfig, GGFMConfig, M2HNet, WMCAConfig
from m2h_lightning.network.padding import at_label_size
from m2h_lightning.objectives import BalancingConfig, ConsistencyConfig, Moment, Objective, StepLosses
from m2h_lightning.objectives.checkpoint import check_same_method, load_balancing, store_balancing
from m2h_lightning.objectives.losses import LogBalancer
from m2h_lightning.recipe import (
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    Timeline,
    WeightEMA,
    check_ema,
    check_groups,
    read_source,
    take_training_weights,
    training_lines,
    warm_started,
    warn_of_other_meaning,
)
from m2h_lightning.recipe.by_gradient import ByGradient
from m2h_lightning.recipe.by_repeat import ByRepeat
from m2h_lightning.recipe.by_stage import ByStage
from m2h_lightning.tasks import DEFAULT_LOSS_WEIGHTS, Evaluator, LossConfig, Task, build_tasks

Config = TypeVar("Config")

_CONFIGS = ("backbone", "wmca", "ggfm", "losses", "balancing", "consistency", "optimizer", "schedule", "metrics")


def _config(kind: type[Config], value: Config | dict[str, Any]) -> Config:
    """Return ``value`` as the configuration class ``kind``."""
    return value if isinstance(value, kind) else kind(**value)  # type: ignore[arg-type]


class M2HModule(ByGradient, ByRepeat, ByStage):
    """Trains and evaluates an ``M2HNet`` on the tasks of a data set.

    Batches follow ``data/sample.py``; a task whose label a batch lacks adds nothing to its loss. Every hyper-parameter
    is plain data, so a checkpoint loads with ``weights_only=True``.

    Args:
        tasks: Tasks to train; null takes all that the data set has labels for. One task is the single-task baseline.
        preset: Size of the network: "m2h" (the paper's C = 256) or "m2h-small".
        channels: Width C of the fused maps; null takes the preset's.
        head_channels: Width inside the heads; null takes the preset's.
        backbone: Backbone.
        wmca: Windowed cross-task attention.
        ggfm: Global gated feature merging.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        compile: Compile the network with torch.compile, in place: checkpoints stay the same.
        losses: Choices inside the task losses.
        loss_weights: Weight per task; null and missing tasks take the defaults (semseg 1, depth 1, normals 2, edges 5).
        balancing: How the task losses are balanced.
        consistency: Losses between predictions.
        optimizer: Optimiser.
        schedule: Learning-rate schedule.
        stages: Consecutive stages of the run, such as pre-training and fine-tuning; null is one stage.
        ema: Decay of an exponential moving average of the weights, which is what is validated, tested and stored as
            the model; null keeps none.
        init_weights: Run folder or checkpoint whose network's weights training starts from.
        init_partial: Take from ``init_weights`` what fits, and tell what does not, instead of refusing.
        metrics: How predictions are scored.
        facts: Facts of the data set; comes from the data module, or from the checkpoint.
    """

    def __init__(
        self,
        tasks: list[str] | None = None,
        preset: Literal["m2h", "m2h-small"] = "m2h",
        channels: int | None = None,
        head_channels: int | None = None,
        backbone: BackboneConfig = BackboneConfig(),  # noqa: B008 - jsonargparse reads nested keys from the default
        wmca: WMCAConfig = WMCAConfig(),  # noqa: B008
        ggfm: GGFMConfig = GGFMConfig(),  # noqa: B008
        gradient_checkpointing: bool = False,
        compile: bool = False,
        losses: LossConfig = LossConfig(),  # noqa: B008
        loss_weights: dict[str, float] | None = None,
        balancing: BalancingConfig = BalancingConfig(),  # noqa: B008
        consistency: ConsistencyConfig = ConsistencyConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        stages: list[StageConfig] | None = None,
        ema: float | None = None,
        init_weights: str | None = None,
        init_partial: bool = False,
        metrics: MetricsConfig = MetricsConfig(),  # noqa: B008
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if facts is None:
            raise ConfigError("model.facts is missing: give a data set (--data) or a checkpoint that carries its facts")
        # A checkpoint's hyper-parameters are plain dictionaries: load_from_checkpoint hands them in as they are.
        backbone, wmca, ggfm = _config(BackboneConfig, backbone), _config(WMCAConfig, wmca), _config(GGFMConfig, ggfm)
        losses, metrics = _config(LossConfig, losses), _config(MetricsConfig, metrics)
        balancing, consistency = _config(BalancingConfig, balancing), _config(ConsistencyConfig, consistency)
        optimizer, schedule = _config(OptimizerConfig, optimizer), _config(ScheduleConfig, schedule)
        stages = [_config(StageConfig, stage) for stage in stages] if stages else None
        check_ema(ema)
        if init_partial and init_weights is None:
            raise ConfigError("model.init_partial says how model.init_weights is read; give a run or leave it out")
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        plain = {k: asdict(v) if k in _CONFIGS else v for k, v in arguments.items()}
        plain["stages"] = [asdict(stage) for stage in stages] if stages else None
        # A checkpoint has its weights: where they once started must not be looked for again.
        plain |= {"init_weights": None, "init_partial": False}
        self.save_hyperparameters(plain, logger=False)
        self.facts = facts
        self.compile_network = compile
        self.optimizer_config = optimizer
        self.metrics_config = metrics
        self.timeline = Timeline(stages, schedule, optimizer.lr, backbone.freeze, backbone.unfreeze)

        self.tasks = build_tasks(tasks, facts, losses)
        self.objective = Objective(self.tasks, self._weights(loss_weights), balancing, consistency)
        self._step: StepLosses | None = None  # of the running step, from the forward to the backward pass
        self.ema = ema

        def make_net(backbone: BackboneConfig) -> M2HNet:
            return M2HNet(
                {name: task.channels for name, task in self.tasks.items()},
                preset=preset,
                channels=channels,
                head_channels=head_channels,
                backbone=backbone,
                wmca=wmca,
                ggfm=ggfm,
                gradient_checkpointing=gradient_checkpointing,
            )

        self.init_weights: str | None = None  # what was taken of which checkpoint, in words
        if init_weights is None:
            self.net = make_net(backbone)
        else:
            source = read_source(init_weights)
            warn_of_other_meaning(source, facts, self.tasks)
            self.net, self.init_weights = warm_started(make_net, backbone, source, init_partial)
        for key, freeze in self.timeline.freezes.items():
            self.net.backbone.trainable_names(freeze, key)  # refuses more blocks than there are
        self.net.set_freeze(self.timeline.freeze_at(0))
        self.backbone_weights = self.net.backbone.source
        self.evaluators = nn.ModuleDict()
        self._make_evaluators(details=False)
        # Two sums instead of a MeanMetric: a NaN must show, and with nan_strategy "disable" a mean forgets its weights.
        self.losses = self._per_stage(lambda stage, task: SumMetric(nan_strategy="disable").set_dtype(torch.float64))
        self.valid = self._per_stage(lambda stage, task: SumMetric(nan_strategy="disable").set_dtype(torch.float64))

    def _make_evaluators(self, details: bool) -> None:
        """Make the metrics of both stages.

        Args:
            details: Whether validation is what the run is for, and not a look at training: then it has what a test has.
        """
        always = self.metrics_config.details == "always"
        wanted = {
            "val": always or (details and self.metrics_config.details == "test"),
            "test": self.metrics_config.details != "never",
        }
        for stage, with_details in wanted.items():
            self.evaluators[stage] = Evaluator(self.tasks, self.metrics_config, self.facts, stage, with_details)

    def evaluator(self, stage: str) -> Evaluator:
        """Return the metrics of "val" or "test"."""
        found = self.evaluators[stage]
        assert isinstance(found, Evaluator)
        return found

    def _weights(self, given: dict[str, float] | None) -> dict[str, float]:
        given = given or {}
        for name, weight in given.items():
            if name not in DEFAULT_LOSS_WEIGHTS:
                raise ConfigError(
                    f"model.loss_weights: unknown task '{name}'{did_you_mean(name, DEFAULT_LOSS_WEIGHTS)}"
                )
            if name not in self.tasks:
                raise ConfigError(
                    f"model.loss_weights.{name}: '{name}' is not trained (model.tasks: {', '.join(self.tasks)}); "
                    "leave the weight out"
                )
            if not 0 <= weight < math.inf:
                raise ConfigError(f"model.loss_weights.{name} is {weight}; it must be a number of at least 0")
        return {name: float(given.get(name, DEFAULT_LOSS_WEIGHTS[name])) for name in self.tasks}

    def _per_stage(self, make: Callable[[str, Task], nn.Module]) -> nn.ModuleDict:
        """Return ``make(stage, task)`` by stage and task; dots cannot occur in module names, hence the nesting."""
        return nn.ModuleDict(
            {
                stage: nn.ModuleDict({name: make(stage, task) for name, task in self.tasks.items()})
                for stage in ("val", "test")
            }
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the weights came from: who tests this checkpoint loads none, and has to know."""
        checkpoint["backbone_weights"] = self.backbone_weights
        checkpoint["init_weights"] = self.init_weights
        for callback in self.trainer.callbacks if self._trainer is not None else ():  # type: ignore[attr-defined]
            if isinstance(callback, WeightEMA):
                callback.store_average(checkpoint)
        store_balancing(self.objective, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what :meth:`on_save_checkpoint` stored.

        Raises:
            CheckpointError: Training was to go on from a checkpoint of another balancing method, or of other trained
                parameters.
        """
        training = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if training:
            self.check_goes_on(checkpoint)
        load_balancing(self.objective, checkpoint, training)
        self.backbone_weights = checkpoint.get("backbone_weights", "not recorded in the checkpoint")
        self.init_weights = checkpoint.get("init_weights")
        if training and self.ema is None:
            take_training_weights(checkpoint)

    def check_goes_on(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to train on from a checkpoint whose state this module has no use for.

        Raises:
            CheckpointError: It is of another balancing method, or of other trained parameters.
        """
        check_same_method(self.objective, checkpoint)
        for states in checkpoint.get("optimizer_states", []):
            check_groups(states["param_groups"], self.parameter_groups())

    def configure_callbacks(self) -> list[Callback]:
        """Return what keeps the average of the weights, when training and where there is to be one."""
        training = self.trainer.state.fn == TrainerFn.FITTING
        return [WeightEMA(self.ema)] if training and self.ema is not None else []

    def setup(self, stage: str) -> None:
        """Say what the backbone is made of, check the data's facts, compile if asked."""
        if stage == "validate":
            self._make_evaluators(details=True)
        if stage == "fit":
            self.prepare_stages()
            self.prepare_by_gradient()
            self.prepare_by_repeat()
        total = sum(p.numel() for p in self.net.parameters()) / 1e6
        trainable = sum(p.numel() for p in self.net.parameters() if p.requires_grad) / 1e6
        rank_zero_info(f"{total:.2f} M parameters, {trainable:.2f} M trainable; {self.net.backbone_report()}")
        if stage == "fit":
            for line in training_lines(self.net, self.timeline, self.optimizer_config.lr, self.ema):
                rank_zero_info(line)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, BaseDataModule):
            check_facts(self.facts, data.facts)
        if self.compile_network:
            # In place: torch.compile(net) would prefix every key of the checkpoint with _orig_mod.
            self.net.compile()

    def on_fit_start(self) -> None:
        """Say how the losses are balanced, and what that costs."""
        balancing, batches = self.objective.balancing, self.trainer.accumulate_grad_batches
        words = f"balancing {balancing.name} over {', '.join(self.objective.balanced)}: {self.objective.balancer.cost}"
        if balancing.sampling:
            words += "; tasks are drawn: " + ", ".join(f"{k} {v:g}" for k, v in balancing.sampling.items())
        if batches > 1 and isinstance(self.objective.balancer, LogBalancer):
            words += f"; each of the {batches} accumulated batches is weighed by its own losses"
        rank_zero_info(words)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return activated predictions.

        Args:
            image: B×3×H×W, ImageNet-normalised.

        Returns:
            Per task B×channels×H×W: semseg logits, depth in metres, unit normals, edge probability.
        """
        return {name: self.tasks[name].activate(raw) for name, raw in self.net(image).items()}

    def _moment(self) -> Moment:
        """Return when the running training step happens."""
        batches = max(1, int(self.trainer.num_training_batches)) if self._trainer is not None else 1
        done = self.trainer.fit_loop.batch_idx / batches if self._trainer is not None else 0.0
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        return Moment(self.current_epoch, self.global_step, seed, self.current_epoch + done)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the total loss of a batch.

        Raises:
            DataError: When a loss is NaN or infinite, naming tasks and samples; nothing is updated by that batch.
        """
        moment = self._moment()
        strengths = self._strengths(moment)
        step = self.objective(self.net(batch["image"]), batch, moment, strengths)
        # The means are those of all processes, so that all of them stop: one alone would leave the others waiting.
        if not torch.isfinite(torch.stack([step.total.detach(), *step.means.values()])).all():
            raise self._not_finite(step.means, batch, f"batch {batch_idx}")
        self._log_step(step, len(batch["id"]))
        self._step = step
        self.keep_for_second_look(batch, strengths)
        return step.total

    def _not_finite(self, means: Mapping[str, Tensor], batch: dict[str, Any], when: str) -> DataError:
        bad = [name for name, mean in means.items() if not torch.isfinite(mean)] or ["the weighted sum"]
        return DataError(
            f"the training loss is not finite at step {self.global_step} (epoch {self.current_epoch}, {when}): "
            f"{', '.join(bad)}; samples {', '.join(batch['id'])}; lower model.optimizer.lr, clip gradients "
            "(trainer.gradient_clip_val), or check these samples"
        )

    def _strengths(self, moment: Moment) -> dict[str, float]:
        """Return the share with which each consistency loss acts now."""
        found = {}
        for term in self.objective.consistency_weights:
            config = getattr(self.objective.consistency, term.removeprefix("consistency/"))
            found[term] = self.timeline.strength(moment.epochs, config.start_epoch, config.ramp)
        return found

    def _log_step(self, step: StepLosses, samples: int) -> None:
        """Log every loss that took part in the step as it is, and its weight; both are means over the processes."""
        for name, mean in step.means.items():
            if step.present[name]:
                self.log(f"train/{name}/loss", mean, batch_size=samples)
        for name in self._weights_to_log(step):
            if step.present[name]:
                self.log(f"train/{name}/weight", step.weights[name], batch_size=samples)
        self.log("train/loss", step.total.detach(), prog_bar=True, batch_size=samples)

    @property
    def step_losses(self) -> StepLosses:
        """The losses of the running training step with their graph, from the forward to the end of the backward pass.

        Raises:
            RuntimeError: No step is running.
        """
        if self._step is None:
            raise RuntimeError("there are losses only between a training step and the end of its backward pass")
        return self._step

    def on_after_backward(self) -> None:
        """Let go of the graph of the step."""
        self._step = None

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Update losses and metrics of ``stage`` with a batch; return the predictions at the labels' size."""
        raw = at_label_size(self.net(batch["image"]), batch["image_size"], batch["label_size"])
        predictions = {name: task.activate(raw[name]).float() for name, task in self.tasks.items()}
        for name, task in self.tasks.items():
            if name not in batch:
                continue
            valid = task.valid_pixels(batch[name]).sum()
            self.valid[stage][name].update(valid)  # type: ignore[index]
            self.losses[stage][name].update(task.loss(raw[name], batch[name]).double() * valid)  # type: ignore[index]
        self.evaluator(stage).update(predictions, batch, self._window_grid(batch))
        return predictions

    def _window_grid(self, batch: dict[str, Any]) -> WindowGrid | None:
        """Return where attention windows meet, in pixels of the labels; None where their images differ in scale."""
        ratios = (batch["label_size"] / batch["image_size"]).unique(dim=0)
        height, width = batch["image"].shape[-2:]
        grid = self.net.window_grid(height, width)
        return grid.scaled(*ratios[0].tolist()) if grid is not None and len(ratios) == 1 else None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Update the validation metrics; return the predictions for callbacks."""
        return self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Update the test metrics; return the predictions for callbacks."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the activated predictions of a batch at the labels' size."""
        raw = at_label_size(self.net(batch["image"]), batch["image_size"], batch["label_size"])
        return {name: task.activate(raw[name]) for name, task in self.tasks.items()}

    def _log_epoch(self, stage: str) -> None:
        losses = {}
        # Every process computes all of them: compute() is where processes add up their states.
        scores = self.evaluator(stage).compute()
        for name in self.tasks:
            with unscored_is_no_fault():
                valid, loss = self.valid[stage][name].compute(), self.losses[stage][name].compute()  # type: ignore[index]
            if valid > 0:
                losses[name] = loss / valid
            self.valid[stage][name].reset()  # type: ignore[index]
            self.losses[stage][name].reset()  # type: ignore[index]
        self.evaluator(stage).reset()
        if not losses:
            raise DataError(f"not one {stage} sample has a label of the trained tasks: {', '.join(self.tasks)}")
        # What was not scored at all (a class that never occurs, a task without label) is left out, not logged as NaN.
        self.log_dict({f"{stage}/{key}": value for key, value in scores.items() if not value.isnan()})
        self.log_dict({f"{stage}/{name}/loss": loss for name, loss in losses.items()})
        # With the static weights, whatever balances the training: what a checkpoint is chosen by must not move.
        total = torch.stack([self.objective.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        self.log(f"{stage}/loss", total, prog_bar=stage == "val")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics over all processes."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics over all processes."""
        self._log_epoch("test")
