"""Settings: file, environment, command line; each program's own."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from fabric import broker, worker
from fabric.config import (
    BrokerSettings,
    ConfigError,
    Settings,
    WorkerSettings,
    built_architectures,
    embedded_worker,
    host_and_port,
    load,
    load_settings,
    native_architectures,
    shown,
    unknown_variables,
)


def environ(tmp_path: Path, text: str = "", **more: str) -> dict[str, str]:
    file = tmp_path / "distbuild.toml"
    file.write_text(text)
    return {"FABRIC_CONFIG": str(file), **more}


def test_config_defaults_are_below_the_cache(tmp_path: Path) -> None:
    settings = load_settings(environ(tmp_path), {"cache": str(tmp_path / "c")})
    assert settings.store_url == str(tmp_path / "c/artifacts")
    assert settings.trove_dir == tmp_path / "c/trove"
    assert settings.worker_count >= 1
    assert settings.jobs >= 1


def test_config_last_value_wins(tmp_path: Path) -> None:
    env = environ(tmp_path, "workers = 3\nmax-jobs = 5\nbuild-timeout = 60\n", FABRIC_MAX_JOBS="7")
    settings = load_settings(env, {"workers": 9})
    assert (settings.workers, settings.max_jobs, settings.build_timeout) == (9, 7, 60.0)


def test_config_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: this settings file does not exist"):
        load_settings({"FABRIC_CONFIG": str(tmp_path / "nowhere.toml")})
    with pytest.raises(ConfigError, match=r"broker\.toml: this settings file does not exist"):
        load(BrokerSettings, tmp_path / "broker.toml", {})
    assert load_settings({"XDG_CONFIG_HOME": str(tmp_path)}) == Settings()


@pytest.mark.bound("WORKERS")
@pytest.mark.bound("SUBSTITUTERS")
@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("workers = 'many'", {}, r"distbuild\.toml: workers: must be a whole number"),
        ("wrokers = 2", {}, r"distbuild\.toml: unknown setting 'wrokers'; did you mean 'workers'"),
        ("workers = ", {}, r"distbuild\.toml: not TOML: Invalid value"),
        ("workers = -1", {}, r"workers: must be a whole number >= 0"),
        ("", {"FABRIC_WORKERS": "x"}, "FABRIC_WORKERS: workers: must be a whole number"),
        ("", {"FABRIC_WORKERS": "257"}, "FABRIC_WORKERS: workers: must be a whole number <= 256"),
        ("[aliases]\nupstream = 3", {}, r"aliases"),
        ("substituters = '/a'", {}, r"substituters: must be a list, not text"),
        (f"substituters = {['/a'] * 17}", {}, r"substituters: must be a list of length <= 16"),
        (
            "substituters = ['/a']",
            {},
            r"distbuild\.toml: substituters: needs the setting trusted-k",
        ),
        ("priority = 11", {}, r"priority: must be a whole number <= 10"),
        ("debian-snapshot = '2026'", {}, r"debian-snapshot: must be a time such as 2026"),
        ("architectures = ['a b']", {}, r"architectures\[0\]: must be a name: at most 63"),
    ],
)
def test_config_errors_name_the_setting(
    tmp_path: Path, text: str, more: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(environ(tmp_path, text, **more))


def test_config_of_daemons(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('controller = "c.example:9000"\nfeatures = ["kvm"]\n[aliases]\nx = "y:%s"\n')
    settings = load(WorkerSettings, file, {"FABRIC_SLOTS": "3", "FABRIC_FEATURES": "no"})
    assert (settings.controller, settings.slots) == ("c.example:9000", 3)
    assert (settings.features, settings.aliases) == (("kvm",), {"x": "y:%s"})
    file.write_text("workers = 3\n")
    with pytest.raises(ConfigError, match=r"worker\.toml: unknown setting 'workers'"):
        load(WorkerSettings, file, {})


def test_config_of_substituters(tmp_path: Path) -> None:
    """They are for who builds here; the keys may be named elsewhere."""
    keys = {"FABRIC_TRUSTED_KEYS": "/k", "FABRIC_SUBSTITUTERS": "/b"}
    settings = load_settings(environ(tmp_path, "substituters = ['/a']", **keys))
    assert settings.substituters == ("/a",), "lists have no variable"
    assert embedded_worker(settings).substituters == ("/a",)
    (tmp_path / "broker.toml").write_text("substituters = ['/a']")
    with pytest.raises(ConfigError, match="unknown setting 'substituters'"):
        load(BrokerSettings, tmp_path / "broker.toml", {})


def test_config_shown_is_valid() -> None:
    settings = BrokerSettings(listen="::1", aliases={"up stream": 'a"b%s'}, lease=2.5)
    assert load_from(shown(settings)) == settings


def load_from(text: str) -> BrokerSettings:
    return msgspec.convert(tomllib.loads(text), BrokerSettings)


def test_config_embedded_worker_has_the_initiators_settings() -> None:
    settings = Settings(cache="/c", max_jobs=7, aliases={"a": "b:%s"}, controller="x")
    mine = embedded_worker(settings, "w", 2)
    assert (mine.jobs, mine.work_dir, mine.aliases) == (7, Path("/c/work"), {"a": "b:%s"})
    assert (mine.name, mine.slots, mine.controller, mine.min_free_disk) == ("w", 2, "", 0)


def test_config_arm_machines_build_by_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert native_architectures() == ("aarch64", "armv8l64")


def test_config_architectures_default_to_the_kernels() -> None:
    assert built_architectures(Settings()) == native_architectures()
    named = Settings(architectures=("x86_64", "mine"))
    assert built_architectures(named) == ("x86_64", "mine")
    assert built_architectures(embedded_worker(named)) == ("x86_64", "mine")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("controller", ("controller", 7411)),
        ("controller:80", ("controller", 80)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("[::1]", ("::1", 7411)),
        ("fe80::1", ("fe80::1", 7411)),
    ],
)
def test_config_host_and_port(text: str, meant: tuple[str, int]) -> None:
    assert host_and_port(text) == meant


@pytest.mark.parametrize("text", ["", ":80", "host:", "host:x", "host:0", "host:65535", "[::1]:"])
def test_config_invalid_host_and_port(text: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST or HOST:PORT"):
        host_and_port(text)


def test_config_check_shows_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("port = 8000\n")
    assert broker.main(["--config", str(file), "--check-config"]) == 0
    assert "port = 8000\n" in capsys.readouterr().out
    file.write_text('controller = "c"\nslots = 2\n')
    assert worker.main(["--config", str(file), "--check-config"]) == 0
    assert "slots = 2\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "text", "said"),
    [
        (broker, "port = 0", "port: must be a whole number >= 1"),
        (broker, "plain = true", r"\* is not a loopback address"),
        (broker, 'plain = true\nlisten = "10.0.0.1"', "10.0.0.1 is not a loopback address"),
        (worker, "slots = 2", "controller: '' is not HOST or HOST:PORT"),
        (worker, 'controller = "c"\nplain = true', "c is not a loopback address"),
        (worker, 'controller = "c"\nname = "../x"', "name: "),
    ],
)
def test_config_check_reports_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: ModuleType, text: str, said: str
) -> None:
    file = tmp_path / "daemon.toml"
    file.write_text(text)
    assert program.main(["--config", str(file), "--check-config"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fabric-{program.__name__.rpartition('.')[2]}: ")
    assert re.search(said, error), error


def test_config_warns_of_unknown_variables() -> None:
    given = {"FABRIC_CONTROLER": "x", "FABRIC_SLOTS": "1", "FABRIC_CONFIG": "", "FABRIC_QQQQ": ""}
    assert unknown_variables(given) == [
        "the environment variable FABRIC_CONTROLER is not a setting;"
        " did you mean 'FABRIC_CONTROLLER'?",
        "the environment variable FABRIC_QQQQ is not a setting",
    ]
    assert unknown_variables({"PATH": "/bin", "FABRIC_TROVE": ""}) == []


def test_config_is_shown_without_secrets(tmp_path: Path) -> None:
    text = 'trove = "https://me:secret@host/x"\n[aliases]\nup = "https://token@host/%s"\n'
    lines = shown(load_settings(environ(tmp_path, text)))
    assert 'trove = "https://***@host/x"' in lines
    assert '"up" = "https://***@host/%s"' in lines
