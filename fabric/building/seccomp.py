"""Filters the system calls of a build that namespaces do not restrict.

Some ways out of a sandbox belong to no namespace.  Sockets of unusual families reach the machine's
host (vsock) or another build; keyrings may be shared; io_uring makes sockets past any filter.  To
a build, the kernel seems to be built without these, which programs handle.  Two more calls insert
text into a terminal as if its user had typed it.

The numbers are the kernel's (``asm/unistd.h``, ``linux/audit.h``, ``linux/seccomp.h``).
"""

from __future__ import annotations

import errno
import functools
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

#: Families that network namespaces separate, or that use files.
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_IO_URING = (425, 426, 427)  # everywhere
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # typing: into a terminal, into a console


class _Calls(NamedTuple):
    """One of the kernel's interfaces: its audit number, and the numbers of its calls."""

    audit: int
    socket: int
    ioctl: int
    refused: tuple[int, ...]  # add_key, request_key, keyctl, and what makes sockets unseen
    beyond: int = 1 << 31  # and all from here on


_INTERFACES = (
    _Calls(0xC000003E, 41, 16, (248, 249, 250), 1 << 30),  # x86_64; beyond is x32
    _Calls(0x40000003, 359, 54, (286, 287, 288, 102)),  # i386, with socketcall
    _Calls(0xC00000B7, 198, 29, (217, 218, 219)),  # aarch64
    _Calls(0x40000028, 281, 54, (309, 310, 311, 102)),  # arm, with socketcall
    _Calls(0xC00000F3, 198, 29, (217, 218, 219)),  # riscv64
)

_LOAD, _JUMP_EQUAL, _JUMP_FROM, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _AUDIT, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24  # in struct seccomp_data
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


@functools.cache
def program() -> bytes:
    """The filter, as ``bwrap --seccomp`` takes it: classic BPF.

    Interfaces of other machines than those listed are not filtered.
    """
    blocks = b"".join(_interface(calls) for calls in _INTERFACES)
    return _do(_LOAD, _AUDIT) + blocks + _do(_RETURN, _ALLOW)


def _interface(calls: _Calls) -> bytes:
    """The instructions that apply if this is the interface used."""
    block = b"".join(
        (
            _do(_LOAD, _NUMBER),
            _do(_JUMP_FROM, calls.beyond, 0, 1),
            _do(_RETURN, _FAIL | errno.ENOSYS),
            *_each((*calls.refused, *_IO_URING), _FAIL | errno.ENOSYS),
            _when(
                calls.ioctl,
                _do(_LOAD, _SECOND_ARGUMENT),
                *_each((_TIOCSTI, _TIOCLINUX), _FAIL | errno.EPERM),
                _do(_RETURN, _ALLOW),
            ),
            _when(
                calls.socket,
                _do(_LOAD, _FIRST_ARGUMENT),
                *_each(_FAMILIES, _ALLOW),
                _do(_RETURN, _FAIL | errno.EAFNOSUPPORT),
            ),
            _do(_RETURN, _ALLOW),
        )
    )
    return _do(_JUMP_EQUAL, calls.audit, 0, len(block) // 8) + block


def _when(number: int, *block: bytes) -> bytes:
    """Run a block, which returns, if the loaded value is the number."""
    return _do(_JUMP_EQUAL, number, 0, len(block)) + b"".join(block)


def _each(numbers: tuple[int, ...], result: int) -> Iterator[bytes]:
    """Return ``result`` if the loaded value is one of the numbers."""
    for number in numbers:
        yield _do(_JUMP_EQUAL, number, 0, 1)
        yield _do(_RETURN, result)


def _do(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; jumps skip that many instructions."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
