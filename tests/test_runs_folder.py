"""Run folders without a trainer: names, atomic files, metrics.csv, what a checkpoint may decide."""

import json
import random

import numpy as np
import pytest
import torch

from m2h_lightning.callbacks.run_folder import rng_state, set_rng_state
from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.commands.checkpoint_policy import merge_hyper_parameters
from m2h_lightning.errors import CheckpointError, ConfigError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.checkpoint_io import AtomicCheckpointIO, newest_checkpoint, read_checkpoint
from m2h_lightning.runs.folder import RunConfig, choose_folder
from m2h_lightning.runs.loggers import RunCSVLogger, read_rows


def test_the_experiment_is_the_first_configuration_file(tmp_path):
    folder = choose_folder(RunConfig(root=str(tmp_path)), ["experiments/rooms.yaml", "x.yaml"], {})
    assert folder.parent == tmp_path / "rooms"
    assert choose_folder(RunConfig(root=str(tmp_path)), [], {}).parent.name == "run"
    assert folder != choose_folder(RunConfig(root=str(tmp_path)), ["experiments/rooms.yaml"], {})
    assert not folder.exists()


def test_an_existing_run_is_never_taken(tmp_path):
    run = RunConfig(root=str(tmp_path), experiment="a", id="b")
    folder = choose_folder(run, [], {})
    runs.create_folder(folder)
    with pytest.raises(ConfigError, match="run.resume"):
        choose_folder(run, [], {})
    with pytest.raises(ConfigError, match="exists"):
        runs.create_folder(folder)


@pytest.mark.parametrize("name", ["../up", "a/b", "", "a b", ".."])
def test_names_stay_inside_the_root(tmp_path, name):
    with pytest.raises(ConfigError, match="not a folder name"):
        choose_folder(RunConfig(root=str(tmp_path), id=name), [], {})


def test_ranks_share_a_folder(tmp_path):
    run = RunConfig(root=str(tmp_path))
    child = {runs.RUN_DIR_VARIABLE: "/somewhere/x", "LOCAL_RANK": "1"}
    assert str(choose_folder(run, [], child)) == "/somewhere/x"
    assert str(choose_folder(run, [], {runs.RUN_DIR_VARIABLE: "/somewhere/x"})) != "/somewhere/x"
    torchrun = [{"TORCHELASTIC_RUN_ID": "job7", "RANK": str(rank)} for rank in (0, 1)]
    assert choose_folder(run, [], torchrun[0]) == choose_folder(run, [], torchrun[1])
    step = {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    srun = [{**step, "SLURM_PROCID": str(rank)} for rank in (0, 1)]
    assert choose_folder(run, [], srun[0]) == choose_folder(run, [], srun[1])
    assert [runs.global_rank(env) for env in (*srun, *torchrun, child, {})] == [0, 1, 0, 1, 1, 0]
    # In a plain batch script every command has the same job id, and each is a run of its own.
    batch = {"SLURM_JOB_ID": "5", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    assert choose_folder(run, [], batch) != choose_folder(run, [], batch)
    with pytest.raises(ConfigError, match="rdzv-id"):
        choose_folder(run, [], {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "2", "RANK": "0"})


def test_json_is_atomic_and_strict(tmp_path):
    path = tmp_path / "r.json"
    runs.write_json(path, {"a": float("nan"), "b": (1, 2), "c": {"d": float("inf")}, "e": tmp_path})
    assert json.loads(path.read_text()) == {"a": None, "b": [1, 2], "c": {"d": None}, "e": str(tmp_path)}
    with pytest.raises(TypeError):
        runs.write_text(path, 3)  # type: ignore[arg-type]
    assert json.loads(path.read_text())["b"] == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_flat_and_nested_names():
    tree = {"model": {"wmca": {"window_size": 7}}, "data": {"class_path": "R", "init_args": {"crop": [1, 2]}}}
    assert runs.flatten(tree) == {"model.wmca.window_size": 7, "data.class_path": "R", "data.crop": [1, 2]}
    nested = runs.nested_metrics({"val/loss": 1.0, "val/loss/depth": 2.0, "val/depth/rmse_m": 3.0})
    assert nested == {"val": {"loss": {"total": 1.0, "depth": 2.0}, "depth": {"rmse_m": 3.0}}}
    assert runs.config_hash({"a": 1, "run": {"id": 1}}) == runs.config_hash({"run": {"id": 2}, "a": 1})
    assert runs.config_hash({"a": 1}) != runs.config_hash({"a": 2})


def test_git_state(tmp_path):
    assert runs.git_state(tmp_path) is None
    state = runs.git_state()
    assert state is None or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))


def test_metrics_rows_are_exact_and_new_columns_keep_old_rows(tmp_path):
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"train/loss": 0.1, "epoch": 0}, step=0)
    logger.log_metrics({"val/x": 1 / 3, "epoch": 0}, step=1)
    columns, rows = read_rows(tmp_path / "metrics.csv")
    assert columns == ["epoch", "step", "train/loss", "val/x"]
    assert [row["step"] for row in rows] == ["0", "1"]
    assert float(rows[1]["val/x"]) == 1 / 3
    assert rows[0]["val/x"] == ""


def test_a_resumed_logger_drops_later_and_torn_rows(tmp_path):
    first = RunCSVLogger(tmp_path)
    for step in range(5):
        first.log_metrics({"loss": float(step)}, step=step)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("5,")
    second = RunCSVLogger(tmp_path)
    second.keep_before(3)
    second.log_metrics({"loss": 30.0}, step=3)
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.csv")[1]] == ["0.0", "1.0", "2.0", "30.0"]


def test_random_states_return_and_load_as_plain_data(tmp_path):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    np.random.standard_normal()  # leaves a cached second value
    torch.save({"state_dict": {}, "rng": rng_state()}, tmp_path / "x.ckpt")

    def draw():
        return random.random(), random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()

    first = draw()
    set_rng_state(read_checkpoint(tmp_path / "x.ckpt")["rng"])
    assert draw() == first


def test_checkpoints_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(2)}}, path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": lambda: 0}}, path)  # cannot be pickled
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(path)["state_dict"]["a"].tolist() == [1, 1]


def test_the_newest_readable_checkpoint_is_taken(tmp_path):
    folder = tmp_path / "checkpoints"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, folder / "epoch001.ckpt")
    (folder / "epoch002.ckpt").write_bytes(b"PK cut short")
    (folder / "last.ckpt").symlink_to("gone.ckpt")
    assert newest_checkpoint(tmp_path).name == "epoch001.ckpt"
    (folder / "epoch001.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"epoch002\.ckpt"):
        newest_checkpoint(tmp_path)


class Unsafe:
    """Something a checkpoint must not bring along."""


def test_a_checkpoint_may_hold_plain_data_only(tmp_path):
    torch.save({"state_dict": {}, "x": Unsafe()}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="plain values"):
        read_checkpoint(tmp_path / "x.ckpt")
    torch.save({"weights": 1}, tmp_path / "y.ckpt")
    with pytest.raises(CheckpointError, match="state_dict"):
        read_checkpoint(tmp_path / "y.ckpt")


def merge(given):
    stored = {"channels": 8, "wmca": {"window_size": 7}, "optimizer": {"lr": 0.1}, "facts": {"classes": ["a"]}}
    current = {"channels": 16, "wmca.window_size": 5, "optimizer.lr": 0.5}
    return merge_hyper_parameters(stored, given, current, "x.ckpt", Arguments("fit", [], []))


def test_the_checkpoint_decides_what_nobody_wrote():
    assert merge({}) == {"channels": 8, "wmca.window_size": 7, "optimizer.lr": 0.1}


def test_training_keys_that_were_written_win():
    assert "optimizer.lr" not in merge({"optimizer.lr": 0.5})


def test_another_architecture_is_an_error_that_names_both_values():
    with pytest.raises(ConfigError, match=r"wmca\.window_size is 5.*x\.ckpt was trained with 7.*leave the key out"):
        merge({"wmca.window_size": 5})
