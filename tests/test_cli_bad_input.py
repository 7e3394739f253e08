"""Wrong input: one line on stderr that says what is wrong, where, and how to mend it; exit code 2; nothing written."""

import pytest
import torch

from cli_helpers import m2h, write


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.yaml")
    return tmp_path


def error_of(capsys, *words, code=2):
    """Run the command; return its one line on stderr."""
    capsys.readouterr()
    assert m2h(*words) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("m2h: error: ")
    return lines[0]


COMMAND_LINE = {
    "misspelt key": (
        ["--model.wmca.window_sise", "7"],
        ["model.wmca.window_sise", "did you mean 'model.wmca.window_size'?"],
    ),
    "abbreviated key": (["--trainer.max_epoch", "3"], ["trainer.max_epoch'", "did you mean 'trainer.max_epochs'?"]),
    "misspelt data key": (["--data.batch_sise", "3"], ["data.batch_sise", "did you mean 'data.batch_size'?"]),
    "wrong choice": (
        ["--model.wmca.form", "joinnt"],
        ["model.wmca.form is 'joinnt'", "'joint' or 'cross'", "did you mean 'joint'?"],
    ),
    "wrong type": (["--model.wmca.window_size", "wide"], ["model.wmca.window_size is 'wide'", "a whole number"]),
    "wrong trainer type": (
        ["--trainer.max_epochs", "many"],
        ["trainer.max_epochs is 'many'", "a whole number or null"],
    ),
    "no value": (["--model.channels"], ["--model.channels needs a value"]),
    "a word too many": (["extra"], ["unexpected word 'extra'"]),
    "unknown data set": (["--data", "Romms"], ["no class 'Romms'", "did you mean 'Rooms'?"]),
    "facts by hand": (["--model.facts", "{}"], ["model.facts", "comes from the data set"]),
    "absent file": (["--config", "tiny.yml"], ["no file tiny.yml", "tiny.yaml"]),
    "absent checkpoint": (["--ckpt_path", "runs/x.ckpt"], ["--ckpt_path", "no file runs/x.ckpt"]),
    "checkpoint by name": (["--ckpt_path", "last"], ["ckpt_path", "'last'", "give the path"]),
    "absent run": (["--run.resume", "runs/x"], ["run.resume", "runs/x is not a folder"]),
    "unknown strategy": (["--trainer.strategy", "dpp"], ["strategy='dpp'"]),
    "no such device": (["--trainer.accelerator", "tpu"], ["trainer: ", "torch_xla"]),
    "bad run name": (["--run.id", "../x"], ["run.id", "not a folder name"]),
    "too small a crop": (["--data.crop", "[8,8]"], ["data.crop is [8, 8]", "at least 16"]),
    "wrong learning rate": (["--model.optimizer.lr", "-1"], ["model.optimizer.lr is -1", "above 0"]),
    "misspelt key in a data group": (
        ["--data.augment.flipp", "0.1"],
        ["data.augment.flipp", "did you mean 'data.augment.flip'?"],
    ),
    "value out of range in a data group": (["--data.augment.flip", "3"], ["data.augment.flip is 3", "between 0 and 1"]),
    "wrong type in a data group": (["--data.augment.flip", "x"], ["data.augment.flip is 'x'", "a number"]),
    "wrong length": (["--data.eval_size", "[1,2,3]"], ["data.eval_size is '[1, 2, 3]'", "a list of 2 values"]),
    "unknown backbone": (["--model.backbone.name", "test_convnexxt"], ["model.backbone.name", "test_convnexxt"]),
}


@pytest.mark.parametrize("case", COMMAND_LINE)
def test_command_line(case, folder, capsys):
    words, parts = COMMAND_LINE[case]
    line = error_of(capsys, "fit", "--config", "tiny.yaml", *words)
    for part in parts:
        assert part in line, line
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.yaml"]


FILES = {
    "misspelt group": (
        "model: {wmcaa: {window_size: 3}}",
        ["'model.wmcaa' (bad.yaml:1)", "did you mean 'model.wmca'?"],
    ),
    "misspelt key": ("model:\n  wmca:\n    window_sise: 3", ["(bad.yaml:3)", "did you mean 'model.wmca.window_size'?"]),
    "misspelt root": ("trainr: {max_epochs: 3}", ["'trainr' (bad.yaml:1)", "did you mean 'trainer'?"]),
    "misspelt data key": (
        "data:\n  class_path: Rooms\n  init_args:\n    vews: 3",
        ["'data.vews' (bad.yaml:4)", "'data.views'"],
    ),
    "wrong choice": (
        "model:\n  preset: m2h-smal",
        ["model.preset is 'm2h-smal' (bad.yaml:2)", "did you mean 'm2h-small'?"],
    ),
    "value for a group": ("model: {wmca: 3}", ["model.wmca is 3 (bad.yaml:1)", "window_size"]),
    "unknown data set": ("data: Romms", ["no class 'Romms' (bad.yaml:1)", "did you mean 'Rooms'?"]),
    "unknown callback": ("trainer: {callbacks: [{class_path: EarlyStoping}]}", ["EarlyStoping", "'EarlyStopping'"]),
    "broken YAML": ("model:\n  wmca: [1\n", ["bad.yaml:3", "not valid YAML"]),
    "a list": ("- model", ["bad.yaml:1", "mapping"]),
    "empty": ("", ["bad.yaml is empty"]),
    "misspelt key in a data group": (
        "data:\n  class_path: samples.Planes\n  init_args:\n    augment: {flipp: 0.1}",
        ["'data.augment.flipp' (bad.yaml:4)", "did you mean 'data.augment.flip'?"],
    ),
    "missing variable": (
        "model: {optimizer: {lr: '${oc.env:M2H_NOPE}'}}",
        ["model.optimizer.lr (bad.yaml:1)", "M2H_NOPE"],
    ),
    "resume in a file": ("run: {resume: runs/x}", ["run.resume", "command line"]),
    "unknown loss weight": ("model: {loss_weights: {dept: 1.0}}", ["loss_weights", "did you mean 'depth'?"]),
}


@pytest.mark.parametrize("case", FILES)
def test_configuration_file(case, folder, capsys):
    text, parts = FILES[case]
    write(folder / "bad.yaml", text)
    line = error_of(capsys, "fit", "--config", "tiny.yaml", "--config", "bad.yaml")
    for part in parts:
        assert part in line, line
    assert not (folder / "runs").exists()


def test_no_data_set(folder, capsys):
    assert "data is missing; give --data Rooms" in error_of(capsys, "fit")


def test_a_summary_is_as_strict(folder, capsys):
    assert "did you mean 'model.channels'?" in error_of(
        capsys, "summary", "--config", "tiny.yaml", "--model.chanels", 3
    )
    assert "--size" in error_of(capsys, "summary", "--config", "tiny.yaml", "--size", "448")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short"])
def test_damaged_checkpoint(content, folder, capsys):
    (folder / "x.ckpt").write_bytes(content)
    line = error_of(capsys, "test", "--config", "tiny.yaml", "--ckpt_path", "x.ckpt")
    assert "cannot read the checkpoint x.ckpt" in line
    assert not (folder / "runs").exists()


def test_a_cut_checkpoint(folder, capsys):
    torch.save({"state_dict": {"x": torch.zeros(10_000)}}, folder / "whole.ckpt")
    content = (folder / "whole.ckpt").read_bytes()
    (folder / "x.ckpt").write_bytes(content[: len(content) // 2])
    assert "damaged or cut short" in error_of(capsys, "test", "--config", "tiny.yaml", "--ckpt_path", "x.ckpt")


def test_no_folder_to_write_in(folder, capsys):
    (folder / "file").write_text("")
    capsys.readouterr()
    assert m2h("fit", "--config", "tiny.yaml", "--run.root", "file/runs") == 2
    assert "m2h: error: cannot create run folder" in capsys.readouterr().err.splitlines()[-1]
