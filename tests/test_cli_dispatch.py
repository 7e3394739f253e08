"""The door: verbs, help, exit codes, and what is imported for them."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from m2h_lightning import __version__, cli
from m2h_lightning.errors import ConfigError


def stderr_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb(words, capsys):
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for verb in ("fit", "validate", "test", "predict", "summary", "data", "doctor"):
        assert f"\n  {verb} " in out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"m2h-lightning {__version__}"


@pytest.mark.parametrize("words", [["--help"], ["doctor"], ["data", "--help"], ["fit", "--config", "absent.yaml"]])
def test_light_answers_import_no_torch(words, tmp_path):
    code = (
        "import sys; from m2h_lightning.cli import main\n"
        f"code = main({words!r})\n"
        "heavy = {'torch', 'lightning', 'numpy', 'timm'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), 'CODE', code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "HEAVY [] CODE" in done.stdout, done.stdout + done.stderr


def test_an_unknown_verb_is_answered_with_the_closest_one(capsys):
    assert cli.main(["fitt"]) == 2
    assert "did you mean 'fit'?" in stderr_line(capsys)


def test_options_before_the_verb_are_refused(capsys):
    assert cli.main(["--config", "x.yaml", "fit"]) == 2
    assert "the command comes first" in stderr_line(capsys)


def test_unknown_words_of_lightning_go_to_the_other_owner_of_the_name(monkeypatch):
    calls = []
    other = EntryPoint("lightning", "other_package.cli:main", "console_scripts")
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda: calls.append(list(sys.argv)) or 7)
    monkeypatch.setattr(cli, "_other_owner", lambda verb: other if verb == "studio" else None)
    monkeypatch.setattr(sys, "argv", ["/bin/lightning", "studio", "list"])
    assert cli.main() == 7
    assert calls == [["lightning", "studio", "list"]]
    assert sys.argv == ["/bin/lightning", "studio", "list"]


def test_only_lightning_hands_over(monkeypatch):
    monkeypatch.setattr(cli, "_other_owner", lambda verb: pytest.fail("m2h asked for another owner"))
    monkeypatch.setattr(sys, "argv", ["/bin/m2h", "studio"])
    assert cli.main() == 2


def test_fabric_gets_its_own_verbs():
    owner = cli._other_owner("consolidate")
    assert owner is not None
    assert owner.name in ("fabric", "lightning")


def test_interrupts_and_faults_have_their_own_codes(monkeypatch, capsys):
    def raises(error):
        def dispatch(words, program):
            raise error

        return dispatch

    monkeypatch.setattr(cli, "_dispatch", raises(KeyboardInterrupt()))
    assert cli.main(["fit"]) == 130
    monkeypatch.setattr(cli, "_dispatch", raises(ConfigError("a\n  b")))
    capsys.readouterr()
    assert cli.main(["fit"]) == 2
    assert stderr_line(capsys) == "m2h: error: a b"
    monkeypatch.setattr(cli, "_dispatch", raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fit"])


def test_the_three_names_are_one_function():
    scripts = Path(sys.executable).parent
    env = {**os.environ, "NO_COLOR": "1"}
    outputs = {
        subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=True).stdout
        for command in ([scripts / "m2h", "--version"], [sys.executable, "-m", "m2h_lightning", "--version"])
    }
    assert outputs == {f"m2h-lightning {__version__}\n"}
