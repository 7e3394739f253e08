"""The LightningModule: a thin layer that joins network, tasks, losses, optimiser and logging."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import SumMetric

from m2h_lightning.data.base import BaseDataModule, check_facts
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.metrics import MetricsConfig, WindowGrid
from m2h_lightning.metrics.protocol import unscored_is_no_fault
from m2h_lightning.network import BackboneConfig, GGFMConfig, M2HNet, WMCAConfig
from m2h_lightning.network.padding import at_label_size
from m2h_lightning.tasks import DEFAULT_LOSS_WEIGHTS, Evaluator, LossConfig, Task, build_tasks, masked_mean

Config = TypeVar("Config")

_CONFIGS = ("backbone", "wmca", "ggfm", "losses", "optimizer", "schedule", "metrics")


@dataclass
class OptimizerConfig:
    """Optimiser.

    Args:
        name: AdamW (decoupled weight decay) or Adam (weight decay added to the gradient).
        lr: Learning rate; trainable backbone parameters have it times ``model.backbone.lr_factor``.
        weight_decay: Weight decay; norms, biases, position biases and embeddings have none.
        betas: Decay rates of the running averages.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-4
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"model.optimizer.lr is {self.lr}; it must be above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"model.optimizer.weight_decay is {self.weight_decay}; it must not be negative")


@dataclass
class ScheduleConfig:
    """Learning-rate schedule, per optimiser step: linear warm-up, then the named decay.

    Args:
        name: "poly" (1 − t)^power, "cosine", or "constant".
        warmup: Share of all steps over which the rate rises linearly from 0.
        power: Exponent of "poly"; 0.9 in the InvPT protocol.
        final_factor: The rate at the end, as a share of the peak.
    """

    name: Literal["poly", "cosine", "constant"] = "poly"
    warmup: float = 0.02
    power: float = 0.9
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"model.schedule.warmup is {self.warmup}; give the share of steps, 0 to below 1")
        if not 0 <= self.final_factor <= 1:
            raise ConfigError(f"model.schedule.final_factor is {self.final_factor}; give a number between 0 and 1")

    def factor(self, step: int, total: int) -> float:
        """Return the factor on the peak learning rate at ``step`` of ``total``."""
        warmup = round(self.warmup * total)
        if step < warmup:
            return (step + 1) / warmup
        t = min(1.0, (step - warmup) / max(1, total - warmup))
        decay = {"poly": (1 - t) ** self.power, "cosine": 0.5 * (1 + math.cos(math.pi * t)), "constant": 1.0}[self.name]
        return self.final_factor + (1 - self.final_factor) * decay


def _config(kind: type[Config], value: Config | dict[str, Any]) -> Config:
    """Return ``value`` as the configuration class ``kind``."""
    return value if isinstance(value, kind) else kind(**value)  # type: ignore[arg-type]


class M2HModule(L.LightningModule):
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
        optimizer: Optimiser.
        schedule: Learning-rate schedule.
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
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        metrics: MetricsConfig = MetricsConfig(),  # noqa: B008
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if facts is None:
            raise ConfigError("model.facts is missing: give a data set (--data) or a checkpoint that carries its facts")
        # A checkpoint's hyper-parameters are plain dictionaries: load_from_checkpoint hands them in as they are.
        backbone, wmca, ggfm = _config(BackboneConfig, backbone), _config(WMCAConfig, wmca), _config(GGFMConfig, ggfm)
        losses, metrics = _config(LossConfig, losses), _config(MetricsConfig, metrics)
        optimizer, schedule = _config(OptimizerConfig, optimizer), _config(ScheduleConfig, schedule)
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.save_hyperparameters({k: asdict(v) if k in _CONFIGS else v for k, v in arguments.items()}, logger=False)
        self.facts = facts
        self.compile_network = compile
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.metrics_config = metrics

        self.tasks = build_tasks(tasks, facts, losses)
        self.loss_weights = self._weights(loss_weights)
        self.net = M2HNet(
            {name: task.channels for name, task in self.tasks.items()},
            preset=preset,
            channels=channels,
            head_channels=head_channels,
            backbone=backbone,
            wmca=wmca,
            ggfm=ggfm,
            gradient_checkpointing=gradient_checkpointing,
        )
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
        """Keep where the backbone's weights came from: who tests this checkpoint loads none, and has to know."""
        checkpoint["backbone_weights"] = self.backbone_weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what :meth:`on_save_checkpoint` stored."""
        self.backbone_weights = checkpoint.get("backbone_weights", "not recorded in the checkpoint")

    def setup(self, stage: str) -> None:
        """Say what the backbone is made of, check the data's facts, compile if asked."""
        if stage == "validate":
            self._make_evaluators(details=True)
        total = sum(p.numel() for p in self.net.parameters()) / 1e6
        trainable = sum(p.numel() for p in self.net.parameters() if p.requires_grad) / 1e6
        rank_zero_info(f"{total:.2f} M parameters, {trainable:.2f} M trainable; {self.net.backbone_report()}")
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, BaseDataModule):
            check_facts(self.facts, data.facts)
        if self.compile_network:
            # In place: torch.compile(net) would prefix every key of the checkpoint with _orig_mod.
            self.net.compile()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return activated predictions.

        Args:
            image: B×3×H×W, ImageNet-normalised.

        Returns:
            Per task B×channels×H×W: semseg logits, depth in metres, unit normals, edge probability.
        """
        return {name: self.tasks[name].activate(raw) for name, raw in self.net(image).items()}

    def _task_losses(self, raw: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = {}
        for name, task in self.tasks.items():
            if name in batch:
                losses[name] = task.loss(raw[name], batch[name])
            else:
                # No label in the whole batch: zero, but with a graph, so that every process of a distributed run
                # has gradients for the same parameters.
                losses[name] = masked_mean(raw[name].float(), torch.zeros_like(raw[name], dtype=torch.bool))
        return losses

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the weighted sum of the task losses.

        Raises:
            DataError: When a loss is NaN or infinite, naming tasks and samples; nothing is updated by that batch.
        """
        losses = self._task_losses(self.net(batch["image"]), batch)
        total = self._total(losses)
        if not torch.isfinite(total):
            bad = [name for name, loss in losses.items() if not torch.isfinite(loss)] or ["the weighted sum"]
            raise DataError(
                f"the training loss is not finite at step {self.global_step} (epoch {self.current_epoch}, batch "
                f"{batch_idx}): {', '.join(bad)}; samples {', '.join(batch['id'])}; lower model.optimizer.lr, clip "
                "gradients (trainer.gradient_clip_val), or check these samples"
            )
        for name, loss in losses.items():
            if name in batch:
                self.log(f"train/{name}/loss", loss.detach(), batch_size=len(batch["id"]))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch["id"]))
        return total

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
        self.log(f"{stage}/loss", self._total(losses), prog_bar=stage == "val")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics over all processes."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics over all processes."""
        self._log_epoch("test")

    def configure_optimizers(self) -> Any:
        """Return the optimiser with its parameter groups and the schedule."""
        config = self.optimizer_config
        groups = [
            {
                "params": group["params"],
                "name": group["name"],
                "lr": config.lr * group["lr_factor"],
                "weight_decay": config.weight_decay if group["decay"] else 0.0,
            }
            for group in self.net.parameter_groups()
        ]
        make = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        optimizer = make(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]))
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule_config.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
