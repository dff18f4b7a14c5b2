"""Builds in odd environments, folders and locales, and as several users."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from initiator_kit import Project

pytestmark = pytest.mark.long

SYSTEM = "../systems/small.morph"
SHARE = "mkdir -p $DESTDIR/usr/bin; cp hello.txt $DESTDIR/usr/bin/{0}"
FULL = "fabric-initiator: standard output cannot be written: No space left on device\n"


def shell(script: str) -> tuple[str, ...]:
    """The command line of a shell script that runs a command as "$@"."""
    return ("sh", "-c", script, "sh")


def digest(project: Project) -> str:
    """The digest of the built system."""
    facts = json.loads(project.run("show", SYSTEM, "--json").stdout)
    return str(facts[-1]["artifacts"][0]["sha256"])


def goes(
    project: Project, within: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> None:
    """Build there, and check out the system."""
    project.write(one=SHARE.format("one"), two=("one", f"umask; {SHARE.format('two')}"))
    for args in (
        ("build", SYSTEM),
        ("build", SYSTEM),
        ("logs", "two"),
        ("checkout", SYSTEM, "--to", "tree"),
    ):
        done = project.run(*args, within=within, environ=environ)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert (project.logs / "tree/usr/bin/one").read_text() == "hello\n"
    assert not project.processes()


PLACES: dict[str, tuple[Sequence[str], dict[str, str]]] = {
    "256 descriptors": (shell('ulimit -n 256; exec "$@"'), {}),
    "LANG=C": ((), {"LC_ALL": "C", "LANG": "C"}),
    "no variables": (("env", "-i", "PATH=/usr/bin:/bin", "FABRIC_CONFIG=/dev/null"), {}),
    "no home": ((), {"HOME": "/nowhere"}),
    "no standard input": (shell('exec "$@" <&-'), {}),
    "no standard files but one": (shell('exec "$@" <&- 2>&-'), {}),
    "SIGINT and SIGPIPE ignored": (shell('trap "" INT PIPE; exec "$@"'), {}),
    "a terminal that is none": ((), {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "40"}),
}


@pytest.mark.parametrize("place", PLACES)
def test_build_works_in_odd_environments(project: Project, place: str) -> None:
    within, environ = PLACES[place]
    if within[:2] == ("env", "-i"):
        within = (*within, f"FABRIC_CACHE={project.cache}")
    goes(project, within, environ)


def test_build_does_not_depend_on_the_umask(project: Project) -> None:
    found = set()
    for umask in ("022", "077", "0"):
        project.cache = project.root.parent / f"cache-{umask}"
        goes(project, shell(f'umask {umask}; exec "$@"'))
        shutil.rmtree(project.logs / "tree")
        found.add(digest(project))
    assert len(found) == 1


@pytest.mark.parametrize("name", ["a path with spaces", "größe-日本", 'it\'s "quoted" & $HOME'])
def test_build_works_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    project = Project(tmp_path / name / "definitions", tmp_path / name / "cache")
    # a URL has no spaces
    project.source = (tmp_path / "source").resolve()
    shutil.move(project.root / "source", project.source)
    goes(project)
    project.write(bad="false")
    done = project.run("build", str(project.root / "systems/small.morph"))
    assert done.returncode == 3
    hint = shlex.split(done.stdout.partition("shell: ")[2].splitlines()[0])
    assert hint[3:] == ["--system", str(project.root / "systems/small.morph")]


def every_command(project: Project, environ: Mapping[str, str]) -> str:
    """Run all commands that use paths; returns the digest of the built system."""
    goes(project, environ=environ)
    for args in (
        ("graph", SYSTEM, "--json"),
        ("show", SYSTEM),
        ("shell", "one", "--", "true"),
        ("lorry", "list"),
        ("cache", "check"),
        ("gc",),
    ):
        done = project.run(*args, environ=environ)
        assert (done.returncode, "fault of" in done.stderr) == (0, False), (args, done.stderr)
    whole = digest(project)
    project.write(bad="false")
    done = project.run("build", SYSTEM, environ=environ)
    assert (done.returncode, "fault of" in done.stderr) == (3, False), done.stderr
    done = project.run("show", SYSTEM, environ=environ)
    assert "bad" in done.stdout
    assert "failed" in done.stdout
    return whole


@pytest.fixture(scope="module")
def locales() -> Iterator[str]:
    """A folder with an old locale."""
    with tempfile.TemporaryDirectory() as folder:
        name = f"{folder}/en_US.ISO-8859-1"
        made = subprocess.run(
            ["localedef", "-i", "en_US", "-f", "ISO-8859-1", name],
            capture_output=True,
            check=False,
        )
        if made.returncode:
            pytest.skip("locales cannot be made here: the Debian package locales is needed")
        yield folder


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_commands_work_in_any_locale(tmp_path: Path, locales: str, locale: str) -> None:
    old = {"LC_ALL": locale, "LOCPATH": locales, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = set()
    source = (tmp_path / "source").resolve()
    for name, environ in (("plain", {}), ("größe-日本", old)):
        project = Project(tmp_path / name / "definitions", tmp_path / name / "cache")
        if not source.exists():
            shutil.move(project.root / "source", source)
        project.source = source
        found.add(every_command(project, environ))
    assert len(found) == 1


@pytest.mark.parametrize("place", ["definitions", "cache"])
def test_commands_work_in_a_folder_whose_name_is_not_utf8(tmp_path: Path, place: str) -> None:
    places = {name: tmp_path / name for name in ("definitions", "cache")}
    places[place] = tmp_path / os.fsdecode(b"gr\xf6\xdfe") / place
    project = Project(places["definitions"], places["cache"])
    project.source = (tmp_path / "source").resolve()
    shutil.move(project.root / "source", project.source)
    every_command(project, {})


@pytest.mark.parametrize("to", ["x" * 255, "x" * 251 + ".tar", "-x", "a\nb"])
def test_checkout_target_may_have_any_name(project: Project, to: str) -> None:
    project.write(one=SHARE.format("one"))
    assert project.build().returncode == 0
    for more in ((), ("--force",)):
        done = project.run("checkout", SYSTEM, f"--to={to}", *more)
        assert done.returncode == 0, done.stderr
    assert (project.logs / to).exists()
    assert list(project.logs.glob(".*")) == []


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_cache_and_store_may_be_on_different_disks(tmp_path: Path, cache: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        assert Path(memory).stat().st_dev != tmp_path.stat().st_dev
        places = {"memory": Path(memory), "disk": tmp_path}
        project = Project(tmp_path / "definitions", places.pop(cache) / "cache")
        [other] = places.values()
        goes(project, environ={"FABRIC_ARTIFACTS": str(other / "store")})
        assert (other / "store/manifests").is_dir()


def test_current_folder_that_is_read_only_is_an_error(project: Project) -> None:
    project.write(one="true")
    there = shlex.quote(str(project.logs))
    script = f"mount --bind {there} {there}; mount -o remount,ro,bind {there}; cd {there}"
    read_only = ("unshare", "--map-root-user", "--mount", *shell(f'{script}; exec "$@"'))
    done = project.run("build", SYSTEM, within=read_only)
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"fabric-initiator: {project.logs}: cannot write the log there: Read-only file system;"
        " the logs of a build are written to the current folder\n"
    )
    assert "interrupted" not in done.stdout
    assert project.build().returncode == 0
    assert project.run("build", SYSTEM, within=read_only).returncode == 0, "there is nothing to log"


def test_current_folder_that_is_gone_is_an_error(project: Project) -> None:
    project.write(one="true")
    script = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    done = project.run("build", SYSTEM, within=shell(script))
    assert done.returncode == 1
    text = "fabric-initiator: the current folder is gone; go to one that exists\n"
    assert done.stderr.endswith(text)


@pytest.mark.parametrize(
    "args",
    [
        ("build", SYSTEM),
        ("build", SYSTEM, "--json"),
        ("show", SYSTEM),
        ("graph", SYSTEM, "--json"),
        ("logs", "one"),
        ("checkout", SYSTEM, "--to", "tree"),
        ("--help",),
    ],
    ids=" ".join,
)
def test_output_to_a_full_disk_is_an_error(project: Project, args: Sequence[str]) -> None:
    project.write(one="echo one")
    assert project.build().returncode == 0
    done = project.run(*args, within=shell('exec "$@" >/dev/full'))
    said = [line for line in done.stderr.splitlines(True) if "warning: not pinned" not in line]
    assert (done.returncode, "".join(said)) == (1, FULL)


def test_output_to_a_full_disk_ends_a_build(project: Project) -> None:
    project.write(one="sleep 1000")
    done = project.run("build", SYSTEM, within=shell('exec "$@" >/dev/full'))
    assert done.returncode == 1
    assert done.stderr.endswith(FULL)
    assert not project.processes()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_output_that_is_closed_keeps_exit_codes(project: Project, closed: str) -> None:
    project.write(one="echo one; cat; false")
    script = shell(f'exec "$@" {closed}')
    assert project.run("build", SYSTEM, within=script).returncode == 3
    assert "+ false" in project.log("one-misc"), "no file took the place of standard output"
    project.write(one="echo one; cat")
    assert project.run("build", SYSTEM, within=script).returncode == 0
    assert project.run("show", SYSTEM, within=script).returncode == 0
    assert project.run("show", "none", within=script).returncode == 1


def test_output_pipe_that_closes_ends_a_build(project: Project) -> None:
    project.write(one="sleep 1", two=("one", "sleep 1000"))
    script = shell('{ "$@"; echo $? >&2; } | head -n 1')
    done = project.run("build", SYSTEM, within=script)
    assert done.stdout.startswith("[0/4] one: building on worker-")
    assert done.stderr.endswith("141\n")
    assert "Traceback" not in done.stderr
    assert not project.processes()


# -- users ---------------------------------------------------------------------------------

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")


class User:
    """A user without privileges, with a home, known only by number."""

    def __init__(self, uid: int, home: Path) -> None:
        self.uid = uid
        self.project = Project(home / "definitions", home / "cache")
        self.home = home

    def owns(self) -> None:
        """Give the user all files in the home."""
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    @property
    def becoming(self) -> tuple[str, ...]:
        """Runs a command as the user, with read access to this interpreter."""
        real = Path(os.path.realpath(sys.executable)).parent.parent
        script = ""
        if str(real).startswith("/root/"):
            aside = shlex.quote(str(self.home / "python"))
            script = (
                f"mkdir {aside}; mount --bind {real} {aside}; "
                f"mount -t tmpfs -o mode=755 none /root;"
                f"mkdir -p {real}; mount --move {aside} {real}; rmdir {aside};"
            )
        drop = f"setpriv --reuid {self.uid} --regid {self.uid} --clear-groups --inh-caps=-all"
        nobody = "--bounding-set=-all --no-new-privs"
        return ("unshare", "--mount", *shell(f'{script} exec {drop} {nobody} "$@"'))


@pytest.fixture
def users() -> Iterator[list[User]]:
    """Two users, whose homes are readable by all."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield [User(60001 + n, Path(folder) / f"home{n}") for n in range(2)]


def with_ldconfig(project: Project) -> None:
    """One chunk whose staging area needs ldconfig to be run."""
    project.write(
        base="mkdir -p $DESTDIR/bin $DESTDIR/sbin $DESTDIR/etc/ld.so.conf.d\n"
        "cp /bin/busybox $DESTDIR/bin/sh\ncp /bin/busybox $DESTDIR/bin/mkdir\n"
        "printf '#!/bin/sh\\nmkdir -p /var/linked\\n' > $DESTDIR/sbin/ldconfig\n"
        "chmod 755 $DESTDIR/sbin/ldconfig; touch $DESTDIR/etc/ld.so.conf",
        user=("base", "mkdir -p $DESTDIR/srv"),
    )
    stratum = project.root / "strata/things.morph"
    head, _, tail = stratum.read_text().rpartition("build-mode: test")
    stratum.write_text(f"{head}build-mode: staging{tail}")


@ROOT
def test_users_build_at_the_same_time_as_root(users: list[User], project: Project) -> None:
    starts = [*((user.project, user.becoming) for user in users), (project, ())]
    for which, _ in starts:
        with_ldconfig(which)
    for user in users:
        user.owns()
    started = []
    try:
        for which, within in starts:
            started.append((which, which.start(within=within)))
        for which, child in started:
            out, err = child.communicate(timeout=120)
            assert child.returncode == 0, out + err
            assert not which.processes()
    finally:
        for _, child in started:
            child.kill()
            child.communicate()
