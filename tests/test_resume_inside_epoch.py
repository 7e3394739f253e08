"""A run that dies inside an epoch continues there: same samples, same random numbers, same weights."""

import json

import pytest
import torch

from cli_helpers import TINY, m2h, write
from m2h_lightning.runs.loggers import read_rows

SETTINGS = """
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 1, save_last: true, save_top_k: 0, dirpath: DIRPATH}
    - class_path: samples.Crash
"""


@pytest.mark.parametrize("step", [2, 4])
def test_the_curve_and_the_weights_are_those_of_the_uninterrupted_run(tmp_path, monkeypatch, step):
    monkeypatch.chdir(tmp_path)
    # Stochastic depth draws from torch's own generator in every step: a state that was lost would show.
    config = TINY.replace("lr_factor: 1.0}", "lr_factor: 1.0, drop_path: 0.3}").replace(
        "max_epochs: 1", "max_epochs: 2"
    )
    config = config.replace("  num_sanity_val_steps: 0", f"  num_sanity_val_steps: 0{SETTINGS}")
    words = ["--data.train", "6", "--data.batch_size", "2"]
    states = []
    for name in ("whole", "cut"):
        folder = tmp_path / "runs" / "tiny" / name
        write(tmp_path / "tiny.yaml", config.replace("DIRPATH", str(folder / "checkpoints")))
        start = ["fit", "--config", "tiny.yaml", *words, "--run.id", name]
        if name == "cut":
            (tmp_path / "crash-after").write_text(str(step))
            with pytest.raises(RuntimeError, match="out of luck"):
                m2h(*start)
            assert not (folder / "result.json").exists()
            assert "out of luck" in (folder / "failure.txt").read_text()
            start = ["fit", "--run.resume", folder]
        assert m2h(*start) == 0
        assert json.loads((folder / "result.json").read_text())["steps"] == 6
        rows = read_rows(folder / "metrics.csv")[1]
        weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        states.append((rows, weights))
    (whole_rows, whole), (cut_rows, cut) = states
    assert cut_rows == whole_rows
    assert all(torch.equal(cut[key], whole[key]) for key in whole)
