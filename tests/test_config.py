"""Settings: file, environment, command line."""

from pathlib import Path

import pytest

from fabric.config import ConfigError, load_settings


def environ(tmp_path: Path, text: str = "", **more: str) -> dict[str, str]:
    file = tmp_path / "distbuild.toml"
    file.write_text(text)
    return {"FABRIC_CONFIG": str(file), **more}


def test_defaults_stand_below_the_cache(tmp_path: Path) -> None:
    settings = load_settings(environ(tmp_path), {"cache": str(tmp_path / "c")})
    assert settings.store_url == str(tmp_path / "c/artifacts")
    assert settings.trove_dir == tmp_path / "c/trove"
    assert settings.worker_count >= 1
    assert settings.jobs >= 1


def test_the_last_word_wins(tmp_path: Path) -> None:
    env = environ(tmp_path, "workers = 3\nmax-jobs = 5\nbuild-timeout = 60\n", FABRIC_MAX_JOBS="7")
    settings = load_settings(env, {"workers": 9})
    assert (settings.workers, settings.max_jobs, settings.build_timeout) == (9, 7, 60.0)


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load_settings({"FABRIC_CONFIG": str(tmp_path / "nowhere.toml")})


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("workers = 'many'", {}, r"distbuild\.toml: Expected `int`"),
        ("wrokers = 2", {}, r"distbuild\.toml: Object contains unknown field `wrokers`"),
        ("workers = ", {}, r"distbuild\.toml: Invalid value"),
        ("workers = -1", {}, "workers may not be negative"),
        ("", {"FABRIC_WORKERS": "x"}, "FABRIC_WORKERS: Expected `int`"),
        ("[aliases]\nupstream = 3", {}, r"aliases"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path, text: str, more: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(environ(tmp_path, text, **more))
