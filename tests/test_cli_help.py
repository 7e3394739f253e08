"""The help of a training verb: complete, documented, and kept so that it answers without torch."""

import os
import subprocess
import sys

import pytest

from m2h_lightning.commands import help_page


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def help_of(verb, cache):
    code = (
        "import sys; from m2h_lightning.cli import main\n"
        f"code = main([{verb!r}, '--help'])\n"
        "print('TORCH', 'torch' in sys.modules, 'CODE', code)"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    page, _, state = done.stdout.rpartition("TORCH")
    return page, state.strip()


def test_every_switch_is_documented_and_the_second_answer_needs_no_torch(cache):
    first, state = help_of("fit", cache)
    assert state == "True CODE 0"
    for key, words in {
        "--model.wmca.window_size": "Side p of a window",
        "--model.wmca.form": "joint",
        "--model.ggfm.enabled": "Use the block",
        "--model.backbone.freeze": "last_<n>",
        "--model.optimizer.lr": "Learning rate",
        "--run.resume": "Folder of a run to continue",
    }.items():
        assert key in first
        assert words in first
    second, state = help_of("fit", cache)
    assert state == "False CODE 0"
    assert second == first


def test_a_changed_source_has_another_page(monkeypatch, tmp_path):
    before = help_page.page_path("fit")
    monkeypatch.setattr(help_page.metadata, "version", lambda name: "0.0")
    assert help_page.page_path("fit") != before
    monkeypatch.undo()
    monkeypatch.setenv("COLUMNS", "77")
    assert help_page.page_path("fit") != before


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert help_page.show_help("fit", lambda: print("the page") or 0) == 0
    assert capsys.readouterr().out == "the page\n"
