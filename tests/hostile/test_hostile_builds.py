"""Hostile chunks: each fails only its own step, with an error that says why."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from building_kit import Kit, base, key_of, kit, processes_naming, tools  # noqa: F401 (fixtures)
from waiting import until

from fabric import bounds
from fabric.building.archive import FILE, SYMLINK, Entry, pack
from fabric.building.unused import remove_unused
from fabric.building.workspace import Workspace
from fabric.definitions.graph import Device
from fabric.errors import BuildFailed, Cancelled, FabricError, MachineFault
from fabric.host.cancel import CancelToken
from fabric.host.shared_files import Tally
from fabric.jobs import Content, Job, Staged

#: Builds with the tools of this machine, which are more than those of the base chunk.
HOST: dict[str, Any] = {"mode": "test", "staged": (), "environment": {"PATH": "/usr/bin:/bin"}}


def python(text: str) -> str:
    """A command that runs a Python script."""
    return f"python3 -c '{text}'"


def device(filename: str, **numbers: int) -> Device:
    return Device(filename, "c", 0o666, **{"major": 1, "minor": 3, "uid": 0, "gid": 0} | numbers)


class Case(NamedTuple):
    """A chunk, and its whole error; "" if it is built."""

    name: str
    fields: dict[str, Any]
    message: str
    options: Mapping[str, Any] = MappingProxyType({})


#: Makes a file whose path is longer than any system call takes: 15,000 bytes.
LONGEST = python(
    'import os; os.chdir("/tmp")\n'
    'for _ in range(60): os.mkdir("x" * 250); os.chdir("x" * 250)\n'
    'open("it", "w").write("12345")'
)
DEEPEST = "cd /tmp; for i in $(seq 1500); do mkdir d; cd d; done; printf 12345 > it"


def install(*commands: str, **fields: Any) -> dict[str, Any]:
    return {"install": commands, **fields}


CANNOT_HOLD = "and no artifact may hold one: the commands that make it must remove it"
FAILED = "install-commands failed with exit status"

CASES = [
    # -- installed files
    Case(
        "whiteout",
        install('mknod "$DESTDIR"/gone c 0 0', **HOST),
        f"/gone is a device, {CANNOT_HOLD} (chunks have `devices` for devices)",
    ),
    Case(
        "socket",
        install(
            python(
                'import os, socket; os.chdir(os.environ["DESTDIR"]);'
                ' socket.socket(socket.AF_UNIX).bind("it")'
            ),
            **HOST,
        ),
        f"/it is a socket, {CANNOT_HOLD}",
    ),
    Case(
        "deep tree",
        install(
            'cd "$DESTDIR"; mkdir d; for i in $(seq 2100); do mkdir n; mv d n; mv n d; done', **HOST
        ),
        f"/{'d/' * 30}... is a path of more than 2048 bytes, and no artifact may hold one",
    ),
    Case(
        "long path",
        install(
            python(
                'import os; os.chdir(os.environ["DESTDIR"])\n'
                'for _ in range(9): os.mkdir("x" * 250); os.chdir("x" * 250)'
            ),
            **HOST,
        ),
        f"/{'x' * 60}... is a path of more than 2048 bytes, and no artifact may hold one",
    ),
    Case(
        "hole",
        install('truncate -s 200G "$DESTDIR"/hole', **HOST),
        "The files have 214,748,364,800 bytes (holes count), and an artifact may have"
        " 68,719,476,736",
    ),
    Case(
        "hole that takes a while",
        install('truncate -s 60G "$DESTDIR"/hole', **HOST),
        "storing: ran longer than 1 s, which is the limit (setting `build-timeout`)",
        {"timeout": 1},
    ),
    Case("paths longer than any", {"build": (LONGEST,), **HOST}, ""),
    Case("names that are no text", install("echo x > $DESTDIR/$(printf '\\377\\n\\033[31m')"), ""),
    Case(
        "nothing readable",
        install("mkdir $DESTDIR/d; echo x > $DESTDIR/d/f; chmod 0 $DESTDIR/d/f $DESTDIR/d"),
        "",
    ),
    # -- devices
    Case(
        "device that is the root", {"devices": (device("/"),)}, "devices: '/' is no path of a file"
    ),
    Case(
        "device below a dot",
        {"devices": (device("/dev/./null"),)},
        "devices: '/dev/./null' is no path of a file",
    ),
    Case(
        "device of nobody",
        {"devices": (device("/dev/null", uid=1 << 60),)},
        "/dev/null cannot be archived: int too big to convert",
    ),
    Case("device of a large number", {"devices": (device("/dev/null", uid=3_000_000),)}, ""),
    # -- output
    Case(
        "spam",
        install(
            python(
                "import os\nfor _ in range(3): os.fork()\nwhile True: os.write(1, bytes(1 << 20))"
            ),
            **HOST,
        ),
        "install-commands: printed more than 1000000 bytes, which is the limit (setting"
        " `log-limit`)",
        {"log_limit": 1_000_000},
    ),
    Case(
        "spam for ever",
        install(
            python(
                "import os\nfor _ in range(3): os.fork()\nwhile True: os.write(1, bytes(1 << 20))"
            ),
            **HOST,
        ),
        "install-commands: ran longer than 0.5 s, which is the limit (setting `build-timeout`)",
        {"timeout": 0.5},
    ),
    # -- during the build
    Case(
        "memory of its own",
        install(f"fallocate -l {bounds.SANDBOX_SHM + 1} /dev/shm/it 2>/dev/null || exit 7", **HOST),
        f"{FAILED} 7: fallocate -l {bounds.SANDBOX_SHM + 1} /dev/shm/it 2>/dev/null || exit 7",
    ),
    Case("no device folder", install("! touch /dev/it 2>/dev/null"), ""),
    Case(
        "typing into a terminal",
        install(
            python(
                "import errno, fcntl, os, sys\n"
                "for call in (0x5412, 0x541C):\n"
                '    try: fcntl.ioctl(os.openpty()[1], call, b"x")\n'
                "    except PermissionError: continue\n"
                "    sys.exit(3)"
            ),
            **HOST,
        ),
        "",
    ),
    Case("first to go", install("test $(cat /proc/self/oom_score_adj) -ge 500"), ""),
    Case(
        "too many processes",
        install(
            python(
                "import os, time\ntry:\n    for _ in range(400):\n"
                "        if not os.fork(): time.sleep(1000)\nexcept OSError: pass"
            ),
            **HOST,
        ),
        "",
    ),
]


@pytest.mark.bound("ARTIFACT_BYTES")
@pytest.mark.bound("ARTIFACT_PATH")
@pytest.mark.bound("LOG_AT_ONCE")
@pytest.mark.bound("SANDBOX_SHM")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_build_fails_only_its_own_step(kit: Kit, case: Case) -> None:  # noqa: F811
    job = kit.chunk(**case.fields)
    if case.message:
        with pytest.raises(FabricError) as caught:
            kit.build(job, **case.options)
        assert (type(caught.value), str(caught.value)) == (BuildFailed, case.message)
        assert kit.store.manifest(job.key) is None
    else:
        kit.build(job, **case.options)
    limit = case.options.get("log_limit", 0)
    assert len(kit.log_bytes) < limit + bounds.LOG_AT_ONCE + (4 << 20) or not limit
    assert processes_naming(kit.root) == []
    kit.build(kit.chunk("plain", build=["echo well"]))
    kit.workspace.close(patience=100)
    assert not list((kit.workspace.root / "tmp").iterdir()), "all of it can be deleted"


@pytest.mark.parametrize("tree", [LONGEST, DEEPEST], ids=["long", "deep"])
def test_failed_build_with_a_deep_tree_is_counted_and_removed(kit: Kit, tree: str) -> None:  # noqa: F811
    job = kit.chunk(build=[tree, "false"], **HOST)
    with pytest.raises(BuildFailed):
        kit.build(job)
    kept = kit.workspace.root / "failed" / job.key
    tally = Tally()
    tally.add(kept)
    assert tally.bytes == 5
    freed, _ = remove_unused(kit.workspace, set(), 0.0)
    assert freed.bytes >= 5
    assert not kept.exists()


# -- trees that others are built on --------------------------------------------------------------


def seen(kit: Kit, job: Job, command: str) -> list[str]:  # noqa: F811
    """The output of a chunk that is staged on ``job``, on this machine and on another."""
    found = []
    here = kit.workspace
    with Workspace(kit.root / "other", kit.store, kit.sources) as there:
        for number, workspace in enumerate((here, there)):
            kit.workspace = workspace
            user = kit.chunk(
                f"user-{number}",
                build=[f"set +x; {command}"],
                staged=(kit.base, Staged(job.key, "low")),
            )
            kit.build(user)
            found.append(kit.log_text)
    kit.workspace = here
    return found


@pytest.mark.parametrize(
    ("attack", "look"),
    [
        ('setfattr -n user.overlay.opaque -v y "$DESTDIR"/bin', "ls /bin"),
        ('setfattr -n user.remark -v hello "$DESTDIR"/bin/new', "cat /bin/new"),
        ('ln "$DESTDIR"/bin/new "$DESTDIR"/new', "stat -c %h /bin/new /new"),
        ('chmod 2750 "$DESTDIR"/bin', "stat -c %a /bin"),
    ],
    ids=["opaque", "attribute", "a file of two artifacts", "mode"],
)
def test_layer_is_the_same_on_all_machines(kit: Kit, attack: str, look: str) -> None:  # noqa: F811
    """The machine that built a chunk stages its tree; others unpack the artifact."""
    attack = attack.replace("setfattr -n", "attr").replace(" -v", "")
    script = (
        "import os, sys\n"
        "def attr(name, value, path): os.setxattr(path, name, value.encode())\n"
        "attr(*sys.argv[1:])"
    )
    if attack.startswith("attr"):
        attack = attack.replace("attr", "python3 attr", 1)
    job = kit.chunk(
        "evil",
        source=kit.tree(attr=script),
        install=['mkdir "$DESTDIR"/bin; echo new > "$DESTDIR"/bin/new', attack],
        **HOST,
    )
    kit.build(job)
    here, there = seen(kit, job, look)
    assert here == there
    layer = kit.workspace.root / "layers" / job.key / "bin"
    for path in (layer, layer / "new"):
        assert os.listxattr(path) == []


# -- links that lead out -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        *((name, True) for name in ("thing.build", "thing.inst", "tmp", "dev", "proc")),
        *((name, False) for name in ("thing.steps", "dev/steps", "dev/shm")),
    ],
)
def test_sandbox_follows_no_link_at_its_mounts(kit: Kit, name: str, fails: bool) -> None:  # noqa: F811
    """bubblewrap before 0.12 follows them when it makes a file."""
    host = kit.root / "host"
    host.mkdir()
    link = Entry(name.encode(), SYMLINK, 0o777, link=f"/oldroot{host}/it".encode())
    evil = kit.stored("evil", {"evil-misc": pack([link], kit.root / "spill")})
    job = kit.chunk("thing", build=["echo ran"], staged=(kit.base, evil))
    with pytest.raises(BuildFailed) if fails else nullcontext() as caught:
        kit.build(job)
    if caught:
        assert "has something else where the sandbox puts a directory of its own" in str(
            caught.value
        )
    assert list(host.iterdir()) == []


def system(kit: Kit, *contents: tuple[Staged, str]) -> Job:  # noqa: F811
    listed = [Content(chunk.key, artifact) for chunk, artifact in contents]
    return Job(
        key=key_of("sys"),
        kind="system",
        name="sys",
        arch="x86_64",
        log="build-step-sys.log",
        artifacts=("sys-rootfs",),
        lists=(("sys-rootfs", (Content(kit.base.key, "base-misc"), *listed)),),
    )


def integration(text: str) -> Entry:
    data = f"#!/bin/sh\n{text}\n".encode()
    return Entry(b"baserock/system-integration/00-it", FILE, 0o755, len(data), data=data)


def test_system_links_to_the_host_are_not_followed(kit: Kit) -> None:  # noqa: F811
    """The builder works on the tree after the scripts, and follows no links there."""
    host = kit.root / "host"
    host.mkdir()
    for name in ("aux-cache", "precious"):
        (host / name).write_text("precious\n")
    script = integration(
        f"rm -rf /var/cache/ldconfig; mkdir -p /var/cache; ln -s {host} /var/cache/ldconfig;"
        f" ln -s {host}/precious /etc-link"
    )
    evil = kit.stored("evil", {"evil-misc": pack([script], kit.root / "spill")})
    kit.build(system(kit, (evil, "evil-misc")))
    assert sorted(path.name for path in host.iterdir()) == ["aux-cache", "precious"]
    assert {path.read_text() for path in host.iterdir()} == {"precious\n"}


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (
            "while :; do :; done",
            {"timeout": 1},
            "ldconfig: ran longer than 1 s, which is the limit (setting `build-timeout`)",
        ),
        (
            "yes",
            {"log_limit": 1000},
            "ldconfig: printed more than 1000 bytes, which is the limit (setting `log-limit`)",
        ),
        ("exit 3", {}, "ldconfig failed in the staging area: status 3"),
        (
            "head -c 2000000000 /dev/zero > /dev/shm/it",
            {},
            "ldconfig failed in the staging area: status 1",
        ),
    ],
    ids=["time", "log", "status", "memory"],
)
def test_ldconfig_of_a_chunk_is_confined(
    kit: Kit,  # noqa: F811
    program: str,
    options: dict[str, Any],
    message: str,
) -> None:
    text = f"#!/bin/sh\n{program}\n".encode()
    entries = [
        Entry(b"etc/ld.so.conf", FILE),
        Entry(b"sbin/ldconfig", FILE, 0o755, len(text), data=text),
    ]
    evil = kit.stored("evil", {"evil-misc": pack(entries, kit.root / "spill")})
    with pytest.raises(BuildFailed) as caught:
        kit.build(kit.chunk(build=["true"], staged=(kit.base, evil)), **options)
    assert str(caught.value) == message
    # other tests have folders there
    left = {file.name for file in Path("/dev/shm").iterdir()}
    assert not [name for name in left if name in ("it", "scratch-lock") or "fabric" in name]
    assert processes_naming(kit.root) == []


def test_cancel_does_not_wait_for_a_large_upload(kit: Kit) -> None:  # noqa: F811
    """The store waits for its lock here, as during gc."""
    phases: list[str] = []
    job = kit.chunk(install=["head -c 20000000 /dev/urandom > $DESTDIR/it"])
    kit.store.usage()
    lock = os.open(kit.root / "artifacts/lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def cancel() -> None:
        until(lambda: "store" in phases)
        until(lambda: any(thread.name == "storing" for thread in threading.enumerate()))
        kit.cancel.set()

    other = threading.Thread(target=cancel)
    other.start()
    with pytest.raises(Cancelled):
        kit.build(job, phase=phases.append)
    other.join()
    os.close(lock)
    until(lambda: not any(thread.name == "storing" for thread in threading.enumerate()))
    kit.cancel = CancelToken()
    kit.build(job)


def test_build_out_of_memory_is_reported(kit: Kit) -> None:  # noqa: F811
    """A build in a control group with little memory: the kernel kills the largest process.

    The process of the tests is in the group too, and may have hundreds of MiB.
    """
    group = Path(f"/sys/fs/cgroup/memory/fabric-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1 << 30))
        (group / "cgroup.procs").open("w").close()
    except OSError:
        pytest.skip("needs a control group for memory, of version 1")
    code = "x = bytearray(4 << 30); print(len(x))"
    job = kit.chunk(install=[python(f"{code}") + "; sleep 1000"], **HOST)
    scope = group / "cgroup.procs"
    original = Path("/proc/self/cgroup").read_text()
    try:
        scope.write_text(str(os.getpid()))
        with pytest.raises(MachineFault) as caught:
            kit.build(job)
    finally:
        for line in original.splitlines():
            if ":memory:" in line:
                home = line.rpartition(":")[2]
                Path(f"/sys/fs/cgroup/memory{home}/cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()
    assert str(caught.value) == (
        "This machine ran out of memory, and its kernel ended 1 process. Fewer at a time need less:"
        " see the settings `max-jobs` and `workers`, and the field `max-jobs` of a chunk"
    )
