"""``m2h doctor``: what it finds, and what ``--fix`` mends."""

import json
import os

import pytest
from packaging.specifiers import SpecifierSet

from m2h_lightning.commands import doctor
from m2h_lightning.errors import ConfigError
from m2h_lightning.runs.wandb_mode import has_wandb_key, resolve_wandb_mode

OURS = "#!/x/python\nimport sys\nfrom m2h_lightning.cli import main\nsys.exit(main())\n"
THEIRS = "#!/x/python\nimport sys\nfrom lightning_sdk.cli.entrypoint import main_cli\nsys.exit(main_cli())\n"


@pytest.fixture
def scripts(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("m2h", "lightning"):
        (folder / name).write_text(OURS)
        (folder / name).chmod(0o755)
    return folder


def script_states(scripts, path=None):
    return [finding.state for finding in doctor.check_script(scripts, {"PATH": str(path or scripts)})]


def test_a_healthy_script(scripts):
    assert script_states(scripts) == ["ok"]


def test_a_shadowed_script_is_named_and_restored(scripts, monkeypatch):
    (scripts / "lightning").write_text(THEIRS)
    monkeypatch.setattr(doctor, "claimants", lambda: ["lightning-sdk 2026.10"])
    finding = doctor.check_script(scripts, {"PATH": str(scripts)})[0]
    assert finding.state == "wrong"
    assert "lightning-sdk 2026.10" in finding.detail
    assert "--fix" in finding.mend
    assert "uninstalling that package later deletes the script again" in finding.mend
    doctor.fix_script(scripts)
    assert (scripts / "lightning").read_text() == OURS
    assert os.access(scripts / "lightning", os.X_OK)
    assert sorted(path.name for path in scripts.iterdir()) == ["lightning", "m2h"]
    assert script_states(scripts) == ["ok", "note"]


def test_a_deleted_script_is_restored(scripts):
    (scripts / "lightning").unlink()
    assert "wrong" in script_states(scripts)
    doctor.fix_script(scripts)
    assert script_states(scripts) == ["ok"]


def test_fix_refuses_to_copy_a_foreign_script(scripts):
    (scripts / "m2h").write_text(THEIRS)
    with pytest.raises(ConfigError, match="reinstall"):
        doctor.fix_script(scripts)
    assert (scripts / "lightning").read_text() == OURS


def test_another_environment_first_on_path(scripts, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "lightning").write_text(OURS)
    (other / "lightning").chmod(0o755)
    findings = doctor.check_script(scripts, {"PATH": f"{other}:{scripts}"})
    assert [finding.state for finding in findings] == ["ok", "wrong"]
    assert str(other / "lightning") in findings[1].detail


@pytest.mark.parametrize(
    ("torch", "torchvision", "needs", "state"),
    [
        ("2.13.0+cu130", "0.28.0+cu130", "==2.13.0", "ok"),
        ("2.13.0", "0.28.0", "==2.13.0", "ok"),
        ("2.13.0+cpu", "0.28.0", "==2.13.0", "wrong"),
        ("2.13.0", "0.28.0+cpu", "==2.13.0", "wrong"),
        ("2.15.0", "0.28.0", "==2.13.0", "wrong"),
        (None, "0.28.0", "", "wrong"),
        ("2.15.0", None, "", "wrong"),
    ],
)
def test_torch_and_torchvision_must_be_a_pair(monkeypatch, torch, torchvision, needs, state):
    monkeypatch.setattr(doctor, "_torch_needed_by_torchvision", lambda: SpecifierSet(needs))
    assert doctor.check_torch_pair(torch, torchvision).state == state


def test_jsonargparse_must_be_version_4():
    states = [doctor.check_jsonargparse(version).state for version in ("4.53.0", "5.0.0", None)]
    assert states == ["ok", "wrong", "wrong"]


def test_data_roots_and_stray_checkpoints(tmp_path):
    assert [f.state for f in doctor.check_data(tmp_path, {})] == ["note"]
    assert [f.state for f in doctor.check_data(tmp_path, {"M2H_DATA": str(tmp_path / "absent")})] == ["wrong"]
    (tmp_path / "data" / "rooms" / "rooms-1").mkdir(parents=True)
    assert "rooms-1" in doctor.check_data(tmp_path, {})[1].detail
    assert doctor.check_stray_checkpoints(tmp_path) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "hpc_ckpt_1.ckpt").touch()
    assert doctor.check_stray_checkpoints(tmp_path)[0].state == "wrong"


def test_wandb_mode_setting_then_variable_then_key(tmp_path):
    home = {"HOME": str(tmp_path)}
    assert resolve_wandb_mode("auto", home)[0] == "offline"
    assert resolve_wandb_mode("auto", {**home, "WANDB_API_KEY": "k"})[0] == "online"
    assert resolve_wandb_mode("auto", {**home, "WANDB_API_KEY": "k", "WANDB_MODE": "offline"})[0] == "offline"
    assert resolve_wandb_mode("auto", {**home, "WANDB_MODE": "disabled"})[0] == "disabled"
    assert resolve_wandb_mode("online", {**home, "WANDB_MODE": "disabled"})[0] == "online"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secretkey\n")
    assert has_wandb_key(home)
    assert not has_wandb_key({**home, "WANDB_BASE_URL": "https://wandb.example.org"})


def test_the_key_is_never_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "topsecret")
    monkeypatch.chdir(tmp_path)
    doctor.main_doctor(["--json"])
    out = capsys.readouterr().out
    assert "topsecret" not in out
    assert "an API key is present" in out


def test_json_and_exit_code(capsys, monkeypatch, scripts, tmp_path):
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(scripts))
    monkeypatch.setenv("PATH", str(scripts))
    monkeypatch.delenv("M2H_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert doctor.main_doctor(["--json"]) == 0
    assert {finding["what"] for finding in json.loads(capsys.readouterr().out)} >= {"lightning script", "wandb"}
    (scripts / "lightning").write_text(THEIRS)
    assert doctor.main_doctor([]) == 2
    assert doctor.main_doctor(["--fix"]) == 0
    assert (scripts / "lightning").read_text() == OURS
