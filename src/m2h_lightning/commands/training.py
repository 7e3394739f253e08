"""``fit | validate | test | predict``: LightningCLI made strict, with a run folder and a policy for checkpoints."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, Optional

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from omegaconf.errors import OmegaConfBaseException

from m2h_lightning.callbacks import ReportToStudy
from m2h_lightning.callbacks.run_folder import RunFolder
from m2h_lightning.callbacks.stop import Stopped, listening, stopped_text
from m2h_lightning.commands.arguments import Arguments, check_checkpoint_path
from m2h_lightning.commands.checkpoint_policy import merge_hyper_parameters
from m2h_lightning.commands.closing import print_closing
from m2h_lightning.commands.defaults import default_callbacks
from m2h_lightning.commands.explain import data_keys, explain, group_value, init_parameters, subclasses
from m2h_lightning.commands.fitting import check_fit, check_going_on, write_failure
from m2h_lightning.commands.length import settle_length
from m2h_lightning.commands.narrowing import narrow
from m2h_lightning.data.base import BaseDataModule, check_facts
from m2h_lightning.data.memory import keep_freed_memory
from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.predictions.formats import SaveFormat
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.cell import STOPPED
from m2h_lightning.runs.checkpoint_io import AtomicCheckpointIO, newest_checkpoint, read_checkpoint
from m2h_lightning.runs.loggers import close_loggers, make_loggers

TRAINER_DEFAULTS = {"max_epochs": 50, "log_every_n_steps": 10, "enable_model_summary": False}
DATA_MODULES = tuple(f"m2h_lightning.data.{name}" for name in ("rooms", "nyud", "hypersim", "cityscapes", "folder"))
"""Modules whose data sets can be named in short (``--data Rooms``)."""


SAVE_HELP = "Folder for the predictions: a folder per task, as 'm2h evaluate' and others read them; null: run folder."
SAVE_FORMAT_HELP = "What --save writes: this package's own files, or those that the field's MATLAB tools take."


class AlreadyFinished(Exception):
    """The run to resume has done all it was asked to do."""


def main_training(arguments: Arguments) -> int:
    """Run one training command; return the exit code.

    Raises:
        M2HError: The user's input is wrong.
    """
    return run_cli(TrainingCLI, arguments)


def classes() -> tuple[type[LightningModule], type[LightningDataModule]]:
    """Return the model's class and the base class of the data sets, having imported all data sets."""
    for module in DATA_MODULES:
        import_module(module)
    from m2h_lightning.data.base import BaseDataModule
    from m2h_lightning.module import M2HModule

    return M2HModule, BaseDataModule


def run_cli(command: type[TrainingCLI], arguments: Arguments) -> int:
    """Run a command line to its end; return the exit code.

    Raises:
        M2HError: The user's input is wrong, whoever noticed it.
    """
    _quieten()
    keep_freed_memory()  # scoring on a CPU makes and frees the same maps for every image: a third of its time
    try:
        command(arguments, *classes())
    except AlreadyFinished as finished:
        print(finished)
    except Stopped as stopped:
        if runs.global_rank() > 0:
            return 0  # a process that fails makes Lightning kill the others, which may still be closing their files
        print(f"m2h: {stopped}", file=sys.stderr)
        return STOPPED
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        first = str(error.__cause__ or error).strip("'\"").splitlines()[0]
        raise ConfigError(f"{key}{arguments.place(key)} cannot be resolved: {first}") from error
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        place = f"{error.filename or error.filename2 or 'a file of the run'}"
        mend = "free space or choose another --run.root; a run that has a checkpoint goes on with --run.resume"
        raise DataError(f"{place} cannot be written ({error.strerror}): {mend}") from error
    except SystemExit as stop:  # --help, or Lightning after Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return 0


def _quieten() -> None:
    """Silence advertisements and warnings that ask for nothing."""
    for text in (".*does not have many workers.*", ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*"):
        warnings.filterwarnings("ignore", message=text)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage()
    )


class StrictParser(LightningArgumentParser):
    """Takes no abbreviations and tells errors in one line."""

    cli: TrainingCLI | None = None  # set on the parsers of the verbs; jsonargparse makes nested ones of its own

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise a :class:`ConfigError` instead of printing the usage and exiting."""
        if self.cli is None:
            raise ConfigError(message) from ex
        raise ConfigError(self.cli.explain(message)) from ex


class TrainingCLI(LightningCLI):
    """LightningCLI with a fixed model class, a choice of data sets, strict keys and a run folder.

    Args:
        arguments: The command line, its files checked.
        model_class: The one LightningModule.
        data_class: Base class of the data sets.
    """

    trial = False  # the summary command builds the model and makes no trainer and no folder
    quiet = False  # a plan of several runs leaves it to them to tell what they leave out

    def __init__(
        self, arguments: Arguments, model_class: type[LightningModule], data_class: type[LightningDataModule]
    ) -> None:
        self.arguments = arguments
        self.data_class = data_class
        self.checkpoint_facts: dict[str, Any] | None = None
        self.folder: Path | None = None
        self.callback: RunFolder | None = None
        super().__init__(
            model_class,
            data_class,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"parser_mode": "omegaconf"},
            parser_class=StrictParser,
            subclass_mode_data=True,
            args=[arguments.verb, *arguments.words],
            auto_configure_optimizers=False,
            # The module stores plain hyper-parameters itself, so that a checkpoint needs no parser to be loaded.
            load_from_checkpoint_support=False,
        )

    # ── parsing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Make the parsers, then let them explain their errors."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        self.parser.prog = "m2h"
        for name, parser in {"": self.parser, **self._subcommand_parsers}.items():
            parser.cli = self  # type: ignore[attr-defined]
            if name:
                parser.prog = f"m2h {name}"

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Build the parser of the one verb asked for: each takes its time."""
        self.subcommands = lambda: {self.arguments.verb: LightningCLI.subcommands()[self.arguments.verb]}  # type: ignore[method-assign]
        super()._add_subcommands(parser, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the ``run.*`` keys and hand the data set's facts to the model."""
        parser.add_class_arguments(runs.RunConfig, "run")
        parser.link_arguments("data.facts", "model.facts", compute_fn=self._facts, apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        defaults: dict[str, Any] = {"weights_only": True}  # a checkpoint is data: nothing stored in it is run
        if subcommand in ("validate", "test"):
            defaults["verbose"] = False  # our own table comes last
        if subcommand == "predict":
            defaults["return_predictions"] = False  # they would pile up in memory
            parser.add_argument("--save", type=Optional[str], default=None, help=SAVE_HELP)  # noqa: UP045
            parser.add_argument("--save_format", type=SaveFormat, default="files", help=SAVE_FORMAT_HELP)
        parser.set_defaults(defaults)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then check what jsonargparse lets pass."""
        self.config = parser.parse_args(args)
        verb = self.config.subcommand
        given = parser.parse_args(args, defaults=False, _skip_validation=True)[verb]
        self.given = runs.flatten({key: value for key, value in given.as_dict().items() if key != "config"})
        self.options = self.config[verb]
        self._check_groups(verb)
        if "model.facts" in self.given or any(key.startswith("model.facts.") for key in self.given):
            raise ConfigError("model.facts comes from the data set; leave it out and choose the data set with --data")
        if self.options.run.resume is not None and self.arguments.resume is None:
            raise ConfigError("run.resume belongs on the command line: m2h fit --run.resume FOLDER")
        self._reset_stale_data_defaults()
        path = self.options.get("ckpt_path")
        if path is not None:
            check_checkpoint_path(str(path))

    def _check_groups(self, verb: str) -> None:
        """Refuse null or a plain value where a group of keys stands, such as ``model: {wmca: 3}``."""
        actions = self._subcommand_parsers[verb]._actions
        names = [action.dest for action in actions if not action.dest.endswith(".help")]
        names += sorted(data_keys(self.data_class))
        for key, value in self.given.items():
            if isinstance(value, dict) or key in ("data", "trainer.logger"):
                continue
            if any(name.startswith(f"{key}.") for name in names):
                raise ConfigError(group_value(key, value, names, self.arguments))

    def _reset_stale_data_defaults(self) -> None:
        """Give every data argument that nobody wrote the default of the class that is used.

        A later ``--data Other`` keeps arguments of the same name from the class named before; only what was written
        in a file or on the command line may stay.
        """
        data = self.options.get("data")
        class_ = next(
            (c for c in subclasses(self.data_class) if c.__name__ == data.class_path.rsplit(".", 1)[-1]), None
        )
        if class_ is None or not data.get("init_args"):
            return
        fresh = self.parser.parse_args(
            [self.arguments.verb, "--data", data.class_path], defaults=True, _skip_validation=True
        )[self.arguments.verb].data.init_args
        for name in init_parameters(class_):
            written = any(key == f"data.{name}" or key.startswith(f"data.{name}.") for key in self.given)
            if not written and name in fresh:
                data.init_args[name] = fresh[name]

    def explain(self, message: str) -> str:
        """Return a parser's message as one line."""
        parser = self._subcommand_parsers[self.arguments.verb]
        keys = [action.dest for action in parser._actions if "." in action.dest or action.option_strings]
        return explain(message, keys, self.arguments, self.data_class)

    # ── checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _parse_ckpt_path(self) -> None:
        """Reconcile the model's keys with the checkpoint's, instead of letting the checkpoint win in silence."""
        self._narrow()
        self._settle_length()
        if self.arguments.resume is not None:
            self._check_finished(self.arguments.resume)
            self.options.ckpt_path = str(newest_checkpoint(self.arguments.resume))
        self.tree = self._tree()
        path = self.options.get("ckpt_path")
        if path is None:
            if self.arguments.verb != "fit" and not self.trial:
                rank_zero_info(f"no --ckpt_path: {self.arguments.verb} runs with the weights the model starts from")
            return
        stored = read_checkpoint(path).get("hyper_parameters", {})
        given = {key.removeprefix("model."): value for key, value in self.given.items() if key.startswith("model.")}
        flat = runs.flatten(self.options.model.as_dict())
        self.checkpoint_facts = stored.get("facts")
        for key, value in merge_hyper_parameters(stored, given, flat, str(path), self.arguments).items():
            self.options[f"model.{key}"] = value
        self._narrow()  # a checkpoint of one task, tested with its experiment's file
        self._settle_length()  # stages that nobody wrote are the checkpoint's
        self.tree = self._tree()
        if self.options.get("model.backbone.pretrained"):
            rank_zero_info(f"the backbone's weights come from {path}: pretrained weights are not fetched again")
            self.options.model.backbone.pretrained = False
        if self.options.get("model.backbone.checkpoint"):
            self.options.model.backbone.checkpoint = None
        if self.options.get("model.init_weights"):
            rank_zero_info(f"model.init_weights {self.options.model.init_weights} is not read: weights are from {path}")
            self.options.model.init_weights = None
            self.options.model.init_partial = False

    def _narrow(self) -> None:
        """Drop what files say of tasks that are not trained, and tell it."""
        line = narrow(self.options, self.given, self.arguments)
        if line is not None and not self.quiet:
            rank_zero_info(line)

    def _settle_length(self) -> None:
        """Let the stages say how long training takes; the other verbs take no time from them."""
        if self.arguments.verb == "fit":
            settle_length(self.options, self.given, self.arguments)

    def _tree(self) -> dict[str, Any]:
        """Return the configuration as plain nested mappings that run this command again, in a new folder."""
        parser = self._subcommand_parsers[self.arguments.verb]
        tree = yaml.safe_load(parser.dump(self.options, skip_none=False, skip_validation=True, format="yaml"))
        experiment = tree["run"]["experiment"]
        if experiment is None and self.arguments.config_files:
            experiment = runs.slug(Path(self.arguments.config_files[0]).stem)
        if self.arguments.resume is not None:
            tree["ckpt_path"] = None
        if self.arguments.verb == "fit" and self.options.model.stages:
            tree["trainer"]["max_epochs"] = None  # so that other stages, at a resume, may be longer
        tree["run"].update(experiment=experiment, id=None, resume=None)
        tree.pop("config", None)
        return tree

    def _check_finished(self, folder: Path) -> None:
        result = folder / runs.RESULT
        if not result.is_file():
            return
        budget = json.loads(result.read_text()).get("budget") or {}
        now = {key: self.options.trainer.get(key) for key in budget}
        if all(now[key] in (value, None) for key, value in budget.items()):
            longer = "add a new limit"
            if self.options.model.stages:
                longer = "give --model.stages with a longer or a further stage"
            elif budget.get("max_epochs"):
                longer = f"add --trainer.max_epochs {2 * int(budget['max_epochs'])}"
            raise AlreadyFinished(f"{folder} is finished: see {result}; to train longer {longer}")

    def _facts(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the facts the model is built with: the checkpoint's, which its weights fit, else the data set's."""
        return facts if self.checkpoint_facts is None else self.checkpoint_facts

    # ── the run ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _set_seed(self) -> None:
        """Seed everything without a word; the seed is in ``config.yaml`` and ``result.json``."""
        seed = self.options.seed_everything
        if seed is not False:
            self.options.seed_everything = seed_everything(None if seed is True else seed, workers=True, verbose=False)
            self.tree["seed_everything"] = self.options.seed_everything

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; an error of the user's that jsonargparse wraps is raised as it was."""
        wrapped: list[M2HError] = []

        def build(class_: type, *args: Any, **kwargs: Any) -> Any:
            try:
                made = class_(*args, **kwargs)
                if isinstance(made, BaseDataModule) and not self.trial:
                    made.check()  # before the network fetches weights
                return made
            except M2HError as error:
                wrapped.append(error)
                raise

        for kind in (self.data_class, Callback):
            self.parser.add_instantiator(build, kind, subclasses=True)
        try:
            super().instantiate_classes()
        except ValueError as error:
            # Settings classes check themselves; jsonargparse chains their error to its own.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, M2HError):
                cause = cause.__cause__
            if wrapped or cause is not None:
                raise (wrapped[0] if wrapped else cause) from None  # type: ignore[misc]
            raise

    def before_instantiate_classes(self) -> None:
        """Choose the run folder; nothing is created before model and data could be built."""
        if not self.trial:
            run = runs.RunConfig(**self.options.run.as_dict())
            run.resume = str(self.arguments.resume) if self.arguments.resume else None
            run.experiment = self.tree["run"]["experiment"]
            self.folder = runs.choose_folder(run, self.arguments.config_files)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with everything it writes inside the run folder."""
        assert self.folder is not None
        config: dict[str, Any] = {**self.config_init[self.arguments.verb]["trainer"], **kwargs}
        quick = bool(config.get("fast_dev_run"))
        config["default_root_dir"] = str(self.folder)
        run = runs.RunConfig(**self.options.run)
        config["logger"] = make_loggers(self.folder, run, config.get("logger"), quick)
        callbacks = config.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        if (quick or self.arguments.verb != "fit") and not any(isinstance(c, Checkpoint) for c in callbacks):
            config["enable_checkpointing"] = False  # Lightning would leave a checkpoint of the one trial batch
        checkpoints = config.get("enable_checkpointing") is not False
        save = (self.options.save, self.options.save_format) if self.arguments.verb == "predict" else (None, "files")
        if save[0] is not None and not save[0].strip():
            raise ConfigError("--save is empty; give a folder for the predictions")
        if save[0] is None and save[1] != "files":
            raise ConfigError("save_format says how --save writes; add --save FOLDER")
        callbacks += default_callbacks(self.arguments.verb, self.folder, run, callbacks, checkpoints, *save)
        self.callback = RunFolder(self.folder, self.tree, resumed=self.arguments.resume is not None)
        config["callbacks"] = [*callbacks, self.callback]
        plugins = config.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        sharded = any(name in str(config.get("strategy")).lower() for name in ("fsdp", "deepspeed", "modelparallel"))
        if not sharded and not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        config["plugins"] = plugins
        try:
            return self.trainer_class(**config)
        except (ValueError, ModuleNotFoundError) as error:
            raise ConfigError(f"trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        """Make the run folder (rank 0); nothing is left behind by what went wrong before."""
        if self.checkpoint_facts is not None and self.datamodule is not None:
            check_facts(self.checkpoint_facts, self.datamodule.facts)  # before any data are made or read
        if self.arguments.verb == "fit" and not self.trial:
            check_fit(self.model, self.datamodule, self.trainer.callbacks)  # type: ignore[attr-defined]
            if self.options.get("ckpt_path") is not None:  # before a file of the run to go on with is changed
                check_going_on(str(self.options.ckpt_path), self.model, self.trainer.max_epochs)
        if self.trial or runs.global_rank() > 0:
            return
        assert self.folder is not None
        if self.arguments.resume is None:
            runs.create_folder(self.folder)
        else:
            previous = self.folder / runs.RESULT
            if previous.is_file():
                os.replace(previous, previous.with_suffix(".previous.json"))
        runs.write_text(self.folder / runs.CONFIG, yaml.safe_dump(self.tree, sort_keys=False, allow_unicode=True))
        runs.record_start(self.folder, [self.arguments.verb, *self.arguments.words])
        rank_zero_info(f"run folder: {self.folder}")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb, then write the result, or why there is none."""
        assert self.folder is not None
        assert self.callback is not None
        before = os.environ.get(runs.RUN_DIR_VARIABLE)
        os.environ[runs.RUN_DIR_VARIABLE] = str(self.folder)
        try:
            with listening(self.trainer):
                self._work(subcommand)
        except BaseException as error:
            if isinstance(error, Stopped):
                error.args = (stopped_text(self.folder),)
            if self.trainer.is_global_zero:
                write_failure(self.folder, error)
                close_loggers(self.trainer.loggers)
            raise
        finally:
            if before is None:
                os.environ.pop(runs.RUN_DIR_VARIABLE, None)
            else:
                os.environ[runs.RUN_DIR_VARIABLE] = before

    def _work(self, subcommand: str) -> None:
        """Run the verb, the test after training, and write the result."""
        assert self.folder is not None
        assert self.callback is not None
        super()._run_subcommand(subcommand)
        metrics = self.callback.metrics(self.trainer)
        progress = self.callback.progress(self.trainer) if subcommand == "fit" else {}
        pruned_at = next(
            (c.pruned_at for c in self.trainer.callbacks if isinstance(c, ReportToStudy)),  # type: ignore[attr-defined]
            None,
        )
        if subcommand == "fit" and self.options.run.test and pruned_at is None:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            metrics.update(self.trainer.callback_metrics)
        if self.trainer.is_global_zero:
            close_loggers(self.trainer.loggers)
            values = {name: float(value) for name, value in metrics.items()}
            self.callback.write_result(self.trainer, subcommand, values, progress, pruned_at)
            print_closing(self.model, values, self.folder)
