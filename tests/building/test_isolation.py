"""Sandboxes keep hostile builds from secrets, networks, processes and the kernel.

Most attacks are made by a chunk built with the host's tools, which sees most of the host.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from building_kit import Kit
from scenario import MARK, SECRETS
from test_machine import place, play, scenario  # noqa: F401  (a fixture)

from fabric.building.archive import Packed
from fabric.building.builder import build
from fabric.building.log import Log
from fabric.errors import BuildFailed, Cancelled
from fabric.host.cancel import CancelToken


def hostile(kit: Kit, attack: str, name: str = "thing") -> None:
    """Build a chunk with the host's tools that runs ``attack``, a Python script."""
    kit.build(
        kit.chunk(
            name,
            mode="test",
            staged=(),
            environment={"PATH": "/usr/bin:/bin"},
            source=kit.tree(attack=attack),
            install=["python3 attack"],
        )
    )


#: System calls by the 64-bit and the 32-bit interface; failures give -errno.
CALLS = """
import ctypes, errno, mmap, os, signal, socket, struct, subprocess, sys

UNIX, INET, VSOCK, PACKET, ALG, STREAM = 1, 2, 40, 17, 38, 1

def native(*words):
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(*words)
    return -ctypes.get_errno() if result < 0 else result

def i386(number, a=0, b=0, c=0):
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(  # push rbx; mov eax, ebx, ecx, edx; int 0x80; pop rbx; ret
        struct.pack("=2sIBIBIBI4s", b"\\x53\\xb8", number, 0xBB, a, 0xB9, b, 0xBA, c,
                    b"\\xcd\\x80\\x5b\\xc3"))
    run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    return run()

def check(call, socket, others):
    for family in (UNIX, INET):
        assert call(socket, family, STREAM, 0) > 0, family
    for family in (VSOCK, PACKET, ALG):
        assert call(socket, family, STREAM, 0) == -errno.EAFNOSUPPORT, family
    for number in others:
        assert call(number, 0, 0, 0) == -errno.ENOSYS, number

if sys.argv[1:]:
    i386(20)  # getpid
    check(i386, 359, (102, 286, 287, 288, 425))
else:
    check(native, {"x86_64": 41}.get(os.uname().machine, 198),
          {"x86_64": (248, 249, 250, 425, (1 << 30) + 41)}.get(os.uname().machine,
                                                             (217, 218, 219, 425)))
    if os.uname().machine == "x86_64":
        done = subprocess.run([sys.executable, __file__, "i386"])
        # or its kernel knows no such programs
        assert done.returncode in (0, -signal.SIGSEGV), done
"""


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host that no build may kill."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


class TestSecrets:
    #: Prepares a host in a mount namespace, with secrets in their usual places.
    HOST = (
        "mount -t tmpfs none /mnt &&"
        " for place in etc home opt root run srv var/lib; do"
        " mkdir -p /mnt/$place.up /mnt/$place.work /$place;"
        " if test -r /$place; then mount -t overlay none /$place"
        "  -o lowerdir=/$place,upperdir=/mnt/$place.up,workdir=/mnt/$place.work,userxattr;"
        " else mount -t tmpfs none /$place; fi || exit 99; done;"
        f" for path in {' '.join(SECRETS)}; do mkdir -p $(dirname $path) &&"
        # an ordinary user cannot write to directories of root
        " { test -w $(dirname $path) || mount -t tmpfs none $(dirname $path); } && rm -f $path &&"
        f" echo {''.join(MARK)} > $path || exit 99; done;"
        f" export AWS_SECRET_ACCESS_KEY={''.join(MARK)} FABRIC_KEYS=/etc/distbuild/keys;"
    )

    @pytest.mark.parametrize("name", ["steal", "steal-from-host"])
    def test_sandbox_hides_worker_secrets(self, place: Path, base: Packed, name: str) -> None:  # noqa: F811
        status, output = play(scenario(name, place, base, within=self.HOST), ("--mount",))
        assert status == 0, output

    def test_sandbox_hides_files_and_processes_of_another_build(self, kit: Kit) -> None:
        phases: list[str] = []
        job = kit.chunk(
            "other",
            build=["touch /tmp/other-s-own here-other-s-own; sh -c 'sleep 1000' other-s-own"],
        )

        def work() -> None:
            with Log(kit.root / "other.log") as log, suppress(Cancelled):
                build(job, kit.workspace, log, cancel, jobs=1, phase=phases.append)

        cancel = CancelToken()
        other = threading.Thread(target=work)
        other.start()
        try:
            while "build" not in phases:
                assert other.is_alive()
                time.sleep(0.01)
            kit.build(
                kit.chunk(
                    build=[
                        "! find / -name '*other-s-own' 2>&1 | grep other;"
                        "! cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep '1000 [o]ther'"
                    ]
                )
            )
        finally:
            cancel.set()
            other.join()

    def test_sandbox_hides_traces_of_the_build_before(self, kit: Kit) -> None:
        look = """
import os
for place in ("/tmp", ".", os.environ["DESTDIR"]):
    info = os.stat(place)
    print("found:", place[:4], sorted(set(os.listdir(place)) - {"attack"}), os.listxattr(place))
    print("found:", oct(info.st_mode), info.st_nlink)
"""
        leave = """
import os
for place in ("/tmp", ".", os.environ["DESTDIR"]):
    open(place + "/message", "w").close()
    try:
        os.setxattr(place, "user.message", b"hello")
        os.setxattr(place, "user.overlay.opaque", b"y")
    except OSError:
        pass
    os.chmod(place, 0o700)
"""
        texts = []
        for number in range(3):
            hostile(kit, look + leave, f"it-{number}")
            lines = kit.log_text.splitlines()
            texts.append([line for line in lines if line.startswith("found:")])
        assert texts[0] == texts[1] == texts[2]
        assert len(texts[0]) == 6


class TestNetwork:
    def test_sandbox_has_no_network(self, kit: Kit, tmp_path: Path) -> None:
        """Sockets on this machine are out of reach too, named and abstract ones."""
        with (
            socket.create_server(("127.0.0.1", 0)) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_UNIX) as abstract,
            socket.socket(socket.AF_UNIX) as named,
        ):
            udp.bind(("127.0.0.1", 0))
            abstract.bind(f"\0fabric-test-{os.getpid()}")
            named.bind(str(tmp_path / "socket"))
            for one in (abstract, named):
                one.listen()
            reach = f"""
import socket, sys
reached = []
for family, kind, address in (
    (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {tcp.getsockname()[1]})),
    (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 7411)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)),
    (socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 7411)),
    (socket.AF_UNIX, socket.SOCK_STREAM, {abstract.getsockname()!r}),
    (socket.AF_UNIX, socket.SOCK_STREAM, {named.getsockname()!r}),
):
    with socket.socket(family, kind) as it:
        try:
            it.connect(address)
        except OSError as error:
            print(address, error)
        else:
            reached.append(address)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as it:
    try:
        it.sendto(b"hello", {udp.getsockname()!r})
    except OSError as error:
        print(error)
for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM):
    try:
        socket.socket(socket.AF_PACKET, kind)
    except OSError as error:
        print(error)
    else:
        reached.append(kind)
sys.exit(f"reached {{reached}}" if reached else 0)
"""
            hostile(kit, reach)
            for heard in (tcp, udp, abstract, named):
                heard.setblocking(False)
            for server in (tcp, abstract, named):
                with pytest.raises(BlockingIOError):
                    server.accept()
            with pytest.raises(BlockingIOError):
                udp.recv(1)


class TestProcesses:
    def test_sandbox_isolates_processes(self, kit: Kit, victim: subprocess.Popen[bytes]) -> None:
        attack = f"""
import os, signal, sys
seen = {{int(name) for name in os.listdir("/proc") if name.isdigit()}}
reached = []
for pid in ({victim.pid}, {os.getpid()}, {os.getppid()}):
    if pid in seen:
        continue  # one of ours, of the same number
    for attempt in (
        lambda: os.kill(pid, signal.SIGKILL),
        lambda: os.killpg(pid, signal.SIGKILL),
        lambda: os.pidfd_open(pid),
        lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
        lambda: open(f"/proc/{{pid}}/mem", "r+b"),
    ):
        try:
            attempt()
        except OSError:
            pass
        else:
            reached.append(pid)
if reached or len(seen) > 10:
    sys.exit(f"reached {{reached}}, saw {{seen}}")
os.kill(-1, signal.SIGTERM)  # all but ourselves and process 1
"""
        with pytest.raises(BuildFailed, match="killed by signal 15"):
            hostile(kit, attack)
        assert victim.poll() is None

    @pytest.mark.parametrize("end", ["exit 3", "yes"])
    def test_sandbox_cannot_make_the_worker_kill_other_processes(
        self, kit: Kit, victim: subprocess.Popen[bytes], end: str
    ) -> None:
        """The worker kills only the process 1 whose number bubblewrap reported."""
        lie = (
            "set +x; for fd in /proc/1/fd/*; do case $(readlink $fd) in pipe:*)"
            f""" echo '{{"child-pid": {victim.pid}}}' > $fd;"""
            " for lie in '@ x' '@ x y' '@  ' '@ install-commands 99' '@ build-commands 0'"
            " '@ other-commands 99999999999999999999999'; do echo $lie > $fd; done;"
            " head -c 100000 /dev/zero | tr '\\0' x > $fd; printf '\\377\\n@ \\377 1\\n' > $fd ;;"
            " esac; done; "
        )
        with pytest.raises(BuildFailed):
            kit.build(kit.chunk(build=[lie + end]), log_limit=1_000_000)
        assert victim.poll() is None


class TestKernel:
    def test_sandbox_blocks_calls_that_no_namespace_isolates(self, kit: Kit) -> None:
        """Hypervisor sockets, keyrings and io_uring, for 64-bit and 32-bit programs."""
        hostile(kit, CALLS)

    def test_sandbox_cannot_change_kernel_settings(self, kit: Kit) -> None:
        """Builds of a worker that runs as root are root to the kernel."""
        attack = """
import os, sys
reached = [
    os.path.join(folder, file)
    for top in os.scandir("/proc")
    if top.is_dir(follow_symlinks=False) and not top.name.isdigit()
    for folder, _, files in os.walk(top.path)
    for file in files
    if os.stat(os.path.join(folder, file), follow_symlinks=False).st_mode & 0o222
    and os.access(os.path.join(folder, file), os.W_OK)
]
if os.access("/proc/sysrq-trigger", os.W_OK):
    reached.append("sysrq-trigger")
sys.exit(f"may write {reached[:10]}" if reached else 0)
"""
        hostile(kit, attack)

    def test_sandbox_cannot_change_the_devices_of_the_machine(self, kit: Kit) -> None:
        """Each call would change nothing, if it were allowed."""
        attack = """
import os, sys
reached = []
for name in ("null", "zero", "full", "random", "urandom", "tty"):
    path = "/dev/" + name
    found = os.stat(path)
    for call, *arguments in (
        (os.chmod, found.st_mode & 0o7777),
        (os.chown, found.st_uid, -1),
        (os.utime, None),
    ):
        try:
            call(path, *arguments)
        except OSError:
            continue
        reached.append((call.__name__, name))
with open("/dev/null", "wb") as null, open("/dev/zero", "rb") as zero:
    null.write(zero.read(10))
sys.exit(f"reached {reached}" if reached else 0)
"""
        hostile(kit, attack)

    def test_sandbox_cannot_mount_or_make_devices(self, kit: Kit) -> None:
        """Neither directly nor in a nested user namespace."""
        attack = """
import ctypes, os, stat, sys
libc = ctypes.CDLL(None)
BIND, REMOUNT, RECURSIVE, DETACH = 0x1000, 0x20, 0x4000, 2
USER, OTHERS = 0x10000000, 0x20000 | 0x02000000 | 0x40000000  # mounts, cgroups, network
reached = []
if libc.unshare(USER) == 0:
    reached.append("user namespace")
libc.unshare(OTHERS)
for kind in (b"proc", b"sysfs", b"cgroup", b"cgroup2", b"tmpfs", b"devpts", b"mqueue"):
    if libc.mount(b"none", b"/tmp", kind, 0, None) == 0:
        reached.append(kind)
for place in (b"/", b"/usr", b"/proc/sys"):
    if libc.mount(b"none", place, None, BIND | REMOUNT, None) == 0:
        reached.append((b"remount", place))
    if libc.umount2(place, DETACH) == 0:
        reached.append((b"umount", place))
if libc.mount(b"/proc", b"/tmp", None, BIND | RECURSIVE, None) == 0:
    reached.append("bind")
for name, kind in (("memory", stat.S_IFCHR), ("disk", stat.S_IFBLK)):
    try:
        os.mknod("/tmp/" + name, kind | 0o666, os.makedev(1, 1))
    except OSError:
        continue
    reached.append(name)
sys.exit(f"reached {reached}" if reached else 0)
"""
        hostile(kit, attack)


class TestLog:
    @pytest.mark.parametrize(
        "attack",
        [
            "echo two > /dev/stderr",
            "echo two > /proc/1/fd/1",
            "truncate -s 0 /dev/stdout 2>/dev/null || echo two",
            "python3 -c 'import os; os.ftruncate(1, 0)' 2>/dev/null || echo two",
            "python3 -c 'import os; os.pwrite(1, b\"over\", 0)' 2>/dev/null || echo two",
        ],
    )
    def test_sandbox_can_only_append_to_the_log(self, kit: Kit, attack: str) -> None:
        command = f"set +x; echo one\n{attack}\necho three"
        environment = {"PATH": "/usr/bin"}
        kit.build(kit.chunk(mode="test", staged=(), environment=environment, build=[command]))
        assert kit.log_text == "### BUILD-COMMANDS ###\n+ set +x\none\ntwo\nthree\n"
