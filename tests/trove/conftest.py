"""Real servers and stores on loopback for the tests of the trove."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_kit import Casd, running
from servers_kit import free_port
from sources_kit import Files, Sshd, sshd
from store_kit import LISTED, nginx, seaweed

from fabric.trove.artifacts import remote
from fabric.trove.artifacts.store import Store


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    """A directory behind an HTTP server that can be made to fail."""
    folder = tmp_path / "served"
    folder.mkdir()
    with Files(folder) as served:
        yield served


@pytest.fixture(scope="session")
def webdav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a WebDAV server."""
    with nginx(tmp_path_factory.mktemp("nginx"), free_port()) as server:
        yield f"{server.url}/some/place"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment for an S3 server with the bucket ``artifacts``."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as environment:
        yield environment


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An SSH server that is not configured for git."""
    with sshd(tmp_path_factory.mktemp("sshd"), free_port()) as server:
        yield server


@pytest.fixture(scope="session")
def git_ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An SSH server that lets git speak its newest protocol."""
    folder = tmp_path_factory.mktemp("git-sshd")
    with sshd(folder, free_port(), AcceptEnv="GIT_PROTOCOL") as server:
        yield server


@pytest.fixture(params=[*LISTED, "reapi"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of each kind."""
    if request.param == "reapi":
        url = f"reapi://{request.getfixturevalue('cas').host}"
    elif request.param == "directory":
        url = (tmp_path / "a store").as_uri()
    elif request.param.startswith("webdav"):
        if request.param == "webdav without obstore":
            monkeypatch.setitem(sys.modules, "obstore", None)
        url = f"{request.getfixturevalue('webdav')}/{tmp_path.name}"
    else:
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        url = f"s3://artifacts/{tmp_path.name}"
    return Store(url, tmp_path / "scratch")


@pytest.fixture
def cas(tmp_path: Path) -> Iterator[Casd]:
    """An empty server of the Remote Execution API."""
    with running(tmp_path / "cas-server") as one:
        yield one


@pytest.fixture
def without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    """WebDAV is spoken by the client for machines without obstore, which soon gives up."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setattr(remote, "RETRIES", 1)
    monkeypatch.setattr(remote, "SILENCE", 1)
